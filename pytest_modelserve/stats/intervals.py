"""Confidence bounds, the multiplicity of tests, and argument checks of the statistics."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import UsageError


@dataclass(frozen=True, slots=True)
class Bounds:
    """An estimate between two one-sided confidence bounds.

    `low` is at or below the true value with probability `low_level`, `high` at or above it with probability
    `high_level`. Together they cover it with probability at least `low_level + high_level - 1`. A bound that the data
    do not give is infinite. UsageError for NaN, for bounds in the wrong order and for levels outside (0.5, 1).
    """

    estimate: float
    low: float
    high: float
    low_level: float
    high_level: float

    def __post_init__(self) -> None:
        if not self.low <= self.estimate <= self.high:
            raise UsageError(f"bounds must enclose their estimate, got {self.low} <= {self.estimate} <= {self.high}")
        check_level("low_level", self.low_level)
        check_level("high_level", self.high_level)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return Holm's adjusted p-values (tests,), in the order given: reject those that are at most `alpha`.

    The probability that any true hypothesis is rejected is then at most `alpha`, however the tests depend on each
    other. Adjusted values are never above 1 and keep the order of the p-values; equal p-values stay equal. No
    p-values give an empty array. Source: Holm (1979), Scandinavian Journal of Statistics 6, 65–70.

    UsageError for NaN, a value outside [0, 1] or more than one axis.
    """
    values = check_vector("p_values", p_values)
    possible = (values >= 0) & (values <= 1)
    if not possible.all():
        raise UsageError(f"p_values must lie in [0, 1], got {values[~possible][0]}")
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(values.size, 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def interim_error_rate(error: float, analyses: int) -> float:
    """Return the error rate of each of several interim analyses of growing data, so that all together keep `error`.

    An equal Bonferroni split, conservative because the analyses depend on each other. After 50, 100, 200, 400 and 800
    pairs, one end of a sign interval misses the median in 3.2 % of runs for an `error` of 5 % and in 0.07 % for 0.1 %;
    without the split it would be 13.6 % and 0.32 % (enumerated in benchmarks/error_rates.py). Alpha spending (Lan and
    DeMets 1983, Biometrika 70, 659–663) is less conservative, but has to know the dependence.

    UsageError for an error rate outside (0, 0.5) or no analysis.
    """
    return check_error_rate("error", error) / check_count("analyses", analyses, minimum=1)


def check_count(name: str, value: int, *, minimum: int = 0) -> int:
    """Return `value` as an int; floats are rejected, as they usually are proportions given by mistake."""
    try:
        number = operator.index(value)
    except TypeError:
        raise UsageError(f"{name} must be an integer of at least {minimum}, got {value!r}") from None
    if number < minimum:
        raise UsageError(f"{name} must be an integer of at least {minimum}, got {number}")
    return number


def check_level(name: str, value: float) -> float:
    """Return a one-sided confidence level, above 0.5: the two ends of an interval must not change places."""
    if not 0.5 < value < 1:
        raise UsageError(f"{name} must be above 0.5 and below 1 (for example 0.95), got {value}")
    return float(value)


def check_error_rate(name: str, value: float) -> float:
    """Return the probability of a wrong verdict."""
    if not 0 < value < 0.5:
        raise UsageError(f"{name} must be above 0 and below 0.5 (for example 0.001), got {value}")
    return float(value)


def check_vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return `values` as float64 of shape (n,), n possibly 0; NaN is allowed."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be numbers of shape (n,), got {type(values).__name__}") from None
    if numbers.ndim != 1:
        raise UsageError(f"{name} must be numbers of shape (n,), got shape {numbers.shape}")
    return numbers
