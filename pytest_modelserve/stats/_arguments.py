"""Which arguments the statistics of this room accept; each check returns the value or raises UsageError."""

from __future__ import annotations

import operator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import UsageError


def count(name: str, value: int, *, minimum: int = 0) -> int:
    """`value` as a Python int; a float, however round, is a sign of a share given for a count."""
    try:
        number = operator.index(value)
    except TypeError:
        raise UsageError(f"{name} is a count, an integer of at least {minimum}, not {value!r}") from None
    if number < minimum:
        raise UsageError(f"{name} is a count, an integer of at least {minimum}, not {number}")
    return number


def level(name: str, value: float) -> float:
    """The one-sided level of a bound. At 0.5 or below, the two ends of an interval could change places."""
    if not 0.5 < value < 1:
        raise UsageError(f"{name} is a probability above 0.5 and below 1 (0.95, say), not {value}")
    return float(value)


def error_rate(name: str, value: float) -> float:
    """The probability of a wrong verdict."""
    if not 0 < value < 0.5:
        raise UsageError(f"{name} is a probability above 0 and below 0.5 (0.001, say), not {value}")
    return float(value)


def vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """`values` as floats on one axis, possibly none; NaN is the caller's to judge."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UsageError(f"{name} are numbers on one axis, not {type(values).__name__} of something else") from None
    if numbers.ndim != 1:
        raise UsageError(f"{name} are numbers on one axis, not an array of shape {numbers.shape}")
    return numbers
