"""A sample drawn as the share of its values that are at most so large, beside the interval and the budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_modelserve.evidence import Interval, Quantity
from pytest_modelserve.reporting.axis import Axis, Tick, axis_through
from pytest_modelserve.reporting.figures import told, told_budget, told_interval
from pytest_modelserve.reporting.samples import Sample

LEFT, RIGHT, TOP, BOTTOM = 96, 948, 8, 164
"""The corners of the plot, in units of which the drawing is 960 wide and 204 high."""
_KNOTS = 24
"""Points of the curve of a large sample, evenly spread over its height; a smaller one is drawn value by value."""
_TAIL_FROM = 0.75
"""The judged quantile from which the heights are those of a tail."""
_NAMED = (0.0, 0.9, 0.99, 0.999, 0.9999, 0.5)
"""Round shares along a tail, in the order in which they get their room."""
_LINE = 24
"""Two labels closer than this overlap."""


@dataclass(frozen=True, slots=True)
class Heights:
    """Where shares of a sample of `n` stand: evenly spread, or as a tail.

    In a tail, 90 %, 99 % and 99.9 % are equally far apart (the scale of Tene's HdrHistogram), and all of the sample is
    where all but half a value would be. An even scale has no room between 95 % and the top.
    """

    n: int
    is_tail: bool

    def place(self, share: float) -> int:
        """The height, downwards from TOP."""
        if self.is_tail:
            share = math.log(max(1 - share, 0.5 / self.n)) / math.log(0.5 / self.n)
        return round(BOTTOM - share * (BOTTOM - TOP))

    def shares(self) -> list[float]:
        """So many shares, evenly spread over the height, up to all."""
        evenly = [k / _KNOTS for k in range(1, _KNOTS)]
        return [*(1 - (0.5 / self.n) ** even if self.is_tail else even for even in evenly), 1.0]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Where everything lies, in drawing units; paths are in the language of SVG, "" for one that is not drawn.

    `interval` is a bar with a cap at each end that is finite, `level_at` the height of the judged quantile.
    """

    title: str
    description: str
    curve: str
    cpu: str
    interval: str
    value_at: int
    level_at: int
    shares: tuple[Tick, ...]
    limit_at: int
    limit: str
    allowed_from: int
    allowed_to: int
    ticks: tuple[Tick, ...]
    kind: str = "distribution"


def distribution_of(sample: Sample, quantity: Quantity) -> Distribution:
    """The drawing of a sample that is not empty, under a quantity with a budget."""
    assert quantity.budget is not None
    axis = axis_through(_shown(sample, quantity), start=LEFT, end=RIGHT, unit=quantity.unit)
    heights = Heights(len(sample.values), is_tail=sample.level >= _TAIL_FROM)
    level_at, limit_at = heights.place(sample.level), axis.place(quantity.budget.limit)
    at_most = quantity.budget.kind == "at most"
    return Distribution(
        title=f"Share of {len(sample.values):,} {sample.of} that {sample.that}",
        description=_described(sample, quantity),
        curve=_path(_vertices(sample.values, sample.level, axis, heights)),
        cpu=_path(_vertices(sample.cpu, sample.level, axis, heights)) if _lies_on(axis, sample.cpu) else "",
        interval="" if quantity.interval is None else _bar(axis, quantity.interval, level_at),
        value_at=axis.place(quantity.value),
        level_at=level_at,
        shares=_share_labels(sample.level, heights),
        limit_at=limit_at,
        limit=told_budget(quantity.budget, quantity.unit),
        allowed_from=LEFT if at_most else limit_at,
        allowed_to=limit_at if at_most else RIGHT,
        ticks=axis.ticks(),
    )


def quantile_of(ascending: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed: one of them, not a mean of two."""
    return ascending[max(0, math.ceil(share * len(ascending) - 1e-9) - 1)]


def _vertices(values: Sequence[float], level: float, axis: Axis, heights: Heights) -> Iterator[tuple[int, int]]:
    """Corners of a staircase, or of a line through quantiles where the steps would be too fine to be seen."""
    if not values:
        return
    yield axis.place(values[0]), BOTTOM
    if len(values) <= _KNOTS:
        for i, value in enumerate(values):
            yield axis.place(value), heights.place(i / len(values))
            yield axis.place(value), heights.place((i + 1) / len(values))
        return
    for share in sorted({*heights.shares(), level}):
        yield axis.place(quantile_of(values, share)), heights.place(share)


def _share_labels(level: float, heights: Heights) -> tuple[Tick, ...]:
    """The judged quantile; along a tail also round shares, where they leave each other room."""
    labels: list[Tick] = []
    for share in (level, *(_NAMED if heights.is_tail else ())):
        at = heights.place(share)
        if all(abs(at - label.at) >= _LINE for label in labels):
            labels.append(Tick(at, f"{100 * share:g} %"))
    return tuple(labels)


def _path(vertices: Iterator[tuple[int, int]]) -> str:
    """A line through the vertices, in steps from one to the next: half as long as in coordinates."""
    points = list(dict.fromkeys(vertices))
    if not points:
        return ""
    steps = itertools.pairwise(points)
    return f"M{points[0][0]} {points[0][1]}l" + " ".join(f"{x - a} {y - b}" for (a, b), (x, y) in steps)


def _lies_on(axis: Axis, values: Sequence[float]) -> bool:
    """Whether most of `values` are in sight: the CPU time of a model that waits is not, and says nothing."""
    return bool(values) and axis.low <= quantile_of(values, 0.5) <= axis.high


def _shown(sample: Sample, quantity: Quantity) -> Iterator[float]:
    """What must lie on the axis; not the end of an interval that is open, which for a ratio or a time is 0."""
    assert quantity.budget is not None
    yield from (sample.values[0], sample.values[-1], quantity.value, quantity.budget.limit)
    if quantity.interval is not None:
        yield from (end for end in (quantity.interval.low, quantity.interval.high) if end > 0 or sample.values[0] <= 0)


def _bar(axis: Axis, interval: Interval, at: int) -> str:
    """The interval; an open end reaches the end of the axis, without a cap."""
    left, right = axis.place(interval.low), axis.place(interval.high)
    caps = (f"M{axis.place(end)} {at - 8}v16" for end in (interval.low, interval.high) if axis.low <= end <= axis.high)
    return f"M{left} {at}H{right}" + "".join(caps)


def _described(sample: Sample, quantity: Quantity) -> str:
    """The figures of the drawing as text."""
    assert quantity.budget is not None

    def at_most(share: float) -> str:
        return told(quantile_of(sample.values, share), quantity.unit)

    shares = "".join(f"{100 * share:g} % at most {at_most(share)}, " for share in sorted({0.5, sample.level}))
    text = f"From {told(sample.values[0], quantity.unit)}: {shares}all at most {at_most(1.0)}."
    if quantity.interval is not None:
        text += f" {quantity.name} lies in {told_interval(quantity.interval, quantity.unit)}."
    return f"{text} The budget is {told_budget(quantity.budget, quantity.unit)}."
