"""Bounds and exact tests for one binomial proportion or two, and the rows that they need."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, betainc, betaincc, betainccinv, betaincinv, gammaln, ndtri

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.intervals import Bounds, check_count, check_level, check_vector


def binomial_bounds(successes: int, n: int, *, low_level: float, high_level: float) -> Bounds:
    """Return the proportion `successes / n` with its exact Clopper–Pearson bounds.

    Each bound keeps at least its level for any true proportion. The actual level is above the nominal one, the more so
    the smaller `n` is. The low end is 0 without a success and the high end 1 without a failure.

    Assumes `n` independent trials of one success probability. Source: Clopper and Pearson (1934), Biometrika 26,
    404–413, in the beta form: low = Beta⁻¹(1 − low_level; s, n − s + 1), high = Beta⁻¹(high_level; s + 1, n − s).

    UsageError for no trials, for counts that are negative, not integers or more than `n`, and for a level outside
    (0.5, 1).
    """
    n = check_count("n", n, minimum=1)
    successes = check_count("successes", successes)
    if successes > n:
        raise UsageError(f"successes must be at most n, got {successes} of {n}")
    low_level, high_level = check_level("low_level", low_level), check_level("high_level", high_level)
    failures = n - successes
    return Bounds(
        estimate=successes / n,
        low=_beta_quantile(successes, failures + 1, low_level, upper=True) if successes else 0.0,
        high=_beta_quantile(successes + 1, failures, high_level, upper=False) if failures else 1.0,
        low_level=low_level,
        high_level=high_level,
    )


# The largest relative error of the probability at a quantile; scipy's is up to 10⁻⁵ at 10⁹ trials where it converges.
_QUANTILE_ERROR = 1e-4


def _beta_quantile(a: int, b: int, probability: float, *, upper: bool) -> float:
    """Return where the lower or `upper` tail of a beta distribution has this probability.

    scipy 1.17 is wrong, by up to a factor of 16, for some distributions with a = 1,000 and b of 10⁷ and more. Where its
    quantile does not have the probability, a bisection finds the quantile.
    """
    tail, inverse = (betaincc, betainccinv) if upper else (betainc, betaincinv)
    quantile = float(inverse(a, b, probability))
    if abs(float(tail(a, b, quantile)) - probability) <= _QUANTILE_ERROR * (1 - probability):
        return quantile
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        above = (float(tail(a, b, middle)) < probability) == upper
        low, high = (low, middle) if above else (middle, high)
    return middle


# Standard deviations beyond the mode after which a hypergeometric tail adds nothing to a double.
_LOST_TAIL = 40


def fisher_p_value(successes: int, n: int, reference_successes: int, reference_n: int) -> float:
    """Return the p-value of Fisher's exact test against a higher rate of `successes` in `n` than in the reference.

    The upper tail of the hypergeometric distribution, given the margins: exact for any common rate, and therefore
    conservative. Relative accuracy 1e-6 up to 10⁸ rows. Source: Fisher (1935), Journal
    of the Royal Statistical Society 98, 39–82.

    UsageError for an empty sample, and for counts that are negative, not integers or more than their sample.
    """
    n, reference_n = check_count("n", n, minimum=1), check_count("reference_n", reference_n, minimum=1)
    successes = check_count("successes", successes)
    reference_successes = check_count("reference_successes", reference_successes)
    for some, whole in ((successes, n), (reference_successes, reference_n)):
        if some > whole:
            raise UsageError(f"successes must be at most the number of rows, got {some} of {whole}")
    drawn = successes + reference_successes
    lowest, highest = max(0, drawn - reference_n), min(n, drawn)
    if successes <= lowest:
        return 1.0
    total = n + reference_n
    mean = drawn * n / total
    spread = math.sqrt(mean * (1 - n / total) * (total - drawn) / max(total - 1, 1))
    end = min(highest, max(successes, math.ceil(mean)) + math.ceil(_LOST_TAIL * (spread + 1)))
    counts = np.arange(successes, end + 1, dtype=np.float64)
    logarithms = _log_choose(drawn, counts) + _log_choose(total - drawn, n - counts) - _log_choose(total, np.float64(n))
    return min(float(np.exp(logarithms).sum()), 1.0)


def rate_increase_bound(successes: int, n: int, reference_successes: int, reference_n: int, *, level: float) -> float:
    """Return the upper bound, at `level`, of the rate increase over the reference; at most 1.

    p − q + sqrt((u − p)² + (q − l)²), with the observed rates p and q, the Clopper–Pearson upper bound u of p and the
    lower bound l of q, each at `level`. Without a success in the reference it is the bound of a single rate. Source:
    Newcombe (1998), Statistics in Medicine 17, 873–890, method 10, with exact bounds instead of Wilson's, which makes
    it conservative: at 0.95 it is below the truth in at most 5 % of samples (enumerated for 30 to 5,000 rows).

    UsageError as for `fisher_p_value`, and for a level outside (0.5, 1).
    """
    now = binomial_bounds(successes, n, low_level=level, high_level=level)
    then = binomial_bounds(reference_successes, reference_n, low_level=level, high_level=level)
    reach = math.hypot(now.high - now.estimate, then.estimate - then.low)
    return min(now.estimate - then.estimate + reach, 1.0)


_NEWCOMBE_LEVEL = 0.95
_NEWCOMBE_ROWS = 10
"""Newcombe's bound is used up to this level, and beyond it if both samples have so many successes and failures. With
fewer it misses at 0.999 in up to eight times as many samples as it may."""


def proportion_difference_bounds(
    successes: int, n: int, other_successes: int, other_n: int, *, low_level: float, high_level: float
) -> Bounds:
    """Return the difference of two independent proportions, `successes / n` less the other one, with bounds.

    Each end is Newcombe's, as in `rate_increase_bound`; beyond 0.95 with fewer than ten successes or failures in a
    sample it is the distance of the Clopper–Pearson bounds of both, each with half of the error rate. Enumerated for
    true differences up to 0.3, 10 to 2,000 rows: an end misses in at most 1.1 times as many samples as it may at 0.95,
    and in at most 1.3 times as many at 0.999.

    UsageError as for `binomial_bounds`.
    """
    one, other = (successes, n), (other_successes, other_n)
    return Bounds(
        estimate=successes / n - other_successes / other_n,
        low=-_largest_difference(*other, *one, check_level("low_level", low_level)),
        high=_largest_difference(*one, *other, check_level("high_level", high_level)),
        low_level=low_level,
        high_level=high_level,
    )


def _largest_difference(successes: int, n: int, other_successes: int, other_n: int, level: float) -> float:
    rarest = min(successes, n - successes, other_successes, other_n - other_successes)
    if level <= _NEWCOMBE_LEVEL or rarest >= _NEWCOMBE_ROWS:
        return rate_increase_bound(successes, n, other_successes, other_n, level=level)
    half = (1 + level) / 2
    one = binomial_bounds(successes, n, low_level=half, high_level=half)
    other = binomial_bounds(other_successes, other_n, low_level=half, high_level=half)
    return one.high - other.low


def outside_range_p_value(outside: int, n: int, reference_n: int) -> float:
    """Return the p-value of at least `outside` of `n` values outside the range of `reference_n` exchangeable values.

    Of the outside + 1 outermost values of both samples, at most one may then belong to the reference:
    [C(n, k + 1) + N·C(n, k)]/C(n + N, k + 1) with k = outside. Exact for any continuous distribution, because it
    depends on ranks alone, and conservative with ties. Source: the tolerance limits of Wilks (1941), Annals of
    Mathematical Statistics 12, 91–96: the proportion outside is Beta(2, N − 1) distributed.

    UsageError for a reference of fewer than 2 values, no values and more values outside than there are.
    """
    n, reference_n = check_count("n", n, minimum=1), check_count("reference_n", reference_n, minimum=2)
    outside = check_count("outside", outside)
    if outside > n:
        raise UsageError(f"outside must be at most n, got {outside} of {n}")
    if outside == 0:
        return 1.0
    whole = _log_choose(n + reference_n, np.float64(outside + 1))
    none = _log_choose(n, np.float64(outside + 1)) if outside < n else -math.inf
    one = math.log(reference_n) + _log_choose(n, np.float64(outside))
    return min(math.exp(none - whole) + math.exp(one - whole), 1.0)


def _log_choose(n: int, k: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    logarithms: NDArray[np.float64] = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return logarithms


# Golden-section steps: each leaves 62 % of the interval, all of them less than one part in 10¹⁶.
_GOLDEN_STEPS = 80
# The largest exponent tried: beyond it the bound falls by less than a factor of e⁻⁶⁰.
_LARGEST_EXPONENT = 60.0


def unseen_p_value(reference_counts: ArrayLike, current_counts: ArrayLike) -> float:
    """Return an upper bound of the p-value of an excess of rows in unseen categories, allowing for overdispersion.

    Both are counts (categories,) of the same categories in the same order. Given the total of each category, every
    assignment of rows to the two samples is equally likely if nothing changed. A category of t rows is then unseen with
    probability q = C(m, t)/C(N + m, t), for N reference and m current rows, and adds t rows at once. Indicators of
    disjoint sets of rows are negatively associated (Joag-Dev and Proschan 1983, Annals of Statistics 11, 286–295), so
    Chernoff's bound, the smallest exp(−s·k)·∏(1 − q + q·exp(s·t)) over s >= 0, holds for k unseen rows.

    Never below the exact p-value and often 5 to 10 times above it. Fisher's test against the proportion of categories
    seen once (Good and Turing) ignores overdispersion: at 0.001 it rejects up to 20 times too often.

    UsageError for counts of different lengths, negative counts and a sample without rows.
    """
    then = check_vector("reference_counts", reference_counts)
    now = check_vector("current_counts", current_counts)
    if then.shape != now.shape:
        raise UsageError(f"both samples must be counted in the same categories, got {then.size} and {now.size}")
    for name, counts in (("reference_counts", then), ("current_counts", now)):
        if not (counts >= 0).all() or not counts.sum() > 0:
            raise UsageError(f"{name} must be counts of at least one row")
    unseen = float(now[then == 0].sum())
    if unseen == 0:
        return 1.0
    totals, drawn = (then + now)[then + now > 0], float(now.sum())
    absent = _log_absent(totals, drawn, float(then.sum()))
    return min(math.exp(_log_chernoff_bound(unseen, totals, absent)), 1.0)


def _log_absent(totals: NDArray[np.float64], drawn: float, reference: float) -> NDArray[np.float64]:
    """Return the logarithm of q for each category; −inf where it has more rows than are drawn."""
    possible = totals <= drawn
    fitting = np.where(possible, totals, 0)
    logarithms = (
        gammaln(drawn + 1)
        - gammaln(drawn - fitting + 1)
        - gammaln(drawn + reference + 1)
        + gammaln(drawn + reference - fitting + 1)
    )
    return np.where(possible, logarithms, -np.inf)


def _log_chernoff_bound(unseen: float, totals: NDArray[np.float64], absent: NDArray[np.float64]) -> float:
    """Minimize the logarithm of Chernoff's bound over the exponent, a convex function, by golden section."""
    with np.errstate(divide="ignore"):
        present = np.log1p(-np.exp(np.minimum(absent, 0.0)))

    def bound(exponent: float) -> float:
        return float(np.logaddexp(present, absent + exponent * totals).sum()) - exponent * unseen

    golden = (math.sqrt(5) - 1) / 2
    low, high = 0.0, _LARGEST_EXPONENT
    for _ in range(_GOLDEN_STEPS):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if bound(left) <= bound(right) else (left, high)
    return min(bound(low), bound(high), 0.0)


