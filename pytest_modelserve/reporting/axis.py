"""Where values lie on a line of a drawing, and the round numbers written along it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pytest_modelserve.evidence import Unit

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
        return tuple(Tick(self.place(v), _written(v, self.unit, v if self.is_log else self._largest)) for v in values)

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


def _written(value: float, unit: Unit, scaled_by: float) -> str:
    """`value` in the scale that suits `scaled_by`: "200 µs", "1.5 MiB", "× 1.05"."""
    size, name = _scale(unit, scaled_by)
    number = f"{value / size:,.6g}"
    return f"× {number}" if unit == "ratio" else f"{number} {name}".rstrip() if value else "0"
