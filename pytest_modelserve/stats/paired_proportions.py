"""How much accuracy a candidate loses against its reference on the same rows: Tango's score interval.

Of n rows, `lost` are right under the reference and wrong under the candidate, `gained` the other way round. Rows on
which both agree say nothing of the difference (lost − gained)/n beyond being there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import _arguments
from pytest_modelserve.stats.bounds import Bounds

FloatArray = NDArray[np.float64]


def paired_difference_bounds(lost: int, gained: int, n: int, *, low_level: float, high_level: float) -> Bounds:
    """The drop (lost − gained)/n between the bounds of Tango's score interval, all from −1 to 1.

    The low end is where `tango_statistic` reaches z(low_level), the high end where it reaches −z(high_level), rounded
    outwards to the next float. With no discordant row the interval still has width: its high end is z²/(n + z²), as
    "no error in n rows" does not mean "no error". All rows lost make the high end 1.

    The levels are asymptotic, not guaranteed; both errors are worst where nearly all discordant rows are lost ones. By
    enumeration (benchmarks/error_rates.py; margins from 0.5 to 5 points, n from 50), a model exactly at its margin
    passes a high end at 95 % in up to 6.9 % of samples where n is just enough to pass without a discordant row
    (6.76 % for n = 268 and 1 point) and elsewhere in up to 6.4 %; it fails a low end at 99.9 % in up to 0.41 % where
    some ten discordant rows are expected (n = 1,018 and 1 point) and in 0.16 % with a hundred. Both approach nominal
    as lost and gained rows both become common.

    Assumes independent rows. Source: Tango (1998), Statistics in Medicine 17, 891–908, equations 24–26.

    UsageError for no rows, for counts that are negative, not integers or together more than n, and for a level outside
    (0.5, 1).
    """
    n = _arguments.count("n", n, minimum=1)
    lost, gained = _arguments.count("lost", lost), _arguments.count("gained", gained)
    if lost + gained > n:
        raise UsageError(f"lost and gained rows are among the n rows: {lost} + {gained} of {n} cannot be")
    low_level, high_level = _arguments.level("low_level", low_level), _arguments.level("high_level", high_level)
    return Bounds(
        estimate=(lost - gained) / n,
        low=-_high_end(gained, lost, n, low_level),  # seen from the other model, a loss is a gain
        high=_high_end(lost, gained, n, high_level),
        low_level=low_level,
        high_level=high_level,
    )


def tango_statistic(lost: ArrayLike, gained: ArrayLike, n: ArrayLike, difference: ArrayLike) -> FloatArray:
    """Tango's score statistic for the hypothesis that the drop is `difference`; arguments broadcast.

    (lost − gained − n·difference) / sqrt(n·v), where v is the variance per row under the hypothesis, with the
    probability of a gained row at its maximum-likelihood value given that difference. About standard normal under the
    hypothesis; falls as `difference` rises. At difference 0 it is McNemar's statistic, and 0 where no row is
    discordant; at ±1, which only one table allows, it is 0 for that table and infinite for all others.

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


def _high_end(lost: int, gained: int, n: int, level: float) -> float:
    """The smallest float at which the statistic is at or below −z(level), by bisection.

    The statistic falls from 0 at the estimate to −∞ at 1, steeply near the ends: halving cannot fail there, and stops
    by itself where two neighbouring floats enclose the root. With all rows lost it never goes below 0: 1 remains.
    """
    z = ndtri(level)
    inside, outside = (lost - gained) / n, 1.0
    while inside < (middle := (inside + outside) / 2) < outside:
        if score(lost, gained, n, middle) > -z:
            inside = middle
        else:
            outside = middle
    return outside
