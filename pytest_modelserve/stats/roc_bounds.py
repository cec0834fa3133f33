"""Bounds of the true positive rate at a false positive rate: one point of a ROC curve."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.intervals import Bounds, check_level, check_vector
from pytest_modelserve.stats.proportions import binomial_bounds


def true_positive_rate_bounds(
    positives: ArrayLike, negatives: ArrayLike, *, false_positive_rate: float, low_level: float, high_level: float
) -> Bounds:
    """Return the true positive rate of the best threshold with a false positive rate of at most the given one.

    The threshold of the lower bound is the r-th largest negative score. Its own false positive rate is Beta(r, n − r +
    1) distributed, and r is the largest rank for which it exceeds the given rate with at most four fifths of the error
    rate. What is left of it pays for the Clopper–Pearson bound of the positives above the threshold. The upper bound is
    the same with the smallest rank for which the rate lies below the given one, and with the positives that reach it.
    Ties make both bounds wider. The estimate is the rate at the threshold that at most `false_positive_rate` of the
    negatives exceed.

    `positives` (m,) and `negatives` (n,) are independent scores, higher for positives. Without a rank, which takes
    about −ln(0.8 · error rate) / false_positive_rate negatives, the lower bound is 0.

    Sources: Wilks (1941), Annals of Mathematical Statistics 12, 91–96; Clopper and Pearson (1934), Biometrika 26,
    404–413. UsageError for no scores, for NaN, and for rates and levels out of range.
    """
    ours, others = check_vector("positives", positives), np.sort(check_vector("negatives", negatives))[::-1]
    low_level, high_level = check_level("low_level", low_level), check_level("high_level", high_level)
    if np.isnan(ours).any() or np.isnan(others).any():
        raise UsageError("scores must not be NaN, which has no rank: leave those rows out")
    low, high = 0.0, 1.0
    rank, spent = _rank(others.size, false_positive_rate, 1 - low_level)
    if rank:
        above = int((ours > others[rank - 1]).sum())
        level = low_level + spent
        low = binomial_bounds(above, ours.size, low_level=level, high_level=level).low
    rank, spent = _upper_rank(others.size, false_positive_rate, 1 - high_level)
    if rank <= others.size:
        reaching = int((ours >= others[rank - 1]).sum())
        level = high_level + spent
        high = binomial_bounds(reaching, ours.size, low_level=level, high_level=level).high
    allowed = math.floor(false_positive_rate * others.size * (1 + 1e-12))
    return Bounds(float((ours > others[allowed]).mean()), low, high, low_level=low_level, high_level=high_level)


# Of the error rate; on the digits the bounds of membership attacks are further from 0 than with a half.
_FOR_THRESHOLD = 0.8


def _rank(n: int, rate: float, error: float) -> tuple[int, float]:
    """Return the largest rank, from 1, whose score is exceeded at a higher rate rarely enough, and how rarely; or 0."""
    below = _fewer(n, rate)
    rank = int((below <= _FOR_THRESHOLD * error).sum())
    return rank, float(below[rank - 1]) if rank else 0.0


def _upper_rank(n: int, rate: float, error: float) -> tuple[int, float]:
    """Return the smallest rank whose score is exceeded at a lower rate rarely enough, and how rarely; or n + 1."""
    above = 1 - _fewer(n, rate)
    rank = int((above > _FOR_THRESHOLD * error).sum()) + 1
    return rank, float(above[rank - 1]) if rank <= len(above) else 0.0


def _fewer(n: int, rate: float) -> NDArray[np.float64]:
    """Return the probability of fewer than 1, 2, … of n exceedances."""
    if not 0 < rate < 1:
        raise UsageError(f"false_positive_rate must be between 0 and 1, got {rate}")
    most = min(n, math.ceil(n * rate + 10 * math.sqrt(n * rate) + 50))
    return np.asarray(bdtr(np.arange(most), n, rate))
