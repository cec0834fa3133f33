"""Axes, cumulative distributions and memory growth."""

import math
import re
from itertools import accumulate, pairwise

import numpy as np
import pytest

from pytest_modelserve.evidence import Budget, Interval, Quantity
from pytest_modelserve.reporting.plots import (
    BOTTOM,
    GROWTH_LEFT,
    LEFT,
    RIGHT,
    TOP,
    Heights,
    axis_through,
    draw_distribution,
    draw_growth,
    quantile_of,
)
from pytest_modelserve.reporting.samples import Readings, Sample


def labels(axis):
    return [tick.label for tick in axis.ticks()]


def test_values_lie_between_the_ends_with_room_and_a_stranger_at_an_end():
    axis = axis_through([2.0, 3.0, math.inf, math.nan], start=100, end=200, unit="ms")
    assert 100 < axis.place(2.0) < axis.place(2.5) == 150 < axis.place(3.0) < 200
    assert (axis.place(-math.inf), axis.place(math.inf)) == (100, 200)


def test_long_tail_takes_a_logarithmic_axis_and_a_short_one_does_not():
    assert axis_through([1.0, 8.1], start=0, end=100, unit="ms").is_log
    assert not axis_through([1.0, 7.9], start=0, end=100, unit="ms").is_log
    assert not axis_through([0.0, 100.0], start=0, end=100, unit="ms").is_log
    assert not axis_through([1.0, 100.0], start=0, end=100, unit="ms", may_be_log=False).is_log


@pytest.mark.parametrize(
    ("values", "unit", "expected"),
    [
        ((0.042, 0.29), "ms", ["50 µs", "100 µs", "150 µs", "200 µs", "250 µs"]),
        ((0.02, 0.28), "ms", ["20 µs", "50 µs", "100 µs", "200 µs"]),
        ((0.1, 1000.0), "ms", ["100 µs", "1 ms", "10 ms", "100 ms", "1 s"]),
        ((0.95, 1.12), "ratio", ["× 0.95", "× 1", "× 1.05", "× 1.1"]),
        ((0.0, 5 * 2**20), "bytes", ["0", "1 MiB", "2 MiB", "3 MiB", "4 MiB", "5 MiB"]),
        ((-300 * 1024.0, 300 * 1024.0), "bytes", ["-300 KiB", "-200 KiB", "-100 KiB", "0", "100 KiB", "200 KiB", "300 KiB"]),
        ((0.0, 5280.0), "count", ["0", "1,000", "2,000", "3,000", "4,000", "5,000"]),
    ],
)  # fmt: skip
def test_ticks_are_round_numbers_in_a_scale_that_suits(values, unit, expected):
    assert labels(axis_through(values, start=0, end=900, unit=unit)) == expected


def vertices(path):
    """The corners of a path of one move and relative lines."""
    numbers = [int(number) for number in re.findall(r"-?\d+", path)]
    assert path.startswith("M")
    return list(zip(accumulate(numbers[::2]), accumulate(numbers[1::2]), strict=True))


def quantity(value=2.0, low=1.5, high=2.5, limit=4.0):
    return Quantity("p95", value, "ms", Interval(low, high, 0.999, 0.95), Budget("at_most", limit))


def sample(values, *, level=0.5, second=()):
    return Sample("calls", "took at most this long", level, tuple(sorted(values)), second)


def test_small_sample_is_drawn_value_by_value():
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
def test_curve_of_a_large_sample_passes_through_its_quantiles(level):
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


def test_budget_and_interval_lie_where_their_numbers_do():
    drawing = draw_distribution(sample((1.0, 2.0, 3.0)), quantity())
    axis = axis_through((1.0, 4.0), start=LEFT, end=RIGHT, unit="ms")
    assert drawing.limit_at == drawing.allowed_to == axis.place(4.0)
    assert (drawing.allowed_from, drawing.limit) == (LEFT, "≤ 4.00 ms")
    assert drawing.value_at == axis.place(2.0)
    middle = (TOP + BOTTOM) // 2
    low, high = axis.place(1.5), axis.place(2.5)
    assert drawing.interval == f"M{low} {middle}H{high}M{low} {middle - 8}v16M{high} {middle - 8}v16"


