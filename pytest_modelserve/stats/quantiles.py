"""How sure a quantile is, whatever the distribution: bounds that are order statistics of the sample."""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, bdtrc

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import _arguments
from pytest_modelserve.stats.bounds import Bounds


def quantile_bounds(samples: ArrayLike, quantile: float, *, low_level: float, high_level: float) -> Bounds:
    """The `quantile` (0.95, say) of what `samples` (n,) came from, between two order statistics of theirs.

    The estimate is the inverse of the empirical distribution function: the smallest sample that at least that share
    of the samples does not exceed. With B ~ Bin(n, quantile), the low end is the largest X₍ᵣ₎ with P(B >= r) >=
    `low_level` and the high end the smallest X₍ₛ₎ with P(B < s) >= `high_level`. Where n is too small for any order
    statistic to have that level, the end is infinite; `samples_for_quantile` tells how many would do.

    Assumes independent samples of one distribution, and nothing of its shape: ties and atoms only raise the levels.
    Infinite samples (a call that never came back) are ordered like any other. Source: David and Nagaraja (2003),
    Order Statistics, 3rd ed., section 7.1.

    UsageError for no samples, NaN among them, more than one axis, a quantile outside (0, 1) or a level outside
    (0.5, 1).
    """
    ordered = _ordered(samples)
    quantile = _share(quantile)
    low_level, high_level = _arguments.level("low_level", low_level), _arguments.level("high_level", high_level)
    n = len(ordered)
    low_rank, high_rank = _low_rank(n, quantile, low_level), _high_rank(n, quantile, high_level)
    return Bounds(
        estimate=float(ordered[_rank(n, quantile) - 1]),
        low=float(ordered[low_rank - 1]) if low_rank >= 1 else -math.inf,
        high=float(ordered[high_rank - 1]) if high_rank <= n else math.inf,
        low_level=low_level,
        high_level=high_level,
    )


def median_bounds(samples: ArrayLike, *, low_level: float, high_level: float) -> Bounds:
    """The median of what `samples` (n,) came from, between the two ends of the sign test's interval.

    The case `quantile=0.5` of `quantile_bounds`: for an even n the estimate is the lower of the two middle samples.
    """
    return quantile_bounds(samples, 0.5, low_level=low_level, high_level=high_level)


def samples_for_quantile(quantile: float, *, low_level: float, high_level: float) -> int:
    """The smallest n for which both ends of `quantile_bounds` are finite: 59 for a 95 % high end of a p95.

    Solves 1 − quantileⁿ >= high_level and 1 − (1 − quantile)ⁿ >= low_level. UsageError as for `quantile_bounds`.
    """
    quantile = _share(quantile)
    low_level, high_level = _arguments.level("low_level", low_level), _arguments.level("high_level", high_level)

    def both_finite(n: int) -> bool:
        return _low_rank(n, quantile, low_level) >= 1 and _high_rank(n, quantile, high_level) <= n

    # The closed form may be off by one in the last place; what counts is what quantile_bounds will do with n samples.
    n = math.ceil(max(math.log1p(-high_level) / math.log(quantile), math.log1p(-low_level) / math.log1p(-quantile)))
    while n > 1 and both_finite(n - 1):
        n -= 1
    while not both_finite(n):
        n += 1
    return n


def _rank(n: int, quantile: float) -> int:
    """The smallest k with k/n >= quantile; n·quantile alone rounds 100 · 0.07 up to 7.000000000000001."""
    rank = math.ceil(n * quantile)
    return rank - 1 if (rank - 1) / n >= quantile else rank


def _low_rank(n: int, quantile: float, level: float) -> int:
    """The largest r with P(B >= r) >= level; 0 where there is none."""
    return bisect_left(range(1, n + 1), True, key=lambda r: bdtrc(r - 1, n, quantile) < level)


def _high_rank(n: int, quantile: float, level: float) -> int:
    """The smallest s with P(B < s) >= level; n + 1 where there is none."""
    return 1 + bisect_left(range(1, n + 1), True, key=lambda s: bdtr(s - 1, n, quantile) >= level)


def _ordered(samples: ArrayLike) -> NDArray[np.float64]:
    values = _arguments.vector("samples", samples)
    if not values.size:
        raise UsageError("a quantile of no samples says nothing: measure at least one")
    if missing := int(np.isnan(values).sum()):
        raise UsageError(f"{missing} of {values.size} samples are NaN and have no place in an order: leave them out")
    return np.sort(values)


def _share(quantile: float) -> float:
    if not 0 < quantile < 1:
        raise UsageError(f"a quantile is a share above 0 and below 1 (0.95, say), not {quantile}")
    return float(quantile)
