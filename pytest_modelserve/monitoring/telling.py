"""Words for what columns hold, and their numbers: a date where the column holds dates."""

from __future__ import annotations

import math

import numpy as np

from pytest_modelserve.monitoring.times import written

KIND_WORDS = {
    "float": "numbers",
    "integer": "whole numbers",
    "boolean": "booleans",
    "datetime": "dates",
    "category": "categories",
}
_DAY_S = 86_400
_UNITS_S = ((_DAY_S, "days"), (3600, "hours"), (60, "minutes"))


def told_value(kind: str, number: float) -> str:
    """`number` of a column of this kind: "2026-11-22", "2026-11-22 03:04:05" in UTC, or six digits of any other."""
    if kind != "datetime" or not math.isfinite(number):
        return f"{number:.6g}"
    if number % _DAY_S == 0:
        return str(np.datetime64(int(number) // _DAY_S, "D"))
    return written(number)


def told_step(kind: str, difference: float) -> str:
    """A difference of two such numbers: "+3.2 days", "-40 seconds", or three digits of any other."""
    if kind != "datetime":
        return f"{difference:+.3g}"
    size, unit = next(((size, unit) for size, unit in _UNITS_S if abs(difference) >= 2 * size), (1, "seconds"))
    steps = difference / size
    return f"{steps:+.3g} {unit}" if abs(steps) < 1000 else f"{steps:+,.0f} {unit}"