@pytest.mark.parametrize("low", [-math.inf, 0.0])
def test_open_end_of_an_interval_reaches_the_edge_without_a_cap_and_stretches_nothing(low):
    drawing = draw_distribution(sample((1.0, 2.0, 3.0)), quantity(low=low))
    assert re.findall(r"M(\d+)", drawing.interval) == [str(LEFT), str(drawing.interval.split("H")[1].split("M")[0])]
    assert drawing.limit_at == draw_distribution(sample((1.0, 2.0, 3.0)), quantity()).limit_at


def test_tail_of_a_latency_has_room_where_its_quantile_is_judged():
    heights = Heights(10_000, is_tail=True)
    places = [heights.place(share) for share in (0.0, 0.9, 0.99, 0.999, 1.0)]
    assert (places[0], places[-1]) == (BOTTOM, TOP)
    decades = [below - above for below, above in pairwise(places[:4])]
    assert max(decades) - min(decades) <= 1
    even = Heights(10_000, is_tail=False)
    assert even.place(0.95) - even.place(1.0) == 8 < heights.place(0.95) - heights.place(1.0)


def test_second_clock_is_drawn_unless_it_lies_elsewhere():
    values = (1.0, 2.0, 3.0)
    assert draw_distribution(sample(values, second=(1.1, 1.9, 2.9)), quantity()).second.startswith("M")
    assert draw_distribution(sample(values, second=(0.1, 0.1, 0.1)), quantity()).second == ""
    assert draw_distribution(sample(values), quantity()).second == ""


def test_distribution_is_described_in_words():
    drawing = draw_distribution(sample((1.0, 2.0, 3.0, 9.0), level=0.95), quantity())
    assert drawing.title == "Share of 4 calls that took at most this long"
    assert drawing.description == (
        "From 1.00 ms: 50 % at most 2.00 ms, 95 % at most 9.00 ms, all at most 9.00 ms. "
        "p95 lies in [1.50 ms, 2.50 ms]. The budget is ≤ 4.00 ms."
    )


@pytest.mark.parametrize("n", [1, 2, 19, 20, 21, 100])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 0.95, 0.99, 1.0])
def test_quantile_is_that_of_the_inverted_distribution_function(n, share):
    values = [float(i) for i in range(n)]
    assert quantile_of(values, share) == np.quantile(values, share, method="inverted_cdf")


READINGS = Readings((5000.0, 5000.0, 7048.0, 9096.0), 100)


def growth_quantity(low=5.0, high=15.0, limit=10.0):
    return Quantity("growth per call", 10.0, "bytes", Interval(low, high, 0.999, 0.95), Budget("at_most", limit))


def points(text):
    return [(int(x), int(y)) for x, y in (pair.split(",") for pair in text.split())]


def test_line_budget_and_interval_start_at_the_first_reading_and_end_at_the_last_call():
    drawing = draw_growth(READINGS, growth_quantity())
    across = axis_through((0, 300), start=GROWTH_LEFT, end=RIGHT, unit="count", may_be_log=False)
    up = axis_through((0, 4500), start=BOTTOM, end=TOP, unit="bytes", may_be_log=False)
    first, last = across.place(0), across.place(300)
    grown = [(0, 0), (100, 0), (200, 2048), (300, 4096)]
    assert points(drawing.line) == [(across.place(calls), up.place(by)) for calls, by in grown]
    assert points(drawing.allowed)[:2] == [(first, up.place(0)), (last, up.place(3000))]
    assert drawing.limit_at == up.place(3000)
    assert points(drawing.fan) == [(first, up.place(0)), (last, up.place(1500)), (last, up.place(4500))]


def test_interval_with_an_open_end_is_no_fan():
    assert draw_growth(READINGS, growth_quantity(low=-math.inf)).fan == ""
    assert draw_growth(READINGS, growth_quantity(high=math.inf)).fan == ""
