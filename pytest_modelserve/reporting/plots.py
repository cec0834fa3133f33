"""Where values lie on a line of a drawing, and the round numbers written along it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_modelserve.evidence.failure_text import format_budget, format_interval, format_value

if TYPE_CHECKING:
    from pytest_modelserve.evidence import Interval, Quantity, Unit
    from pytest_modelserve.reporting.html_report import Readings, Sample

_LOG_FROM = 8.0
"""The largest value over the smallest from which the axis is logarithmic: a tail of that length leaves the bulk of the
values an eighth of a linear axis."""
_MARGIN = 0.04
_MOST_TICKS = 8
_SCALES: dict[Unit, tuple[tuple[float, str], ...]] = {
    "ms": ((1e-6, "ns"), (1e-3, "µs"), (1.0, "ms"), (1e3, "s")),
    "bytes": ((1.0, "B"), (1 << 10, "KiB"), (1 << 20, "MiB"), (1 << 30, "GiB")),
}
_NO_SCALE = ((1.0, ""),)


@dataclass(frozen=True, slots=True)
class Tick:
    """A round number: where it stands, and how it is written."""

    at: int
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """A line from `start` to `end` (in drawing units; downwards or upwards) that holds values from `low` to `high`."""

    low: float
    high: float
    start: int
    end: int
    unit: Unit
    is_log: bool = False

    def place(self, value: float) -> int:
        """Where `value` lies, to the nearest drawing unit; what is off the line lies at its end."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        share = (self._scaled(min(self.high, max(self.low, value))) - low) / (high - low)
        return round(self.start + share * (self.end - self.start))

    def ticks(self) -> tuple[Tick, ...]:
        """Up to eight round numbers with their unit, evenly spread."""
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
    """An axis that holds all finite `values`, of which there is at least one, with a little room at both ends."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    if may_be_log and low > 0 and high / low > _LOG_FROM:
        room = (high / low) ** _MARGIN
        return Axis(low / room, high * room, start, end, unit, is_log=True)
    room = _MARGIN * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(max(low - room, 0.0) if low >= 0 else low - room, high + room, start, end, unit)


def _scale(unit: Unit, value: float) -> tuple[float, str]:
    scales = _SCALES.get(unit, _NO_SCALE)
    return next((scale for scale in reversed(scales) if abs(value) >= scale[0]), scales[0])


def _format_tick(value: float, unit: Unit, scaled_by: float) -> str:
    """`value` in the scale that suits `scaled_by`: "200 µs", "1.5 MiB", "× 1.05"."""
    size, name = _scale(unit, scaled_by)
    number = f"{value / size:,.6g}"
    return f"× {number}" if unit == "ratio" else f"{number} {name}".rstrip() if value else "0"


# A sample drawn as the share of its values that are at most so large, beside the interval and the budget.


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


def draw_distribution(sample: Sample, quantity: Quantity) -> Distribution:
    """The drawing of a sample that is not empty, under a quantity with a budget."""
    assert quantity.budget is not None
    axis = axis_through(_axis_values(sample, quantity), start=LEFT, end=RIGHT, unit=quantity.unit)
    heights = Heights(len(sample.values), is_tail=sample.level >= _TAIL_FROM)
    level_at, limit_at = heights.place(sample.level), axis.place(quantity.budget.limit)
    at_most = quantity.budget.kind == "at_most"
    return Distribution(
        title=f"Share of {len(sample.values):,} {sample.of} that {sample.that}",
        description=_description(sample, quantity),
        curve=_path(_vertices(sample.values, sample.level, axis, heights)),
        cpu=_path(_vertices(sample.cpu, sample.level, axis, heights)) if _is_in_view(axis, sample.cpu) else "",
        interval="" if quantity.interval is None else _bar(axis, quantity.interval, level_at),
        value_at=axis.place(quantity.value),
        level_at=level_at,
        shares=_share_labels(sample.level, heights),
        limit_at=limit_at,
        limit=format_budget(quantity.budget, quantity.unit),
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


def _is_in_view(axis: Axis, values: Sequence[float]) -> bool:
    """Whether most of `values` are in sight: the CPU time of a model that waits is not, and says nothing."""
    return bool(values) and axis.low <= quantile_of(values, 0.5) <= axis.high


def _axis_values(sample: Sample, quantity: Quantity) -> Iterator[float]:
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


def _description(sample: Sample, quantity: Quantity) -> str:
    """The figures of the drawing as text."""
    assert quantity.budget is not None

    def at_most(share: float) -> str:
        return format_value(quantile_of(sample.values, share), quantity.unit)

    shares = "".join(f"{100 * share:g} % at most {at_most(share)}, " for share in sorted({0.5, sample.level}))
    text = f"From {format_value(sample.values[0], quantity.unit)}: {shares}all at most {at_most(1.0)}."
    if quantity.interval is not None:
        text += f" {quantity.name} lies in {format_interval(quantity.interval, quantity.unit)}."
    return f"{text} The budget is {format_budget(quantity.budget, quantity.unit)}."


# Memory over calls, beside the growth that the budget allows.


GROWTH_LEFT = 132
"""Room for "+1,234 KiB"."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Where everything lies, in drawing units: points of the line, and of three polygons from the first reading.

    `fan` is the interval of the growth, "" where it has an open end; `allowed` is what the budget allows, down to the
    bottom, and `limit_at` where it ends at the last call.
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
    """The drawing of at least two readings, under a quantity in bytes a call with a budget."""
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
