"""How far two distributions lie apart: the Kolmogorov–Smirnov distance, its chance, its bound and the rows it needs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import kolmogi, kolmogorov

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import _arguments

BOUND = 1.36
"""The 95 % point of the Kolmogorov distribution, 1.3581, rounded up."""


def effective_rows(reference: float, current: float) -> float:
    """N·m/(N + m), the rows that a comparison of N with m rows is worth; 0 where either has none.

    Neither needs to be whole: rows that come in blocks of `b` count as N/b. UsageError for NaN or a negative number.
    """
    for name, rows in (("reference", reference), ("current", current)):
        if not rows >= 0:
            raise UsageError(f"{name} is a number of rows, not {rows}")
    return reference * current / (reference + current) if reference and current else 0.0


def distribution_distance(reference_counts: ArrayLike, current_counts: ArrayLike) -> float:
    """The largest difference, 0 to 1, of the two distribution functions at the edges between the bins.

    Both are counts (bins,) over the same bins in their order. Never above the Kolmogorov–Smirnov distance of the rows
    themselves, and below it by at most the share that the fuller sample has in the bin where that one is reached.

    UsageError for counts of different lengths, negative counts and a sample without rows.
    """
    reference = _arguments.vector("reference_counts", reference_counts)
    current = _arguments.vector("current_counts", current_counts)
    if reference.shape != current.shape:
        raise UsageError(f"both samples are counted in the same bins, not in {reference.size} and {current.size}")
    for name, counts in (("reference_counts", reference), ("current_counts", current)):
        if not (counts >= 0).all() or not counts.sum() > 0:
            raise UsageError(f"{name} are counts of at least one row")
    apart = np.cumsum(reference) / reference.sum() - np.cumsum(current) / current.sum()
    return float(np.abs(apart).max())


def kolmogorov_p_value(distance: float, effective: float) -> float:
    """The chance of at least this `distance` between two samples of one distribution, worth `effective` rows.

    The tail of Kolmogorov's limit at √effective·distance. Against the exact two-sample distribution, values below 0.2
    are mostly too large, the more so the fewer rows, and never too small by more than 3 % of themselves (5 to 500 rows
    a side); ties and binning make the distance smaller and the value safer still. 1 where there are no rows. Source:
    Kolmogorov (1933), Smirnov (1939); Hodges (1958), Arkiv för Matematik 3, 469–486.

    UsageError for a distance outside [0, 1] or rows that are negative or NaN.
    """
    _check(distance, effective)
    return float(kolmogorov(math.sqrt(effective) * distance))


def distance_bound(distance: float, effective: float) -> float:
    """A bound, at most 1, that the true distance exceeds in fewer than 5 % of samples: distance + 1.36/√effective.

    By the triangle inequality the bound fails only where the samples lie further from their distributions than 1.36
    standard units. Held against one true distance it is wider than 95 % asks for (0.82 would do: the difference at the
    worst point alone is binomial); it is wrong in fewer than 1 % of samples. 1 where there are no rows.

    UsageError as for `kolmogorov_p_value`.
    """
    _check(distance, effective)
    return min(distance + BOUND / math.sqrt(effective), 1.0) if effective else 1.0


def passable_distance(effective: float, *, tests: int = 1, power: float = 0.95) -> float:
    """The smallest budget, at most 1, that unchanged data of `effective` rows keep in all `tests` with `power`.

    What `distance_bound` adds, and the distance that chance alone stays below: (1.36 + K⁻¹((1 − power)/tests))/
    √effective, where K⁻¹ is the upper quantile of Kolmogorov's limit and the tests share the risk equally.

    UsageError for no test, a power outside (0.5, 1) or rows that are negative or NaN.
    """
    _check(0.0, effective)
    return min(passable_units(tests, power) / math.sqrt(effective), 1.0) if effective else 1.0


def rows_for_distance(max_distance: float, *, reference: float, tests: int = 1, power: float = 0.95) -> int | None:
    """The current rows with which unchanged data keep `max_distance` in all `tests` with `power`; None where none do.

    None means that `reference` rows are too few for this budget: they have to number more than
    `effective_rows_for_distance`. With 10,000 of them, 20 tests and a budget of 0.10: 1,132.

    UsageError for a budget outside (0, 1), no test, a power outside (0.5, 1) or rows that are negative or NaN.
    """
    effective_rows(reference, 1)
    needed = effective_rows_for_distance(max_distance, tests=tests, power=power)
    return math.ceil(needed * reference / (reference - needed)) if reference > needed else None


def effective_rows_for_distance(max_distance: float, *, tests: int = 1, power: float = 0.95) -> float:
    """The effective rows at which `passable_distance` is `max_distance`. UsageError as for `rows_for_distance`."""
    if not 0 < max_distance < 1:
        raise UsageError(f"max_distance lies between 0 and 1 (0.1, say), not {max_distance}")
    return (passable_units(tests, power) / max_distance) ** 2


def passable_units(tests: int, power: float) -> float:
    """`passable_distance` times the root of the effective rows. UsageError as for that."""
    missed = 1 - _arguments.level("power", power)
    return BOUND + float(kolmogi(missed / _arguments.count("tests", tests, minimum=1)))


def _check(distance: float, effective: float) -> None:
    if not 0 <= distance <= 1:
        raise UsageError(f"a distance lies from 0 to 1, not {distance}")
    if not effective >= 0:
        raise UsageError(f"effective is a number of rows, not {effective}")
