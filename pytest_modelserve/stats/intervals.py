"""What every interval of this room returns: an estimate between two one-sided bounds."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import UsageError

# Which arguments the statistics of this room accept; each check returns the value or raises UsageError.


def check_count(name: str, value: int, *, minimum: int = 0) -> int:
    """`value` as a Python int; a float, however round, is a sign of a share given for a count."""
    try:
        number = operator.index(value)
    except TypeError:
        raise UsageError(f"{name} is a count, an integer of at least {minimum}, not {value!r}") from None
    if number < minimum:
        raise UsageError(f"{name} is a count, an integer of at least {minimum}, not {number}")
    return number


def check_level(name: str, value: float) -> float:
    """The one-sided level of a bound. At 0.5 or below, the two ends of an interval could change places."""
    if not 0.5 < value < 1:
        raise UsageError(f"{name} is a probability above 0.5 and below 1 (0.95, say), not {value}")
    return float(value)


def check_error_rate(name: str, value: float) -> float:
    """The probability of a wrong verdict."""
    if not 0 < value < 0.5:
        raise UsageError(f"{name} is a probability above 0 and below 0.5 (0.001, say), not {value}")
    return float(value)


def check_vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """`values` as floats on one axis, possibly none; NaN is the caller's to judge."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UsageError(f"{name} are numbers on one axis, not {type(values).__name__} of something else") from None
    if numbers.ndim != 1:
        raise UsageError(f"{name} are numbers on one axis, not an array of shape {numbers.shape}")
    return numbers


@dataclass(frozen=True, slots=True)
class Bounds:
    """An estimate and a bound on either side, each with a one-sided level of its own.

    `low` lies at or below the true value with probability `low_level`, `high` at or above it with probability
    `high_level`; together they cover it with probability at least `low_level + high_level - 1`. An end that the data
    cannot bound is infinite. UsageError for NaN, for ends in the wrong order and for levels outside (0.5, 1).
    """

    estimate: float
    low: float
    high: float
    low_level: float
    high_level: float

    def __post_init__(self) -> None:
        if not self.low <= self.estimate <= self.high:
            raise UsageError(f"bounds hold their estimate, unlike {self.low} <= {self.estimate} <= {self.high}")
        check_level("low_level", self.low_level)
        check_level("high_level", self.high_level)


# Several questions asked at once: what one error rate for all of them costs each.


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's adjusted p-values (tests,), in the order given: those at most `alpha` may be rejected together.

    The probability that any true hypothesis is rejected is then at most `alpha`, however the tests depend on each
    other. Adjusted values are never above 1 and keep the order of the p-values; equal p-values stay equal. No
    p-values give an empty array. Source: Holm (1979), Scandinavian Journal of Statistics 6, 65–70.

    UsageError for NaN, a value outside [0, 1] or more than one axis.
    """
    values = check_vector("p_values", p_values)
    possible = (values >= 0) & (values <= 1)
    if not possible.all():
        raise UsageError(f"a p-value lies from 0 to 1, unlike {values[~possible][0]}")
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(values.size, 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def interim_error_rate(error: float, looks: int) -> float:
    """The error rate that each of `looks` looks at growing data may take, so that all of them together keep `error`.

    An equal Bonferroni split, `error / looks`: conservative, because looks at growing data depend on each other. With
    looks after 50, 100, 200, 400 and 800 pairs, one end of a sign interval misses the median in 3.2 % of runs for an
    `error` of 5 % and in 0.07 % for 0.1 %; unsplit it would be 13.6 % and 0.32 % (enumerated, see
    benchmarks/error_rates.py). Alpha spending (Lan and DeMets 1983, Biometrika 70, 659–663) wastes less and needs to
    know how the looks depend on each other; this needs nothing.

    UsageError for an error rate outside (0, 0.5) or no looks.
    """
    return check_error_rate("error", error) / check_count("looks", looks, minimum=1)
