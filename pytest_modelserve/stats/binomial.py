"""How sure a share is: exact bounds for a binomial proportion."""

from __future__ import annotations

from scipy.special import betainccinv, betaincinv

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import _arguments
from pytest_modelserve.stats.bounds import Bounds


def binomial_bounds(successes: int, n: int, *, low_level: float, high_level: float) -> Bounds:
    """The share `successes / n` between its exact Clopper–Pearson bounds, all from 0 to 1.

    Each end keeps at least its level whatever the true share is; it pays for that with a level above the nominal one,
    the more so the smaller `n` is. The low end is 0 where nothing succeeded and the high end 1 where everything did.

    Assumes `n` independent trials of one success probability. Source: Clopper and Pearson (1934), Biometrika 26,
    404–413, in the beta form: low = Beta⁻¹(1 − low_level; s, n − s + 1), high = Beta⁻¹(high_level; s + 1, n − s).

    UsageError for no trials, for counts that are negative, not integers or out of order, and for a level outside
    (0.5, 1).
    """
    n = _arguments.count("n", n, minimum=1)
    successes = _arguments.count("successes", successes)
    if successes > n:
        raise UsageError(f"successes are among the n trials: {successes} of {n} cannot be")
    low_level, high_level = _arguments.level("low_level", low_level), _arguments.level("high_level", high_level)
    failures = n - successes
    return Bounds(
        estimate=successes / n,
        low=float(betainccinv(successes, failures + 1, low_level)) if successes else 0.0,
        high=float(betaincinv(successes + 1, failures, high_level)) if failures else 1.0,
        low_level=low_level,
        high_level=high_level,
    )
