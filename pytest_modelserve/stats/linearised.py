"""Estimates that are smooth functions of means, as how far each row pulls them: the delta method, row by row."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Linearised:
    """An estimate `value`, and its `influence` (n,): how far each row pulls it, adding up to 0.

    The mean of value + influence is the estimate, and scatters as the estimate does where n is large; so an interval
    for that mean is one for the estimate, a difference of two estimates on the same rows has the difference of the
    influences, and rows that belong together add theirs up.

    `largest` is the most by which the influences of two rows can differ, whatever the rows are: what a kind of row that
    has not been seen could do. 0 where nothing bounds it.

    Source: the influence function, Hampel (1974), Journal of the American Statistical Association 69, 383–393; as a
    variance estimate the infinitesimal jackknife, Efron (1982), The Jackknife, chapter 6.
    """

    value: float
    influence: Floats
    largest: float = 0.0

    @property
    def values(self) -> Floats:
        """One value a row, (n,), whose mean is the estimate."""
        return self.value + self.influence

    def minus(self, other: Linearised) -> Linearised:
        """This estimate less another one on the same rows."""
        return Linearised(self.value - other.value, self.influence - other.influence, max(self.largest, other.largest))

    def negative(self) -> Linearised:
        """The estimate with its sign turned."""
        return Linearised(-self.value, -self.influence, self.largest)


def mean_of(values: Floats, weights: Floats | None = None, *, largest: float = 0.0) -> Linearised:
    """The mean of `values` (n,), weighted where `weights` (n,) are given; `largest` is the range of a value.

    UsageError for weights that add up to 0.
    """
    return ratio_of(values, np.ones(len(values)), weights, spread=largest)


def ratio_of(
    numerators: Floats, denominators: Floats, weights: Floats | None = None, *, spread: float = 0.0
) -> Linearised:
    """Σ numerators / Σ denominators, both (n,), each row counted `weights` (n,) times.

    `spread` is the most by which numerator − ratio·denominator can differ between two rows. Source of the variance:
    Cochran, Sampling Techniques, 3rd ed. 1977, section 2.11. UsageError for denominators that add up to 0.
    """
    counted = np.ones(len(numerators)) if weights is None else weights
    whole = float(counted @ denominators)
    if whole == 0:
        raise UsageError("a ratio whose denominators add up to 0 has no value")
    value = float(counted @ numerators) / whole
    scale = len(numerators) / whole
    largest = spread * scale * unequal(counted)
    return Linearised(value, counted * (numerators - value * denominators) * scale, largest)


def unequal(weights: Floats) -> float:
    """By how much more than one of average weight, or the fewer rows that count, a row can pull: Σ w²/Σ w.

    The average weight over the share of rows that are left of n, (Σ w)²/Σ w² by Kish (1965), Survey Sampling, section
    11.7; 1 for weights of 1.
    """
    return float((weights**2).sum() / weights.sum())


def average_of(estimates: Iterable[Linearised], *, touched: int = 1) -> Linearised:
    """The mean of several estimates on the same rows, of which one row can move `touched` at a time.

    Takes one after the other: a thousand classes need not be in memory at once. UsageError for none.
    """
    value, influence = 0.0, np.zeros(0)
    largest: list[float] = []
    for estimate in estimates:
        value += estimate.value
        influence = influence + estimate.influence if largest else estimate.influence
        largest.append(estimate.largest)
    if not largest:
        raise UsageError("an average of no estimates has no value")
    k = len(largest)
    return Linearised(value / k, influence / k, sum(sorted(largest)[-touched:]) / k)


def root_of(estimate: Linearised) -> Linearised:
    """The square root of an estimate of at least 0; where it is 0, no row pulls it.

    An approximation for many rows, like every delta method (van der Vaart, Asymptotic Statistics, 1998, chapter 3): for
    the rise of a root mean square with errors of t₈ a high end of `mean_bounds` at 95 % misses in 6.5 % for n = 50 and
    5 % for 1,000, a low end at 99.9 % in at most 0.1 % (simulated, benchmarks/regression_error_rates.py).
    """
    root = math.sqrt(estimate.value)
    return Linearised(root, estimate.influence / (2 * root) if root > 0 else np.zeros_like(estimate.influence))
