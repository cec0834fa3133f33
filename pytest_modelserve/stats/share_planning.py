"""How many rows it takes to show that a share keeps its limit."""

from __future__ import annotations

import math

from scipy.special import bdtr, ndtri

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import _arguments
from pytest_modelserve.stats.binomial import binomial_bounds

_MOST = 1 << 40
"""Beyond 10¹² rows the share is as good as the limit."""


def rows_for_excess(
    *, share: float, limit: float, base: float = 0.0, below: float = 0.0, confidence: float, power: float
) -> int | None:
    """The rows with which the bound of a true `share`, less `base`, keeps `limit` with about `power`.

    The bound is that of `excess_bound` at `confidence`: `base` is the reference's share as seen and `below` how far its
    lower bound lies from it; both 0 for a share by itself. The smallest n for which the binomial quantile at `power`
    keeps the limit: as n grows that comes and goes in steps, and a bisection takes one of them, so that the power is
    met to about 3 %. With neither share nor base it is exact: ln(1 − confidence)/ln(1 − limit) rounded up, 299 for 1 %
    at 95 %. None where no number of rows would do, or 10¹² not.

    UsageError for a share or base outside [0, 1), a limit outside (0, 1) and levels outside (0.5, 1).
    """
    for name, value in (("share", share), ("base", base), ("below", below)):
        if not 0 <= value < 1:
            raise UsageError(f"{name} lies from 0 to below 1, not {value}")
    if not 0 < limit < 1:
        raise UsageError(f"limit lies between 0 and 1, not {limit}")
    confidence, power = _arguments.level("confidence", confidence), _arguments.level("power", power)

    def enough(n: int) -> bool:
        bounds = binomial_bounds(_quantile(n, share, power), n, low_level=confidence, high_level=confidence)
        return bounds.estimate - base + math.hypot(bounds.high - bounds.estimate, below) <= limit

    if share - base + below >= limit:
        return None
    high = 1
    while not enough(high):
        high *= 2
        if high > _MOST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _quantile(n: int, share: float, level: float) -> int:
    """The smallest number of successes that n trials do not exceed with probability `level`."""
    if share == 0:
        return 0
    spread = (n * share * (1 - share)) ** 0.5
    low, high = -1, min(int(n * share + float(ndtri(level)) * spread + 10 * (1 + spread)), n)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if bdtr(middle, n, share) >= level else (middle, high)
    return high
