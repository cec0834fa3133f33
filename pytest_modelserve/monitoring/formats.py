"""Text of column values, differences, proportions, times and durations for messages."""

from __future__ import annotations

import math

import numpy as np

from pytest_modelserve.monitoring.columns import Kind

_DAY_S = 86_400
_UNITS_S = ((_DAY_S, "days"), (3600, "hours"), (60, "minutes"))


def format_value(kind: str, number: float) -> str:
    """Format a value of a column: a date or UTC time if the kind is "datetime", otherwise six digits."""
    if kind != "datetime" or not math.isfinite(number):
        return f"{number:.6g}"
    if number % _DAY_S == 0:
        return str(np.datetime64(int(number) // _DAY_S, "D"))
    return format_time(number)


def format_difference(kind: str, difference: float) -> str:
    """Format a difference of two values: "+3.2 days" if the kind is "datetime", otherwise three digits."""
    if kind != "datetime":
        return f"{difference:+.3g}"
    size, unit = next(((size, unit) for size, unit in _UNITS_S if abs(difference) >= 2 * size), (1, "seconds"))
    steps = difference / size
    return f"{steps:+.3g} {unit}" if abs(steps) < 1000 else f"{steps:+,.0f} {unit}"


def format_rate_change(before: float, after: float) -> str:
    """Format two proportions: "51.3 % → 75.5 % (+24.1 points)"."""
    return f"{100 * before:.1f} % → {100 * after:.1f} % ({100 * (after - before):+.1f} points)"


def format_time(seconds: float) -> str:
    """Format seconds since 1970 as ISO 8601 in UTC, in whole seconds: "2026-03-01 23:59:58"."""
    return str(np.datetime64(math.floor(seconds), "s")).replace("T", " ")


def format_age(seconds: float) -> str:
    """Format a duration in the largest unit of which it has at least two: "36.0 hours"."""
    size, unit = next(((size, unit) for size, unit in _UNITS_S if seconds >= 2 * size), (1, "s"))
    return f"{seconds / size:.1f} {unit}"


_ALL_NEW = 0.95


def suggest_exclusion(column: str, kind: Kind, moved: float) -> str:
    """Return what to do about an identifier or a counter: whole numbers of which a proportion `moved` is new; or ""."""
    counts = kind == "integer" and moved >= _ALL_NEW
    return f"; if it is an identifier or a counter, leave it out with exclude=({column!r},)" * counts
