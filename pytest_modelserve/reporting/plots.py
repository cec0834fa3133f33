"""Axes, cumulative distributions and memory growth as coordinates for SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_modelserve.evidence.failure_text import format_budget, format_interval, format_value

if TYPE_CHECKING:
    from pytest_modelserve.evidence import Interval, Quantity, Unit
    from pytest_modelserve.reporting.samples import Readings, Sample

_LOG_FROM = 8.0
"""The ratio of largest to smallest value from which the axis is logarithmic: on a linear one most values would share an
eighth of it."""
_MARGIN = 0.04
_MOST_TICKS = 8
_SCALES: dict[Unit, tuple[tuple[float, str], ...]] = {
    "ms": ((1e-6, "ns"), (1e-3, "µs"), (1.0, "ms"), (1e3, "s")),
    "bytes": ((1.0, "B"), (1 << 10, "KiB"), (1 << 20, "MiB"), (1 << 30, "GiB")),
    "proportion": ((0.01, "%"),),
    "proportion_difference": ((0.01, "pt"),),
}
_NO_SCALE = ((1.0, ""),)


@dataclass(frozen=True, slots=True)
class Tick:
    """An axis label: its position and its text."""

    at: int
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis from `start` to `end` in drawing units, for values from `low` to `high`."""

    low: float
    high: float
    start: int
    end: int
    unit: Unit
    is_log: bool = False

    def place(self, value: float) -> int:
        """Return the position of `value`, rounded; values outside the axis lie at its end."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        share = (self._scaled(min(self.high, max(self.low, value))) - low) / (high - low)
        return round(self.start + share * (self.end - self.start))

    def ticks(self) -> tuple[Tick, ...]:
        """Return up to eight round numbers with their unit."""
        values = self._decades() if self.is_log else self._steps()
        return tuple(
            Tick(self.place(v), _format_tick(v, self.unit, v if self.is_log else self._largest)) for v in values
        )

    @property
    def _largest(self) -> float:
        return max(abs(self.low), abs(self.high))

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.is_log else value

    def _decades(self) -> Iterator[float]:
        decades = math.log10(self.high / self.low)
        mantissas = (1, 2, 5) if decades <= 2 else (1,)
        every = math.ceil(decades / (_MOST_TICKS - 1))
        for power in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1):
            if power % every == 0:
                yield from (v for m in mantissas if self.low <= (v := float(f"{m}e{power}")) <= self.high)

    def _steps(self) -> Iterator[float]:
        size, _ = _scale(self.unit, self._largest)
        rough = (self.high - self.low) / size / (_MOST_TICKS - 1)
        power = 10.0 ** math.floor(math.log10(rough))
        step = size * next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        yield from (step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1))


def axis_through(values: Iterable[float], *, start: int, end: int, unit: Unit, may_be_log: bool = True) -> Axis:
    """Return an axis for the finite `values` (at least one), with a margin at both ends."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    if may_be_log and low > 0 and high / low > _LOG_FROM:
        margin = (high / low) ** _MARGIN
        return Axis(low / margin, high * margin, start, end, unit, is_log=True)
    margin = _MARGIN * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(max(low - margin, 0.0) if low >= 0 else low - margin, high + margin, start, end, unit)


def _scale(unit: Unit, value: float) -> tuple[float, str]:
    scales = _SCALES.get(unit, _NO_SCALE)
    return next((scale for scale in reversed(scales) if abs(value) >= scale[0]), scales[0])


def _format_tick(value: float, unit: Unit, scaled_by: float) -> str:
    """Return `value` in the scale of `scaled_by`: "200 µs", "1.5 MiB", "× 1.05"."""
    size, name = _scale(unit, scaled_by)
    number = f"{value / size:,.6g}"
    return f"× {number}" if unit == "ratio" else f"{number} {name}".rstrip() if value else "0"


LEFT, RIGHT, TOP, BOTTOM = 96, 948, 8, 164
"""The corners of the plot in a drawing of 960 × 204 units."""
_KNOTS = 24
"""The number of points of the curve of a large sample; a smaller one is drawn value by value."""
_TAIL_FROM = 0.75
"""The quantile from which the vertical axis is a tail axis."""
_NAMED = (0.0, 0.9, 0.99, 0.999, 0.9999, 0.5)
"""Labels on a tail axis, in the order of their priority."""
_LINE = 24
"""Labels that are closer than this overlap."""


