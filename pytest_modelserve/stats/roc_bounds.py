"""Bounds of the true positive rate at a false positive rate: one point of a ROC curve."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.intervals import Bounds, check_level, check_vector
from pytest_modelserve.stats.proportions import binomial_bounds


def true_positive_rate_bounds(
    positives: ArrayLike, negatives: ArrayLike, *, false_positive_rate: float, low_level: float, high_level: float
) -> Bounds:
    """Return the true positive rate of the best threshold with a false positive rate of at most the given one.

    The threshold of the lower bound is the r-th largest negative score. Its own false positive rate is Beta(r, n − r +
    1) distributed, and r is the largest rank for which it exceeds the given rate with at most half of the error
    rate. The other half pays for the Clopper–Pearson bound of the positives above it. The upper bound is the same with
    the smallest rank for which the rate lies below the given one, and with the positives that reach it. Ties make both
    bounds wider. The estimate is the rate at the threshold that at most `false_positive_rate` of the negatives exceed.

    `positives` (m,) and `negatives` (n,) are independent scores, higher for positives. Without a rank, which takes
    about −ln(error rate / 2) / false_positive_rate negatives, the lower bound is 0.

    Sources: Wilks (1941), Annals of Mathematical Statistics 12, 91–96; Clopper and Pearson (1934), Biometrika 26,
    404–413. UsageError for no scores, for NaN, and for rates and levels out of range.
    """
    ours, others = check_vector("positives", positives), np.sort(check_vector("negatives", negatives))[::-1]
    low_level, high_level = check_level("low_level", low_level), check_level("high_level", high_level)
    if np.isnan(ours).any() or np.isnan(others).any():
        raise UsageError("scores must not be NaN, which has no rank: leave those rows out")
    rank, upper_rank = threshold_ranks(
        others.size, false_positive_rate=false_positive_rate, low_level=low_level, high_level=high_level
    )
    low, high = 0.0, 1.0
    if rank:
        above = int((ours > others[rank - 1]).sum())
        level = (1 + low_level) / 2
        low = binomial_bounds(above, ours.size, low_level=level, high_level=level).low
    if upper_rank <= others.size:
        reaching = int((ours >= others[upper_rank - 1]).sum())
        level = (1 + high_level) / 2
        high = binomial_bounds(reaching, ours.size, low_level=level, high_level=level).high
    allowed = math.floor(false_positive_rate * others.size * (1 + 1e-12))
    return Bounds(float((ours > others[allowed]).mean()), low, high, low_level=low_level, high_level=high_level)


def threshold_ranks(
    negatives: int, *, false_positive_rate: float, low_level: float, high_level: float
) -> tuple[int, int]:
    """Return the ranks, from 1, of the negative scores that are the thresholds of the lower and of the upper bound.

    The first is 0 where no rank keeps the level; the second is above `negatives` then.

    >>> [threshold_ranks(n, false_positive_rate=0.01, low_level=0.95, high_level=0.95)[0] for n in (500, 1000, 2000)]
    [1, 4, 12]
    """
    if not 0 < false_positive_rate < 1:
        raise UsageError(f"false_positive_rate must be between 0 and 1, got {false_positive_rate}")
    mean = negatives * false_positive_rate
    most = min(negatives, math.ceil(mean + 10 * math.sqrt(mean) + 50))
    fewer = bdtr(np.arange(most), negatives, false_positive_rate)  # the probability of fewer than 1, 2, … exceedances
    rank = int((fewer <= (1 - low_level) / 2).sum())
    upper_rank = int((fewer < (1 + high_level) / 2).sum()) + 1
    return rank, upper_rank
