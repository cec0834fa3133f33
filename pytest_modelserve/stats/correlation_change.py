"""Has a correlation changed between two data sets? By variances that come from fourth moments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

from pytest_modelserve.errors import UsageError

Floats = NDArray[np.float64]

POWERS = tuple((total - b, b) for total in range(5) for b in range(total + 1))
"""The exponents (a, b) of the sums Σ xᵃyᵇ of a pair of columns: all fifteen up to the fourth order."""
FEWEST_PAIRS = 4
"""Rows of a pair below which nothing is said of it."""
_EXCESS = 40.0
"""The excess kurtosis that is assumed of a product of two scores: 6 of normal ones, more where tails go together. It
matters where few rows meet hundreds of pairs: of a t copula of 3 degrees of freedom, 100 rows against 50."""
_Z = 1.6449
"""The 95 % point of a normal distribution."""


@dataclass(frozen=True, slots=True)
class Correlations:
    """Correlations of pairs of columns (pairs,): the rows of each, its estimate, and n times its variance.

    The variance is that of the estimate's influence function, x·y − r(x² + y²)/2 of standardised x and y: it holds
    whatever the distribution, where Fisher's (1 − r²)²/n needs a normal one. Neither is known of fewer than 4 rows or
    where a column does not vary: the estimate is then NaN.
    """

    rows: Floats
    estimates: Floats
    variances: Floats

    def of(self, pairs: NDArray[np.bool_]) -> Correlations:
        """Those of the pairs that are marked (pairs,)."""
        return Correlations(self.rows[pairs], self.estimates[pairs], self.variances[pairs])


def correlations_of(sums: ArrayLike) -> Correlations:
    """The correlations from `sums` (pairs, 15) of each pair, in the order of POWERS.

    Source of the variance: the delta method on the five moments of a correlation; Steiger and Hakstian (1982), British
    Journal of Mathematical and Statistical Psychology 35, 208-215. UsageError for other shapes.
    """
    table = np.asarray(sums, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(POWERS):
        raise UsageError(f"sums have the shape (pairs, {len(POWERS)}), not {table.shape}")
    with np.errstate(invalid="ignore", divide="ignore"):
        raw = dict(zip(POWERS, (table / table[:, :1]).T, strict=True))
        x, y = raw[1, 0], raw[0, 1]
        xx, yy, xy = raw[2, 0] - x**2, raw[0, 2] - y**2, raw[1, 1] - x * y
        varies = (table[:, 0] >= FEWEST_PAIRS) & (xx > 1e-12) & (yy > 1e-12)
        r = np.clip(np.where(varies, xy / np.sqrt(xx * yy), np.nan), -1, 1)
        # Central moments of the fourth order, multiplied out.
        m40 = raw[4, 0] - 4 * x * raw[3, 0] + 6 * x**2 * raw[2, 0] - 3 * x**4
        m04 = raw[0, 4] - 4 * y * raw[0, 3] + 6 * y**2 * raw[0, 2] - 3 * y**4
        m31 = raw[3, 1] - y * raw[3, 0] - 3 * x * (raw[2, 1] - y * raw[2, 0]) + 3 * x**2 * xy
        m13 = raw[1, 3] - x * raw[0, 3] - 3 * y * (raw[1, 2] - x * raw[0, 2]) + 3 * y**2 * xy
        m22 = raw[2, 2] - 2 * y * raw[2, 1] - 2 * x * raw[1, 2] + 4 * x * y * raw[1, 1]
        m22 += y**2 * raw[2, 0] + x**2 * raw[0, 2] - 3 * x**2 * y**2
        a4, b4, ab = m40 / xx**2, m04 / yy**2, m22 / (xx * yy)
        a3b, ab3 = m31 / np.sqrt(xx**3 * yy), m13 / np.sqrt(xx * yy**3)
        variance = ab - r * (a3b + ab3) + r**2 * (a4 + 2 * ab + b4) / 4
    return Correlations(table[:, 0], r, np.maximum(variance, 0.0))


@dataclass(frozen=True, slots=True)
class CorrelationChange:
    """Changes of correlations (pairs,), current less reference, the chance of each, and 95 % bounds of their size."""

    changes: Floats
    p_values: Floats
    highs: Floats


def correlation_change(
    reference: Correlations, current: Correlations, *, reference_block: float = 1, current_block: float = 1
) -> CorrelationChange:
    """How far the correlations of `current` lie from those of `reference`, pair by pair.

    The chance is that of the difference of Fisher-transformed correlations over its standard error, the variances of
    both samples pooled and taken from fourth moments, never below the normal one and never below what rows that were
    not seen may add (9/n: three rows, 95 % of what may hide). `highs` are |change| + 1.645 standard errors, each
    sample with its own variance. Rows that come in blocks of `block` count as n/block. A pair that is unknown on either
    side has no change, a chance of 1 and a bound of 2.
    """
    n, m = reference.rows / reference_block, current.rows / current_block
    known = (
        np.isfinite(reference.estimates) & np.isfinite(current.estimates) & (n >= FEWEST_PAIRS) & (m >= FEWEST_PAIRS)
    )
    n, m = np.where(known, n, 1.0 * FEWEST_PAIRS), np.where(known, m, 1.0 * FEWEST_PAIRS)
    then, now = np.where(known, reference.estimates, 0.0), np.where(known, current.estimates, 0.0)
    of_then = np.where(known, reference.variances, 1.0) + 9 / n
    of_now = np.where(known, current.variances, 1.0) + 9 / m
    pooled = (n * then + m * now) / (n + m)
    rest = np.maximum(1 - pooled**2, 6 / (n + m))
    variance = np.maximum((n * of_then + m * of_now) / (n + m), rest**2)
    error = np.sqrt(variance * (1 / n + 1 / m)) / rest
    largest = 1 - 1 / (n + m)
    apart = np.arctanh(np.clip(now, -largest, largest)) - np.arctanh(np.clip(then, -largest, largest))
    tails = 6 / _EXCESS * (1 / n + 1 / m) ** 2 / (1 / n**3 + 1 / m**3)
    p_values = 2 * stdtr(4 + tails, -np.abs(apart) / error)
    changes = now - then
    highs = np.abs(changes) + _Z * np.sqrt(of_then / n + of_now / m)
    return CorrelationChange(
        np.where(known, changes, 0.0), np.where(known, p_values, 1.0), np.where(known, np.minimum(highs, 2.0), 2.0)
    )