@dataclass(frozen=True, slots=True)
class Heights:
    """The vertical axis for proportions of a sample of `n`: linear, or a tail axis.

    On a tail axis 90 %, 99 % and 99.9 % are equally spaced, as in HdrHistogram (Tene); 100 % lies at 1 - 0.5 / n.
    """

    n: int
    is_tail: bool

    def place(self, share: float) -> int:
        """Return the vertical position of `share`."""
        if self.is_tail:
            share = math.log(max(1 - share, 0.5 / self.n)) / math.log(0.5 / self.n)
        return round(BOTTOM - share * (BOTTOM - TOP))

    def shares(self) -> list[float]:
        """Return proportions that are evenly spaced on the axis, up to 1."""
        evenly = [k / _KNOTS for k in range(1, _KNOTS)]
        return [*(1 - (0.5 / self.n) ** even if self.is_tail else even for even in evenly), 1.0]


@dataclass(frozen=True, slots=True)
class Distribution:
    """A cumulative distribution with interval and budget, in drawing units; an SVG path that is not drawn is "".

    `interval` is a bar with a cap at each finite end, `level_at` the vertical position of the quantile. Without a
    budget `limit` is "".
    """

    title: str
    description: str
    curve: str
    second: str
    second_clock: str
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


def draw_distribution(sample: Sample, quantity: Quantity) -> Distribution:
    """Return the drawing of a non-empty sample for a quantity."""
    budget = quantity.budget
    axis = axis_through(_axis_values(sample, quantity), start=LEFT, end=RIGHT, unit=quantity.unit)
    heights = Heights(len(sample.values), is_tail=sample.level >= _TAIL_FROM)
    level_at, limit_at = heights.place(sample.level), LEFT if budget is None else axis.place(budget.limit)
    at_most = budget is None or budget.kind == "at_most"
    second = sample.second if _is_in_view(axis, sample.second) else ()
    return Distribution(
        title=f"Share of {len(sample.values):,} {sample.of} that {sample.that}",
        description=_description(sample, quantity),
        curve=path_through(_vertices(sample.values, sample.level, axis, heights)),
        second=path_through(_vertices(second, sample.level, axis, heights)),
        second_clock=sample.second_clock,
        interval="" if quantity.interval is None else _bar(axis, quantity.interval, level_at),
        value_at=axis.place(quantity.value),
        level_at=level_at,
        shares=_share_labels(sample.level, heights),
        limit_at=limit_at,
        limit="" if budget is None else format_budget(budget, quantity.unit),
        allowed_from=LEFT if at_most else limit_at,
        allowed_to=limit_at if at_most else RIGHT,
        ticks=axis.ticks(),
    )


def quantile_of(ascending: Sequence[float], share: float) -> float:
    """Return the smallest of the sorted values that at least `share` of them do not exceed."""
    return ascending[max(0, math.ceil(share * len(ascending) - 1e-9) - 1)]


def _vertices(values: Sequence[float], level: float, axis: Axis, heights: Heights) -> Iterator[tuple[int, int]]:
    """Return the corners of the empirical CDF, or points on it for a large sample."""
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
    """Return the label of the quantile, and on a tail axis round proportions that do not overlap."""
    labels: list[Tick] = []
    for share in (level, *(_NAMED if heights.is_tail else ())):
        at = heights.place(share)
        if all(abs(at - label.at) >= _LINE for label in labels):
            labels.append(Tick(at, f"{100 * share:g} %"))
    return tuple(labels)


def path_through(vertices: Iterable[tuple[int, int]]) -> str:
    """Return an SVG path in relative steps, which are half as long as absolute coordinates."""
    points = list(dict.fromkeys(vertices))
    if not points:
        return ""
    steps = itertools.pairwise(points)
    return f"M{points[0][0]} {points[0][1]}l" + " ".join(f"{x - a} {y - b}" for (a, b), (x, y) in steps)


