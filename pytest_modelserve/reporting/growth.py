"""Memory over calls, beside the growth that the budget allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_modelserve.evidence import Quantity
from pytest_modelserve.reporting.axis import Tick, axis_through
from pytest_modelserve.reporting.distribution import BOTTOM, RIGHT, TOP
from pytest_modelserve.reporting.figures import told, told_budget
from pytest_modelserve.reporting.samples import Readings

LEFT = 132
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


def growth_of(readings: Readings, quantity: Quantity) -> Growth:
    """The drawing of at least two readings, under a quantity in bytes a call with a budget."""
    assert quantity.budget is not None
    calls = readings.calls_each * (len(readings.resident) - 1)
    grown = [bytes_ - readings.resident[0] for bytes_ in readings.resident]
    limit = quantity.budget.limit * calls
    interval = quantity.interval
    fan = [] if interval is None else [interval.low * calls, interval.high * calls]
    across = axis_through((0, calls), start=LEFT, end=RIGHT, unit="count", may_be_log=False)
    up = axis_through((*grown, limit, *fan), start=BOTTOM, end=TOP, unit="bytes", may_be_log=False)
    first, last = across.place(0), across.place(calls)
    origin, limit_at = up.place(0), up.place(limit)
    is_bounded = bool(fan) and all(map(math.isfinite, fan))
    return Growth(
        title=f"Growth of resident memory over {calls:,} calls",
        description=f"After {calls:,} calls it has grown by {told(grown[-1], 'bytes')}, at most by "
        f"{told(max(grown), 'bytes')}; the budget is {told_budget(quantity.budget, 'bytes')} a call, "
        f"{told(limit, 'bytes')} in all.",
        line=" ".join(f"{across.place(i * readings.calls_each)},{up.place(by)}" for i, by in enumerate(grown)),
        fan=" ".join([f"{first},{origin}", *(f"{last},{up.place(end)}" for end in fan)]) if is_bounded else "",
        allowed=f"{first},{origin} {last},{limit_at} {last},{BOTTOM} {first},{BOTTOM}",
        origin_at=origin,
        limit_at=limit_at,
        calls=across.ticks(),
        ticks=up.ticks(),
    )
