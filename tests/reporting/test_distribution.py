"""Samples drawn as shares: the figures of the drawing are those of the sample."""

from __future__ import annotations

import math
import re
from itertools import accumulate, pairwise

import numpy as np
import pytest

from pytest_modelserve.evidence import Budget, Interval, Quantity
from pytest_modelserve.reporting.html_report import Sample
from pytest_modelserve.reporting.plots import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Heights,
    axis_through,
    draw_distribution,
    quantile_of,
)


def vertices(path: str) -> list[tuple[int, int]]:
    """The corners of a path of one move and relative lines."""
    numbers = [int(number) for number in re.findall(r"-?\d+", path)]
    assert path.startswith("M")
    return list(zip(accumulate(numbers[::2]), accumulate(numbers[1::2]), strict=True))


def quantity(value: float = 2.0, low: float = 1.5, high: float = 2.5, limit: float = 4.0) -> Quantity:
    return Quantity("p95", value, "ms", Interval(low, high, 0.999, 0.95), Budget("at_most", limit))


def sample(values: tuple[float, ...], *, level: float = 0.5, cpu: tuple[float, ...] = ()) -> Sample:
    return Sample("calls", "took at most this long", level, tuple(sorted(values)), cpu)


def test_small_sample_is_drawn_value_by_value() -> None:
    drawing = draw_distribution(sample((1.0, 2.0, 2.0, 3.0)), quantity())
    axis = axis_through((1.0, 4.0), start=LEFT, end=RIGHT, unit="ms")
    heights = [BOTTOM - round(share * (BOTTOM - TOP)) for share in (0, 0.25, 0.5, 0.75, 1)]
    one, two, three = (axis.place(value) for value in (1.0, 2.0, 3.0))
    assert vertices(drawing.curve) == [
        (one, heights[0]), (one, heights[1]),
        (two, heights[1]), (two, heights[2]), (two, heights[3]),
        (three, heights[3]), (three, heights[4]),
    ]  # fmt: skip


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_curve_of_a_large_sample_passes_through_its_quantiles(level: float) -> None:
    values = np.sort(1 + np.random.default_rng(0).gamma(2.0, 0.3, 20_000))
    drawn = sample(tuple(values.tolist()), level=level)
    drawing = draw_distribution(drawn, quantity())
    axis = axis_through((values[0], values[-1], 4.0), start=LEFT, end=RIGHT, unit="ms")
    heights = Heights(values.size, is_tail=level == 0.95)
    corners = vertices(drawing.curve)
    assert len(corners) <= 26
    assert corners[-1] == (axis.place(values[-1]), TOP)
    assert (axis.place(np.quantile(values, level, method="inverted_cdf")), heights.place(level)) in corners
    # Every corner against the share of the sample up to it: one unit across is 0.2 % of the axis.
    for x, y in corners[1:-1]:
        per_unit = (axis.high - axis.low) / (RIGHT - LEFT)
        value = axis.low + (x - LEFT) * per_unit
        shares = [np.mean(values <= value + step * per_unit) for step in (-1, 1)]
        assert heights.place(shares[1]) - 1 <= y <= heights.place(shares[0]) + 1


def test_budget_and_interval_lie_where_their_numbers_do() -> None:
    drawing = draw_distribution(sample((1.0, 2.0, 3.0)), quantity())
    axis = axis_through((1.0, 4.0), start=LEFT, end=RIGHT, unit="ms")
    assert drawing.limit_at == drawing.allowed_to == axis.place(4.0)
    assert (drawing.allowed_from, drawing.limit) == (LEFT, "≤ 4.00 ms")
    assert drawing.value_at == axis.place(2.0)
    middle = (TOP + BOTTOM) // 2
    low, high = axis.place(1.5), axis.place(2.5)
    assert drawing.interval == f"M{low} {middle}H{high}M{low} {middle - 8}v16M{high} {middle - 8}v16"


def test_budget_of_at_least_allows_the_other_side() -> None:
    at_least = Quantity("rate", 2.0, "ratio", None, Budget("at_least", 1.5))
    drawing = draw_distribution(sample((1.0, 2.0, 3.0)), at_least)
    assert (drawing.allowed_from, drawing.allowed_to) == (drawing.limit_at, RIGHT)
    assert drawing.interval == ""


@pytest.mark.parametrize("low", [-math.inf, 0.0])
def test_open_end_of_an_interval_reaches_the_edge_without_a_cap_and_stretches_nothing(low: float) -> None:
    drawing = draw_distribution(sample((1.0, 2.0, 3.0)), quantity(low=low))
    assert re.findall(r"M(\d+)", drawing.interval) == [str(LEFT), str(drawing.interval.split("H")[1].split("M")[0])]
    assert drawing.limit_at == draw_distribution(sample((1.0, 2.0, 3.0)), quantity()).limit_at


def test_tail_of_a_latency_has_room_where_its_quantile_is_judged() -> None:
    heights = Heights(10_000, is_tail=True)
    places = [heights.place(share) for share in (0.0, 0.9, 0.99, 0.999, 1.0)]
    assert (places[0], places[-1]) == (BOTTOM, TOP)
    decades = [below - above for below, above in pairwise(places[:4])]
    assert max(decades) - min(decades) <= 1
    even = Heights(10_000, is_tail=False)
    assert even.place(0.95) - even.place(1.0) == 8 < heights.place(0.95) - heights.place(1.0)


def test_labels_beside_a_tail_name_the_judged_quantile_and_never_overlap() -> None:
    values = tuple(float(i) for i in range(1, 5001))
    for level in (0.8, 0.9, 0.95, 0.99, 0.999):
        shares = draw_distribution(sample(values, level=level), quantity()).shares
        assert shares[0].label == f"{100 * level:g} %"
        places = sorted(tick.at for tick in shares)
        assert min(right - left for left, right in pairwise(places)) >= 24


def test_cpu_time_is_drawn_unless_it_lies_elsewhere() -> None:
    values = (1.0, 2.0, 3.0)
    assert draw_distribution(sample(values, cpu=(1.1, 1.9, 2.9)), quantity()).cpu.startswith("M")
    assert draw_distribution(sample(values, cpu=(0.1, 0.1, 0.1)), quantity()).cpu == ""
    assert draw_distribution(sample(values), quantity()).cpu == ""


def test_words_tell_the_figures_of_the_drawing() -> None:
    drawing = draw_distribution(sample((1.0, 2.0, 3.0, 9.0), level=0.95), quantity())
    assert drawing.title == "Share of 4 calls that took at most this long"
    assert drawing.description == (
        "From 1.00 ms: 50 % at most 2.00 ms, 95 % at most 9.00 ms, all at most 9.00 ms. "
        "p95 lies in [1.50 ms, 2.50 ms]. The budget is ≤ 4.00 ms."
    )


@pytest.mark.parametrize("n", [1, 2, 19, 20, 21, 100])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 0.95, 0.99, 1.0])
def test_quantile_is_that_of_the_inverted_distribution_function(n: int, share: float) -> None:
    values = [float(i) for i in range(n)]
    assert quantile_of(values, share) == np.quantile(values, share, method="inverted_cdf")
