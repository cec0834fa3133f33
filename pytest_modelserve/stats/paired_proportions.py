"""Difference of two paired proportions: Tango's score interval with exact unconditional error rates.

Of n rows, `lost` are right under the reference and wrong under the candidate, and `gained` the reverse. Rows on which
both agree are concordant; they matter to the drop (lost − gained)/n only by their number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, bdtrc, betaincinv, gammaln, ndtri

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.intervals import Bounds, check_count, check_level

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# How many times as often as its level says a limit may err. With 1, Tango's limit would move nearly everywhere by an
# amount too small to matter, at a loss of power.
ERROR_TOLERANCE = 1.1
# Counts of the rarer kind that together are less likely than 2·exp(−32) = 3e-14 are left out.
_LOG_MASS = 32.0
# Proportion of the error rate spent on true discordances outside the range that is checked.
_OUTSIDE = 1e-5
# Proportion of the error rate by which the error between two discordances of the grid can exceed that at either.
_BETWEEN = 6e-4
# The grid's steps are 2·sinh(0.015·k) in the square root of an expected number of rows, whose standard deviation is
# 1/2: a step of 0.03 where hardly any row is expected, wider where a single row matters less.
_STEP = 0.015
# The step of the ends of ranges, in the square root of the expected discordant rows.
_END_STEP = 0.25
# Of every twelfth, then fourth point of the grid, those matter around which the error exceeds this proportion of what
# is allowed: in between it is at most 6 % and 1 % higher than at both ends.
_SCREENS = ((12, 0.9), (4, 0.985))
# A limit that moves lies at most this far above the smallest admissible one.
_RESOLUTION = 1e-11


def paired_difference_bounds(lost: int, gained: int, n: int, *, low_level: float, high_level: float) -> Bounds:
    """Return the drop (lost − gained)/n with the bounds of Tango's score interval, corrected to exact error rates.

    The low end is where `tango_statistic` reaches z(low_level), the high end where it reaches −z(high_level), rounded
    outwards to the next float. These levels are asymptotic: a model exactly at a margin of 1 point breaks them in 6.8 %
    of samples of 268 rows instead of 5 %, and in 0.40 % of samples of 1,018 rows instead of 0.1 %. An end that errs
    more than 1.1 times as often as its level says is therefore moved outwards by an exact unconditional test
    (`buehler_limit`). For any n and any discordance, the high end is below the true drop in at most
    1.1·(1 − high_level) of samples, and the low end above it in at most 1.1·(1 − low_level).
    benchmarks/drop_error_rates.py enumerates the error rates.

    Without a discordant row the interval still has width: at 95 % its high end is 1 − 0.055^(1/n).

    Takes milliseconds where Tango's ends stay, otherwise tens of them up to 10,000 rows and up to 0.2 s for 100,000.

    Assumes independent rows. Sources: Tango (1998), Statistics in Medicine 17, 891–908, equations 24–26; Buehler
    (1957), Journal of the American Statistical Association 52, 482–493; Berger and Boos (1994), the same 89, 1012–1016.

    UsageError for no rows, for counts that are negative, not integers or together more than n, and for a level outside
    (0.5, 1).
    """
    n = check_count("n", n, minimum=1)
    lost, gained = check_count("lost", lost), check_count("gained", gained)
    if lost + gained > n:
        raise UsageError(f"lost and gained must be together at most n, got {lost} + {gained} of {n}")
    low_level, high_level = check_level("low_level", low_level), check_level("high_level", high_level)
    return Bounds(
        estimate=(lost - gained) / n,
        low=-buehler_limit(gained, lost, n, low_level),  # with the models exchanged, a loss is a gain
        high=buehler_limit(lost, gained, n, high_level),
        low_level=low_level,
        high_level=high_level,
    )


def tango_statistic(lost: ArrayLike, gained: ArrayLike, n: ArrayLike, difference: ArrayLike) -> FloatArray:
    """Return Tango's score statistic for the hypothesis that the drop is `difference`; arguments broadcast.

    (lost − gained − n·difference) / sqrt(n·v), where v is the variance per row at the maximum-likelihood fit under the
    hypothesis. About standard normal under the hypothesis, and decreasing in `difference`. At difference 0 it is
    McNemar's statistic, and 0 where no row is discordant; at ±1 it is 0 for the only table possible, else infinite.

    Source: Tango (1998), Statistics in Medicine 17, 891–908, equations 24–26.

    UsageError for counts that are negative, NaN or together more than n, and for a difference outside [−1, 1].
    """
    lost, gained, n, difference = (np.asarray(a, dtype=np.float64) for a in (lost, gained, n, difference))
    if not np.all((lost >= 0) & (gained >= 0) & (lost + gained <= n) & (n > 0)):
        raise UsageError("lost and gained must be counts of at least 0 and together at most n, with n of at least 1")
    if not np.all(np.abs(difference) <= 1):
        raise UsageError("difference must lie in [-1, 1]")
    return score(lost, gained, n, difference)


def score(lost: Any, gained: Any, n: Any, difference: Any) -> FloatArray:
    """Return `tango_statistic` without the checks of its arguments."""
    excess = lost - gained - n * difference
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = excess / np.sqrt(n * variance_given(lost, gained, n, difference))
    # 0/0 where the hypothesis leaves no variance and the table agrees with it entirely.
    return np.where(excess == 0, 0.0, statistic)


def variance_given(lost: Any, gained: Any, n: Any, difference: Any) -> FloatArray:
    """Return the variance of one row's (lost − gained) at the maximum-likelihood fit under `difference`.

    2q + |Δ|(1 − |Δ|), where q, the probability of the rarer kind of discordant row under Δ, is the larger root of
    2n·q² + B·q − rarer·|Δ|(1 − |Δ|) = 0 with B = (2n − commoner + rarer)|Δ| − commoner − rarer. Arguments
    broadcast. Probabilities with n = 1 give the limit for large samples.
    """
    # A negative difference is a positive one with the models exchanged. For Δ >= 0 every term of the variance is
    # positive, so that rounding cannot make it negative.
    size = np.abs(difference)
    commoner, rarer = np.where(difference >= 0, lost, gained), np.where(difference >= 0, gained, lost)
    product = size * (1 - size)
    b = (2 * n - commoner + rarer) * size - commoner - rarer
    root = np.sqrt(b * b + 8 * n * rarer * product)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Two forms of one root: each subtracts nearly equal numbers exactly where the other does not.
        q = np.where(b > 0, 2 * rarer * product / (b + root), (root - b) / (4 * n))
    variance: FloatArray = 2 * q + product
    return variance


def tango_limit(lost: Any, gained: Any, n: int, z: float) -> FloatArray:
    """Return Tango's upper limit of each table: the smallest float at which its statistic is at or below −z.

    The statistic falls from 0 at the estimate to −∞ at 1, steeply near the ends. Bisection cannot fail there, and ends
    where two neighboring floats enclose the root. With all rows lost the statistic is never below 0: the limit is 1.
    """
    inside = np.asarray((lost - gained) / n, dtype=np.float64)
    outside = np.ones_like(inside)
    while np.any((inside < (middle := (inside + outside) / 2)) & (middle < outside)):
        above = score(lost, gained, n, middle) > -z
        inside, outside = np.where(above, middle, inside), np.where(above, outside, middle)
    return outside


@dataclass(frozen=True, slots=True)
class Truth:
    """Distributions of tables of `n` rows for one true drop and several true discordances, (k,).

    Rows are lost with probability (discordance + difference)/2 and gained with (discordance − difference)/2, so no
    discordance is below the absolute difference.
    """

    n: int
    difference: float
    discordances: FloatArray

    @property
    def rare(self) -> FloatArray:
        """Probability of the rarer kind, (k, 1): gained rows unless the difference is negative."""
        probability: FloatArray = (self.discordances[:, None] - abs(self.difference)) / 2
        return probability

    @property
    def common(self) -> FloatArray:
        """Probability of the commoner kind among the rows that are not of the rarer kind, (k, 1)."""
        probability: FloatArray = np.minimum((self.rare + abs(self.difference)) / (1 - self.rare), 1)
        return probability

    def rare_counts(self) -> IntArray:
        """Return the counts of the rarer kind that are likely enough for any of the discordances, (c,)."""
        means = self.n * self.rare
        # Bernstein's inequality: a count is outside mean ± width with probability below 2·exp(−_LOG_MASS).
        width = _LOG_MASS / 3 + np.sqrt((_LOG_MASS / 3) ** 2 + 2 * means * _LOG_MASS)
        first, last = math.floor((means - width).min()), math.ceil((means + width).max())
        return np.arange(max(first, 0), min(last, self.n) + 1)

    def table_probabilities(self, rare: IntArray, common: IntArray) -> FloatArray:
        """Return the probability of each table from its counts of both kinds, (t,), for each discordance: (k, t)."""
        both = _log_binomial(rare, self.n, self.rare) + _log_binomial(common, self.n - rare, self.common)
        return np.exp(both)


def probabilities_within(truth: Truth, limit: float, z: float) -> FloatArray:
    """Return P(Tango's limit at z is at most `limit`) for each discordance, (k,).

    Tables are enumerated by the count of the rarer kind: for each, they are those with few enough lost rows, or with
    enough gained rows.
    """
    rare = truth.rare_counts()
    weights = np.exp(_log_binomial(rare, truth.n, truth.rare))
    # Unlikely cells are left out, as each costs as much as a likely one.
    cells = weights > 1e-14
    edge, rest = (
        np.broadcast_to(a, weights.shape)[cells] for a in (common_boundary(truth, rare, limit, z), truth.n - rare)
    )
    common = np.broadcast_to(truth.common, weights.shape)[cells]
    below = np.where(edge > 0, bdtr(np.maximum(edge - 1, 0), rest, common), 0.0)
    if truth.difference < 0:
        below = np.where(edge > rest, 0.0, np.where(edge > 0, bdtrc(np.maximum(edge - 1, 0), rest, common), 1.0))
    weights[cells] *= below
    weights[~cells] = 0
    probabilities: FloatArray = weights.sum(axis=1)
    return probabilities


def common_boundary(truth: Truth, rare: IntArray, limit: float, z: float) -> IntArray:
    """Return, for each count of the rarer kind, where the tables with Tango's limit up to `limit` end, (c,).

    Where lost rows are the commoner kind, the smallest count of them whose limit is larger; where gained rows are, the
    smallest whose limit is not. One more than the rows left, where there is none.
    """
    lost_commoner, most = truth.difference >= 0, truth.n - rare + 1
    # No row's variance exceeds 1, so the statistic is −z no further than this from where it is 0.
    balance, width = truth.n * limit, z * math.sqrt(truth.n) + 2
    start, stop = (
        (rare + balance - width, rare + balance + 2) if lost_commoner else (rare - balance - 2, rare - balance + width)
    )
    low: IntArray = np.clip(np.floor(start), 0, most).astype(np.int64)
    high: IntArray = np.clip(np.floor(stop), 0, most).astype(np.int64)
    while np.any(low < high):
        middle = np.minimum((low + high) // 2, truth.n - rare)
        lost, gained = (middle, rare) if lost_commoner else (rare, middle)
        within = score(lost, gained, truth.n, limit) <= -z
        reached = within != lost_commoner
        low, high = np.where(reached, low, middle + 1), np.where(reached, middle, high)
    return low


def largest_limits(truth: Truth, allowed: FloatArray, z: float) -> FloatArray:
    """Return, for each discordance, the largest number below which Tango's limit falls no more often than `allowed`.

    Each of them, (k,), is below the true difference. They are found among the sorted limits of the tables, so that
    rounding puts no table on the wrong side.
    """
    lower, upper = _search_start(truth, allowed, z), truth.difference
    rare = truth.rare_counts()
    edges = common_boundary(truth, rare, lower, z), common_boundary(truth, rare, upper, z)
    first, last = np.minimum(*edges), np.maximum(*edges)
    rare = np.repeat(rare, last - first)
    common = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
    lost, gained = (common, rare) if truth.difference >= 0 else (rare, common)
    limits = tango_limit(lost, gained, truth.n, z)
    order = np.argsort(limits)
    probabilities = truth.table_probabilities(rare[order], common[order])
    reached = probabilities_within(truth, lower, z)[:, None] + np.cumsum(probabilities, axis=1)
    # Just below the table with which the probability becomes too large.
    violations = np.append(limits[order], upper)[np.sum(reached <= allowed[:, None], axis=1)]
    largest: FloatArray = np.nextafter(violations, -1)
    return largest


def _search_start(truth: Truth, allowed: FloatArray, z: float) -> float:
    """Return a number below the true difference below which Tango's limit falls no more often than allowed."""
    width = 1 / truth.n
    while np.any(probabilities_within(truth, lower := max(truth.difference - width, -1.0), z) > allowed):
        width *= 2
    return lower


def _log_binomial(count: IntArray, n: IntArray | int, p: FloatArray) -> FloatArray:
    # Probabilities of exactly 0 or 1 are moved by a negligible amount, as 0·log 0 would be NaN.
    hit, miss = np.log(np.maximum(p, 1e-300)), np.log1p(-np.minimum(p, 1 - 1e-16))
    ways = gammaln(n + 1) - gammaln(count + 1) - gammaln(n - count + 1)
    logarithm: FloatArray = ways + count * hit + (n - count) * miss
    return logarithm


def buehler_limit(lost: int, gained: int, n: int, level: float) -> float:
    """Return Tango's upper limit of the drop at `level`, or the smallest larger number whose error rate is admissible.

    A limit errs when the true drop is larger. For a true drop Δ, let p(Δ) be the probability that Tango's limit falls
    as low as it did or lower: the largest over all true discordances that are plausible given the observed total of
    discordant rows. It falls as Δ rises. The result is the smallest Δ from Tango's limit on with p(Δ) at most
    1.1·(1 − level), less what is spent on discordances left out. So it errs at most 1.1·(1 − level) of the time for any
    truth, and equals Tango's limit where that does not err more often.

    Tables are ordered by Tango's limit, not by his statistic at Δ as in Chan (1998). Their order is then the same for
    every Δ, and a model that passes at a margin passes at every larger one.

    Source: Buehler (1957), Journal of the American Statistical Association 52, 482–493, for the exact limit of tables
    in a given order; Berger and Boos (1994), the same 89, 1012–1016, for the range of discordances.
    """
    limit = difference = float(tango_limit(lost, gained, n, float(ndtri(level))))
    low, high = (float(end) for end in _possible_discordances(np.asarray(lost + gained), n, level))
    # Move most of the way with few of the discordances, the rest with all.
    for every in (_SCREENS[0][0], 1):
        # No drop is larger than 1, with all rows lost.
        while difference < 1:
            check = _ErrorCheck(n, difference, level)
            violating, errors = check.violations(check.grid(low, high)[::every], limit)
            if not violating.size:
                break
            # Increase the limit until the worst violating point meets the error rate, then recheck all points.
            difference = _smallest_admissible(check, violating[[np.argmax(errors)]], limit)
    return difference


def first_lost_above(totals: IntArray, n: int, difference: float, level: float) -> IntArray:
    """Return, for each total of discordant rows, the smallest `lost` whose Buehler limit exceeds `difference`.

    `totals` are ascending, (t,). The result is total + 1 where there is none.
    """
    limits, z = _critical_limits(totals, _ErrorCheck(n, difference, level)), ndtri(level)
    low, high = np.zeros_like(totals), totals + 1
    while np.any(low < high):
        middle = np.minimum((low + high) // 2, totals)
        # The statistic rises with `lost` at a fixed total.
        above = score(middle, totals - middle, n, limits) > -z
        low, high = np.where(above, low, middle + 1), np.where(above, middle, high)
    return low


def rows_without_discordance(difference: float, level: float) -> int:
    """Return the fewest rows with which the Buehler limit without a discordant row is at most a positive `difference`.

    Tango's limit is then z²/(n + z²), and falls that low most easily where every discordant row is a lost one: with
    probability (1 − difference)ⁿ. For a difference of half or more, a row or two too few.
    """
    z = float(ndtri(level))
    for_tango = z**2 * (1 - difference) / difference
    for_exactness = math.log((ERROR_TOLERANCE - _OUTSIDE) * (1 - level)) / math.log1p(-difference)
    return math.ceil(max(for_tango, for_exactness))


@dataclass(frozen=True, slots=True)
class _ErrorCheck:
    """Error rates of a limit at `level` when the true drop is `difference`."""

    n: int
    difference: float
    level: float

    @property
    def z(self) -> float:
        return float(ndtri(self.level))

    def grid(self, low: float, high: float) -> FloatArray:
        """Return the true discordances to check from `low` to `high`, ascending and not below the absolute difference.

        Single rows matter where rows of a kind are few: the steps are fine in the root of the expected rows of the
        rarer kind, and from a half on in that of concordant rows.
        """
        size = abs(self.difference)
        low, high = max(low, size), max(high, size)
        points = [
            size + 2 * _expected_rows(self.n * (low - size) / 2, self.n * (high - size) / 2) / self.n,
            1 - _expected_rows(self.n * (1 - high), self.n * (1 - max(low, min(0.5, high)))) / self.n,
            np.square(np.arange(math.ceil(math.sqrt(self.n * high) / _END_STEP)) * _END_STEP) / self.n,
            np.array([low, high]),
        ]
        joined = np.concatenate(points)
        grid: FloatArray = np.unique(joined[(low <= joined) & (joined <= high)])
        return grid

    def allowed(self, discordances: FloatArray) -> FloatArray:
        """Return the error rate allowed at each: less between two points of the grid than at its lower end."""
        between = np.where(discordances > abs(self.difference), _BETWEEN, 0.0)
        return (ERROR_TOLERANCE - _OUTSIDE - between) * (1 - self.level)

    def errors(self, discordances: FloatArray, limit: float) -> FloatArray:
        """Return the probability at each that Tango's limit is at most `limit`."""
        possible = np.maximum(discordances, abs(self.difference))
        return probabilities_within(Truth(self.n, self.difference, possible), limit, self.z)

    def violations(self, grid: FloatArray, limit: float) -> tuple[FloatArray, FloatArray]:
        """Return the discordances of the grid at which the error is larger than allowed, and the errors."""
        near = grid[~tango_suffices(self.n, self.difference, grid, self.level)]
        for every, proportion in _SCREENS:
            near = self._near_violations(near, limit, every, proportion) if near.size else near
        errors = self.errors(near, limit) if near.size else near
        violating = errors > self.allowed(near)
        return near[violating], errors[violating]

    def _near_violations(self, grid: FloatArray, limit: float, every: int, proportion: float) -> FloatArray:
        """Return the grid without the points around which no error is nearly too large."""
        screened = np.unique(np.append(np.arange(0, grid.size, every), grid.size - 1))
        screened = screened[self.errors(grid[screened], limit) > proportion * self.allowed(grid[screened])]
        near = np.unique(screened[:, None] + np.arange(-every, every + 1))
        return grid[near[(near >= 0) & (near < grid.size)]]


def _expected_rows(low: float, high: float) -> FloatArray:
    """Return expected numbers of rows from `low` to `high` in the grid's steps."""
    first, last = (math.asinh(math.sqrt(end) / 2) / _STEP for end in (low, high))
    roots: FloatArray = 2 * np.sinh(np.arange(math.ceil(first), math.floor(last) + 1) * _STEP)
    return roots * roots


def tango_suffices(n: int, difference: float, discordances: FloatArray, level: float) -> NDArray[np.bool_]:
    """Return where Tango's limit is known to err less than 1.1 times as often as its level says.

    With at least 80 discordant rows expected, 10 of them of the rarer kind, and a skewness of lost − gained, about
    |difference|/(sqrt(n)·discordance^1.5), of at most 0.4/z³, the error enumerated is at most 1.08 times nominal for
    levels from 0.9 to 0.9999 (benchmarks/drop_error_rates.py). This saves time for large n.
    """
    enough = (n * discordances >= 80) & (n * (discordances - abs(difference)) >= 20) & (discordances <= 0.6)
    skewness: FloatArray = abs(difference) / (math.sqrt(n) * np.maximum(discordances, 1 / n) ** 1.5)
    symmetric: NDArray[np.bool_] = skewness * float(ndtri(level)) ** 3 <= 0.4
    return enough & symmetric


def _possible_discordances(totals: IntArray, n: int, level: float) -> tuple[FloatArray, FloatArray]:
    """Return the range of true discordances plausible for each total of discordant rows, (t,) and (t,).

    Exact binomial bounds, rounded outwards to steps that the grids of all differences contain.
    """
    tail = _OUTSIDE * (1 - level) / 2
    low = np.where(totals > 0, betaincinv(np.maximum(totals, 1), n - totals + 1, tail), 0.0)
    high = np.where(totals < n, betaincinv(totals + 1, np.maximum(n - totals, 1), 1 - tail), 1.0)
    low, high = (np.sqrt(n * end) / _END_STEP for end in (low, high))
    low, high = (np.square(steps * _END_STEP) / n for steps in (np.floor(low), np.ceil(high)))
    return low, np.minimum(high, 1.0)


def _critical_limits(totals: IntArray, check: _ErrorCheck) -> FloatArray:
    """Return, for each total, the largest limit of Tango's whose Buehler limit is at most the difference, (t,)."""
    low, high = (np.maximum(end, abs(check.difference)) for end in _possible_discordances(totals, check.n, check.level))
    grid = check.grid(float(low.min()), float(high.max()))
    violating, _ = check.violations(grid, check.difference)
    limits = np.full(grid.size + 1, check.difference)  # one more, for the end of the last range
    if violating.size:
        truth = Truth(check.n, check.difference, violating)
        limits[np.searchsorted(grid, violating)] = largest_limits(truth, check.allowed(violating), check.z)
    ranges = np.stack([np.searchsorted(grid, low), np.searchsorted(grid, high, side="right")], axis=1)
    lowest: FloatArray = np.minimum.reduceat(limits, ranges.ravel())[::2]
    return lowest


def _smallest_admissible(check: _ErrorCheck, discordance: FloatArray, limit: float) -> float:
    """Return the smallest difference, to `_RESOLUTION` from above, with an admissible error at `discordance`, (1,)."""
    allowed = float(check.allowed(discordance)[0])

    def log_excess(difference: float) -> float:
        error = float(replace(check, difference=difference).errors(discordance, limit)[0])
        return math.log(max(error, 1e-300) / allowed)

    inside, inside_excess = check.difference, log_excess(check.difference)
    width = 1 / check.n
    while (outside_excess := log_excess(outside := min(inside + width, (inside + 1) / 2))) > 0:
        inside, inside_excess, width = outside, outside_excess, 2 * width
    # False position with the Illinois rule: the weight of an end that stays is halved, for superlinear convergence.
    while outside - inside > _RESOLUTION:
        middle = inside + (outside - inside) * inside_excess / (inside_excess - outside_excess)
        middle = min(max(middle, inside + _RESOLUTION / 4), outside - _RESOLUTION / 4)
        if (middle_excess := log_excess(middle)) > 0:
            inside, inside_excess, outside_excess = middle, middle_excess, outside_excess / 2
        else:
            outside, outside_excess, inside_excess = middle, middle_excess, inside_excess / 2
    return outside
