"""Tango's score statistic for the drop between two models on the same rows, and the limit it gives.

Of n rows, `lost` are right under the reference and wrong under the candidate, `gained` the other way round. Rows on
which both agree say nothing of the difference (lost − gained)/n beyond being there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import UsageError

FloatArray = NDArray[np.float64]


def tango_statistic(lost: ArrayLike, gained: ArrayLike, n: ArrayLike, difference: ArrayLike) -> FloatArray:
    """Tango's score statistic for the hypothesis that the drop is `difference`; arguments broadcast.

    (lost − gained − n·difference) / sqrt(n·v), where v is the variance per row under the hypothesis, with the
    probability of a gained row at its maximum-likelihood value given that difference. About standard normal under the
    hypothesis; falls as `difference` rises. At difference 0 it is McNemar's statistic, and 0 where no row is
    discordant; at ±1, which only one table allows, it is 0 for that table and infinite for all others.

    Source: Tango (1998), Statistics in Medicine 17, 891–908, equations 24–26.

    UsageError for counts that are negative, NaN or together more than n, and for a difference outside [−1, 1].
    """
    lost, gained, n, difference = (np.asarray(a, dtype=np.float64) for a in (lost, gained, n, difference))
    if not np.all((lost >= 0) & (gained >= 0) & (lost + gained <= n) & (n > 0)):
        raise UsageError("lost and gained are counts of rows among n >= 1 rows, together at most n")
    if not np.all(np.abs(difference) <= 1):
        raise UsageError("a difference of two shares lies from -1 to 1")
    return score(lost, gained, n, difference)


def score(lost: Any, gained: Any, n: Any, difference: Any) -> FloatArray:
    """`tango_statistic` without its checks, for loops over tables that are known to be right."""
    excess = lost - gained - n * difference
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = excess / np.sqrt(n * variance_given(lost, gained, n, difference))
    # 0/0 where the hypothesis leaves no variance and the table agrees with it entirely.
    return np.where(excess == 0, 0.0, statistic)


def variance_given(lost: Any, gained: Any, n: Any, difference: Any) -> FloatArray:
    """The variance of one row's (lost − gained) at the maximum-likelihood fit under `difference`; arguments broadcast.

    2q + |Δ|(1 − |Δ|), where q, the probability of the kind of discordant row that is the rarer one under Δ, is the
    larger root of 2n·q² + B·q − rarer·|Δ|(1 − |Δ|) = 0 with B = (2n − commoner + rarer)|Δ| − commoner − rarer. Counts
    need not be integers: probabilities with n = 1 give the limit for large samples.
    """
    # A negative difference is a positive one seen from the other model. Written for Δ >= 0 alone, every term of the
    # variance is positive, and no rounding can leave a negative one.
    size = np.abs(difference)
    commoner, rarer = np.where(difference >= 0, lost, gained), np.where(difference >= 0, gained, lost)
    slack = size * (1 - size)
    b = (2 * n - commoner + rarer) * size - commoner - rarer
    root = np.sqrt(b * b + 8 * n * rarer * slack)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Two forms of one root: each subtracts nearly equal numbers exactly where the other does not.
        q = np.where(b > 0, 2 * rarer * slack / (b + root), (root - b) / (4 * n))
    variance: FloatArray = 2 * q + slack
    return variance


def tango_limit(lost: Any, gained: Any, n: int, z: float) -> FloatArray:
    """The smallest float at which the statistic of each table is at or below −z, by bisection: Tango's upper limit.

    The statistic falls from 0 at the estimate to −∞ at 1, steeply near the ends: halving cannot fail there, and stops
    by itself where two neighbouring floats enclose the root. With all rows lost it never goes below 0: 1 remains.
    """
    inside = np.asarray((lost - gained) / n, dtype=np.float64)
    outside = np.ones_like(inside)
    while np.any((inside < (middle := (inside + outside) / 2)) & (middle < outside)):
        above = score(lost, gained, n, middle) > -z
        inside, outside = np.where(above, middle, inside), np.where(above, outside, middle)
    return outside
