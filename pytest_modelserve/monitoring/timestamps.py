"""Times as seconds since the epoch, their order and their age."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError

_UNITS = (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0))


def epoch_seconds(now: datetime | float) -> float:
    """The seconds since 1970 of a time; UsageError for one without a time zone and for what is no time."""
    if isinstance(now, datetime):
        if now.tzinfo is None:
            raise UsageError(
                f"now has no time zone: {now} is another moment in each of them; datetime.now(UTC) has one"
            )
        return now.timestamp()
    if isinstance(now, bool) or not isinstance(now, (int, float, np.integer, np.floating)) or not math.isfinite(now):
        raise UsageError(f"now is a datetime with a time zone, or seconds since 1970, not {now!r}")
    return float(now)


def backward_rows(values: NDArray[Any]) -> int:
    """How many times (n,), in any unit, are earlier than the one before; NaN is left out."""
    known = values[~np.isnan(values)] if np.isnan(values).any() else values
    return int(np.count_nonzero(known[1:] < known[:-1]))


def written(seconds: float) -> str:
    """A time as ISO 8601 in UTC, whole seconds: "2026-03-01 23:59:58"."""
    return str(np.datetime64(math.floor(seconds), "s")).replace("T", " ")


def age(seconds: float) -> str:
    """A duration in the largest unit that it holds twice: "36.0 hours"."""
    for unit, length in _UNITS:
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