# With more than 10¹² rows the proportion is practically at the limit.
_MOST_ROWS = 1 << 40


def rows_for_rate_increase(
    *, rate: float, limit: float, base: float = 0.0, below: float = 0.0, confidence: float, power: float
) -> int | None:
    """Return the rows with which `rate_increase_bound` of a true `rate` is at most `limit` with about `power`.

    `base` is the observed rate of the reference and `below` the distance to its lower bound, both 0 for a single rate.
    The power is met to about 3 %, because it moves in steps as n grows and a bisection finds one of them. If `rate` and
    `base` are 0, the result is exact: ln(1 − confidence)/ln(1 − limit) rounded up, 299 for 1 % at 95 %. None where no
    number of rows up to 10¹² is enough.

    UsageError for a rate or base outside [0, 1), a limit outside (0, 1) and levels outside (0.5, 1).
    """
    for name, value in (("rate", rate), ("base", base), ("below", below)):
        if not 0 <= value < 1:
            raise UsageError(f"{name} must be at least 0 and below 1, got {value}")
    if not 0 < limit < 1:
        raise UsageError(f"limit must be above 0 and below 1, got {limit}")
    confidence, power = check_level("confidence", confidence), check_level("power", power)

    def enough(n: int) -> bool:
        bounds = binomial_bounds(_quantile(n, rate, power), n, low_level=confidence, high_level=confidence)
        return bounds.estimate - base + math.hypot(bounds.high - bounds.estimate, below) <= limit

    if rate - base + below >= limit:
        return None
    high = 1
    while not enough(high):
        high *= 2
        if high > _MOST_ROWS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _quantile(n: int, rate: float, level: float) -> int:
    """Return the quantile of a binomial distribution at `level`."""
    if rate == 0:
        return 0
    spread = (n * rate * (1 - rate)) ** 0.5
    low, high = -1, min(int(n * rate + float(ndtri(level)) * spread + 10 * (1 + spread)), n)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if bdtr(middle, n, rate) >= level else (middle, high)
    return high


def proportion_rows_needed(
    proportion: float, limit: float, *, confidence: float, alpha: float, power: float = 0.9
) -> int | None:
    """Return about how many rows decide, with probability `power`, whether a true `proportion` is at least `limit`.

    PASS, at `confidence`, for a proportion above the limit; FAIL, at error rate `alpha`, below it; None where they are
    equal. The bounds are those of `binomial_bounds`. UsageError for a proportion outside [0, 1], a limit outside (0, 1)
    and rates that `rows_for_rate_increase` refuses.
    """
    if not 0 <= proportion <= 1:
        raise UsageError(f"proportion must lie in [0, 1], got {proportion}")
    if not 0 < limit < 1:
        raise UsageError(f"limit must be above 0 and below 1, got {limit}")
    if proportion == limit:
        return None
    if proportion > limit:
        return rows_for_rate_increase(rate=1 - proportion, limit=1 - limit, confidence=confidence, power=power)
    return rows_for_rate_increase(rate=proportion, limit=limit, confidence=1 - alpha, power=power)
