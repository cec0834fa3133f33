"""How many rows it takes to show that a share keeps its limit."""

from __future__ import annotations

from scipy.special import bdtr, ndtri

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import _arguments
from pytest_modelserve.stats.binomial import binomial_bounds

_MOST = 1 << 40
"""Beyond 10¹² rows the share is as good as the limit."""


def rows_for_share(*, share: float, limit: float, confidence: float, power: float) -> int | None:
    """The rows with which the upper `confidence` bound of a true `share` keeps `limit` with about `power`.

    The smallest n whose binomial quantile at `power` has a Clopper–Pearson bound within the limit; as n grows it comes
    and goes in steps, and a bisection takes one of them, so that the power is met to about 3 %. With no share at all it
    is exact: ln(1 − confidence)/ln(1 − limit) rounded up, 299 for 1 % at 95 %. None where the share is not below the
    limit, or so near that 10¹² rows would not do.

    UsageError for a share outside [0, 1), a limit outside (0, 1) and levels outside (0.5, 1).
    """
    if not 0 <= share < 1:
        raise UsageError(f"a share lies from 0 to below 1, not {share}")
    if not 0 < limit < 1:
        raise UsageError(f"a limit lies between 0 and 1, not {limit}")
    confidence, power = _arguments.level("confidence", confidence), _arguments.level("power", power)

    def enough(n: int) -> bool:
        successes = _quantile(n, share, power)
        return binomial_bounds(successes, n, low_level=0.75, high_level=confidence).high <= limit

    if share >= limit:
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