def _is_in_view(axis: Axis, values: Sequence[float]) -> bool:
    """Return whether the median of `values` lies on the axis."""
    return bool(values) and axis.low <= quantile_of(values, 0.5) <= axis.high


def _axis_values(sample: Sample, quantity: Quantity) -> Iterator[float]:
    """Return the values that the axis must contain; an open interval end (0 for a ratio or a time) is not one."""
    yield from (sample.values[0], sample.values[-1], quantity.value)
    if quantity.budget is not None:
        yield quantity.budget.limit
    if quantity.interval is not None:
        yield from (end for end in (quantity.interval.low, quantity.interval.high) if end > 0 or sample.values[0] <= 0)


def _bar(axis: Axis, interval: Interval, at: int) -> str:
    """Return the interval bar; an open end reaches the end of the axis, without a cap."""
    left, right = axis.place(interval.low), axis.place(interval.high)
    caps = (f"M{axis.place(end)} {at - 8}v16" for end in (interval.low, interval.high) if axis.low <= end <= axis.high)
    return f"M{left} {at}H{right}" + "".join(caps)


def _description(sample: Sample, quantity: Quantity) -> str:
    """Return the values in the drawing as text."""

    def at_most(share: float) -> str:
        return format_value(quantile_of(sample.values, share), quantity.unit)

    shares = "".join(f"{100 * share:g} % at most {at_most(share)}, " for share in sorted({0.5, sample.level}))
    text = f"From {format_value(sample.values[0], quantity.unit)}: {shares}all at most {at_most(1.0)}."
    if quantity.interval is not None:
        text += f" {quantity.name} lies in {format_interval(quantity.interval, quantity.unit)}."
    return text if quantity.budget is None else f"{text} The budget is {format_budget(quantity.budget, quantity.unit)}."


GROWTH_LEFT = 132
"""The left edge of a growth plot: labels like "+1,234 KiB" are long."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Memory over calls with the interval and the budget of its growth, in drawing units.

    `fan` is the polygon of the interval, "" if a bound is infinite; `allowed` is the polygon inside the budget, and
    `limit_at` its vertical position at the last call.
    """

    title: str
    description: str
    line: str
    fan: str
    allowed: str
    origin_at: int
    limit_at: int
    calls: tuple[Tick, ...]
    ticks: tuple[Tick, ...]
    kind: str = "growth"


def draw_growth(readings: Readings, quantity: Quantity) -> Growth:
    """Return the drawing of at least two readings for a quantity in bytes per call with a budget."""
    assert quantity.budget is not None
    calls = readings.calls_each * (len(readings.resident) - 1)
    grown = [bytes_ - readings.resident[0] for bytes_ in readings.resident]
    limit = quantity.budget.limit * calls
    interval = quantity.interval
    fan = [] if interval is None else [interval.low * calls, interval.high * calls]
    across = axis_through((0, calls), start=GROWTH_LEFT, end=RIGHT, unit="count", may_be_log=False)
    up = axis_through((*grown, limit, *fan), start=BOTTOM, end=TOP, unit="bytes", may_be_log=False)
    first, last = across.place(0), across.place(calls)
    origin, limit_at = up.place(0), up.place(limit)
    is_bounded = bool(fan) and all(map(math.isfinite, fan))
    return Growth(
        title=f"Growth of resident memory over {calls:,} calls",
        description=f"After {calls:,} calls it has grown by {format_value(grown[-1], 'bytes')}, at most by "
        f"{format_value(max(grown), 'bytes')}; the budget is {format_budget(quantity.budget, 'bytes')} a call, "
        f"{format_value(limit, 'bytes')} in all.",
        line=" ".join(f"{across.place(i * readings.calls_each)},{up.place(by)}" for i, by in enumerate(grown)),
        fan=" ".join([f"{first},{origin}", *(f"{last},{up.place(end)}" for end in fan)]) if is_bounded else "",
        allowed=f"{first},{origin} {last},{limit_at} {last},{BOTTOM} {first},{BOTTOM}",
        origin_at=origin,
        limit_at=limit_at,
        calls=across.ticks(),
        ticks=up.ticks(),
    )
