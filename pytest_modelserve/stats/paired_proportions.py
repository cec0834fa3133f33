"""How much accuracy a candidate loses against its reference on the same rows: Tango's score interval, held exactly.

Of n rows, `lost` are right under the reference and wrong under the candidate, `gained` the other way round. Rows on
which both agree say nothing of the difference (lost − gained)/n beyond being there.
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

# Tango's score statistic for the drop between two models on the same rows, and the limit it gives.
#
# Of n rows, `lost` are right under the reference and wrong under the candidate, `gained` the other way round. Rows on
# which both agree say nothing of the difference (lost − gained)/n beyond being there.


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


# How likely Tango's limit is to fall within a given number, for a model whose true drop and discordance are known.
#
# The tables of n rows with Tango's limit at or below some number are enumerated by the rarer kind of discordant row:
# for
# each count of it, they are all tables with few enough lost rows, or with enough gained ones.


IntArray = NDArray[np.int64]

_LOG_MASS = 32.0
"""Counts of the rarer kind that together are less likely than 2·exp(−32) = 3e-14 are left out."""


@dataclass(frozen=True, slots=True)
class Truth:
    """`n` rows of models whose true drop is `difference`, one for each of the true discordances, (k,).

    Rows are lost with probability (discordance + difference)/2 and gained with (discordance − difference)/2, so that
    no discordance lies below the difference in size.
    """

    n: int
    difference: float
    discordances: FloatArray

    @property
    def rare(self) -> FloatArray:
        """The probability of the rarer kind, gained rows unless the difference is negative: (k, 1)."""
        probability: FloatArray = (self.discordances[:, None] - abs(self.difference)) / 2
        return probability

    @property
    def common(self) -> FloatArray:
        """The probability of the commoner kind among the rows that are not of the rarer one: (k, 1)."""
        probability: FloatArray = np.minimum((self.rare + abs(self.difference)) / (1 - self.rare), 1)
        return probability

    def rare_counts(self) -> IntArray:
        """The counts of the rarer kind that matter for any of the discordances: (c,)."""
        means = self.n * self.rare
        # Bernstein's inequality: a count leaves mean ± reach with probability below 2·exp(−_LOG_MASS).
        reach = _LOG_MASS / 3 + np.sqrt((_LOG_MASS / 3) ** 2 + 2 * means * _LOG_MASS)
        first, last = math.floor((means - reach).min()), math.ceil((means + reach).max())
        return np.arange(max(first, 0), min(last, self.n) + 1)

    def table_chances(self, rare: IntArray, common: IntArray) -> FloatArray:
        """The probability of each table, given its counts of both kinds, (t,), for each discordance: (k, t)."""
        both = _log_binomial(rare, self.n, self.rare) + _log_binomial(common, self.n - rare, self.common)
        return np.exp(both)


def probabilities_within(truth: Truth, limit: float, z: float) -> FloatArray:
    """P(Tango's limit at z is at most `limit`), for each discordance of the truth: (k,)."""
    rare = truth.rare_counts()
    weights = np.exp(_log_binomial(rare, truth.n, truth.rare))
    # A cell this unlikely costs as much as another to work out.
    cells = weights > 1e-14
    edge, rest = (
        np.broadcast_to(a, weights.shape)[cells] for a in (common_edge(truth, rare, limit, z), truth.n - rare)
    )
    share = np.broadcast_to(truth.common, weights.shape)[cells]
    below = np.where(edge > 0, bdtr(np.maximum(edge - 1, 0), rest, share), 0.0)
    if truth.difference < 0:
        below = np.where(edge > rest, 0.0, np.where(edge > 0, bdtrc(np.maximum(edge - 1, 0), rest, share), 1.0))
    weights[cells] *= below
    weights[~cells] = 0
    chances: FloatArray = weights.sum(axis=1)
    return chances


def common_edge(truth: Truth, rare: IntArray, limit: float, z: float) -> IntArray:
    """For each count of the rarer kind, where the tables with Tango's limit within `limit` end: (c,).

    Where lost rows are the commoner kind, the smallest count of them that is no longer within; where gained rows are,
    the smallest that is. One more than the rows there are, where no count is such.
    """
    lost_commoner, most = truth.difference >= 0, truth.n - rare + 1
    # No row's variance exceeds 1, so that the statistic is −z or 0 no further than this from where it is 0.
    balance, reach = truth.n * limit, z * math.sqrt(truth.n) + 2
    start, stop = (
        (rare + balance - reach, rare + balance + 2) if lost_commoner else (rare - balance - 2, rare - balance + reach)
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
    """For each discordance, the largest number within which Tango's limit falls no more often than `allowed`, (k,).

    Each of them, (k,), lies below the true difference. Found among the limits of the tables themselves, in order, so
    that no table is on the wrong side of the answer.
    """
    lower, upper = _limit_within_reason(truth, allowed, z), truth.difference
    rare = truth.rare_counts()
    edges = common_edge(truth, rare, lower, z), common_edge(truth, rare, upper, z)
    first, last = np.minimum(*edges), np.maximum(*edges)
    rare = np.repeat(rare, last - first)
    common = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
    lost, gained = (common, rare) if truth.difference >= 0 else (rare, common)
    limits = tango_limit(lost, gained, truth.n, z)
    order = np.argsort(limits)
    chances = truth.table_chances(rare[order], common[order])
    reached = probabilities_within(truth, lower, z)[:, None] + np.cumsum(chances, axis=1)
    # Just below the table with which the probability gets too large.
    too_large = np.append(limits[order], upper)[np.sum(reached <= allowed[:, None], axis=1)]
    largest: FloatArray = np.nextafter(too_large, -1)
    return largest


def _limit_within_reason(truth: Truth, allowed: FloatArray, z: float) -> float:
    """A number below the true difference within which Tango's limit falls no more often than allowed."""
    width = 1 / truth.n
    while np.any(probabilities_within(truth, lower := max(truth.difference - width, -1.0), z) > allowed):
        width *= 2
    return lower


def _log_binomial(count: IntArray, n: IntArray | int, p: FloatArray) -> FloatArray:
    # A probability of exactly 0 or 1 is as good as one that no count survives; 0·log 0 would be NaN.
    hit, miss = np.log(np.maximum(p, 1e-300)), np.log1p(-np.minimum(p, 1 - 1e-16))
    ways = gammaln(n + 1) - gammaln(count + 1) - gammaln(n - count + 1)
    logarithm: FloatArray = ways + count * hit + (n - count) * miss
    return logarithm


# Where Tango's limit must move so that it errs no more often than it may: exact unconditional limits.


TOLERATED = 1.1
"""How many times as often as its level says a limit may err. With 1, Tango's limit would have to give way nearly
everywhere, by a little that nobody could tell from chance, and power with it."""

_OUTSIDE = 1e-5
"""Share of the error rate that is spent on true discordances outside the range that is asked about."""

_BETWEEN = 6e-4
"""Share of the error rate by which the error can be higher between two discordances of the grid than at either."""

_STEP = 0.015
"""The grid's steps are 2·sinh(0.015·k) in the square root of an expected number of rows, whose standard deviation is
1/2: 0.03 apart where hardly any row is expected, wider where a row more or less is felt less."""

_END_STEP = 0.25
"""The step of the ends of ranges, in the square root of the expected discordant rows."""

_LOOKS = ((12, 0.9), (4, 0.985))
"""Of every twelfth, then fourth point of the grid, those matter around which the error is above this share of what is
allowed: in between, it is at most 6 % and 1 % higher than at both ends."""

_RESOLUTION = 1e-11
"""A limit that is moved lies at most this far above where it must."""


def buehler_limit(lost: int, gained: int, n: int, level: float) -> float:
    """Tango's upper limit of the drop at `level`, or the nearest number above it that errs seldom enough.

    A limit errs when the true drop is larger. For a true drop Δ, let p(Δ) be the probability that Tango's limit falls
    as low as it did or lower: the largest over all true discordances that the observed total of discordant rows leaves
    possible. It falls as Δ rises. The answer is the smallest Δ from Tango's limit on with p(Δ) at most
    1.1·(1 − level), less what is spent on discordances left out. So it errs at most 1.1·(1 − level) of the time,
    whatever is true; and where Tango's limit keeps that, it stays.

    Ordered by Tango's limit, not by his statistic at Δ as in Chan (1998), tables keep one order for every Δ: a model
    that passes at a margin passes at every larger one.

    Source: Buehler (1957), Journal of the American Statistical Association 52, 482–493, for the exact limit of tables
    in a given order; Berger and Boos (1994), the same 89, 1012–1016, for the range of discordances.
    """
    limit = difference = float(tango_limit(lost, gained, n, float(ndtri(level))))
    low, high = (float(end) for end in _discordances_possible(np.asarray(lost + gained), n, level))
    # Most of the way with few of the discordances, the rest with all.
    for every in (_LOOKS[0][0], 1):
        # All rows lost: no drop is larger.
        while difference < 1:
            guard = _Guard(n, difference, level)
            guilty, errors = guard.too_large(guard.grid(low, high)[::every], limit)
            if not guilty.size:
                break
            # Until the worst is content; then they are asked again.
            difference = _content_from(guard, guilty[[np.argmax(errors)]], limit)
    return difference


def first_lost_outside(totals: IntArray, n: int, difference: float, level: float) -> IntArray:
    """For each total of discordant rows, the smallest `lost` whose guarded limit exceeds `difference`; else total + 1.

    `totals` rise, (t,).
    """
    limits, z = _limits_that_count(totals, _Guard(n, difference, level)), ndtri(level)
    low, high = np.zeros_like(totals), totals + 1
    while np.any(low < high):
        middle = np.minimum((low + high) // 2, totals)
        # The statistic rises with `lost` at a fixed total.
        above = score(middle, totals - middle, n, limits) > -z
        low, high = np.where(above, low, middle + 1), np.where(above, middle, high)
    return low


def rows_without_discordance(difference: float, level: float) -> int:
    """The fewest rows with which the guarded limit of no discordant row is at most `difference`, above 0.

    Tango's limit is then z²/(n + z²), and falls that low most easily where every discordant row is a lost one: with
    probability (1 − difference)ⁿ. For a difference of half or more, a row or two too few.
    """
    z = float(ndtri(level))
    by_tango = z**2 * (1 - difference) / difference
    by_chance = math.log((TOLERATED - _OUTSIDE) * (1 - level)) / math.log1p(-difference)
    return math.ceil(max(by_tango, by_chance))


@dataclass(frozen=True, slots=True)
class _Guard:
    """What is asked of a limit at `level` when the true drop is `difference`."""

    n: int
    difference: float
    level: float

    @property
    def z(self) -> float:
        return float(ndtri(self.level))

    def grid(self, low: float, high: float) -> FloatArray:
        """The true discordances to ask about from `low` to `high`, ascending; none is below the difference in size.

        Where rows of a kind are few, one of them more or less is felt: the steps are fine in the root of the expected
        rows of the rarer kind, and from a half on in that of the rows on which both models agree.
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
        """How often a limit may err at each: less between two points of the grid than at its lower end."""
        between = np.where(discordances > abs(self.difference), _BETWEEN, 0.0)
        return (TOLERATED - _OUTSIDE - between) * (1 - self.level)

    def errors(self, discordances: FloatArray, limit: float) -> FloatArray:
        """The probability at each that Tango's limit falls within `limit`."""
        possible = np.maximum(discordances, abs(self.difference))
        return probabilities_within(Truth(self.n, self.difference, possible), limit, self.z)

    def too_large(self, grid: FloatArray, limit: float) -> tuple[FloatArray, FloatArray]:
        """The discordances of the grid at which the error is larger than allowed, and the errors."""
        near = grid[~tango_suffices(self.n, self.difference, grid, self.level)]
        for every, share in _LOOKS:
            near = self._near_too_large(near, limit, every, share) if near.size else near
        errors = self.errors(near, limit) if near.size else near
        guilty = errors > self.allowed(near)
        return near[guilty], errors[guilty]

    def _near_too_large(self, grid: FloatArray, limit: float, every: int, share: float) -> FloatArray:
        """What is left of the grid when the points around which no error is nearly too large are taken out."""
        asked = np.unique(np.append(np.arange(0, grid.size, every), grid.size - 1))
        asked = asked[self.errors(grid[asked], limit) > share * self.allowed(grid[asked])]
        near = np.unique(asked[:, None] + np.arange(-every, every + 1))
        return grid[near[(near >= 0) & (near < grid.size)]]


def _expected_rows(low: float, high: float) -> FloatArray:
    """Expected numbers of rows from `low` to `high`, in the grid's steps."""
    first, last = (math.asinh(math.sqrt(end) / 2) / _STEP for end in (low, high))
    roots: FloatArray = 2 * np.sinh(np.arange(math.ceil(first), math.floor(last) + 1) * _STEP)
    return roots * roots


def tango_suffices(n: int, difference: float, discordances: FloatArray, level: float) -> NDArray[np.bool_]:
    """The discordances at which Tango's limit is known to err less than 1.1 times as often as its level says.

    With at least 80 discordant rows expected, 10 of them of the rarer kind, and a skewness of lost − gained, about
    |difference|/(sqrt(n)·discordance^1.5), of at most 0.4/z³, the error enumerated is at most 1.08 times nominal for
    levels from 0.9 to 0.9999 (benchmarks/drop_error_rates.py). Saves time where rows are many.
    """
    enough = (n * discordances >= 80) & (n * (discordances - abs(difference)) >= 20) & (discordances <= 0.6)
    skewness: FloatArray = abs(difference) / (math.sqrt(n) * np.maximum(discordances, 1 / n) ** 1.5)
    symmetric: NDArray[np.bool_] = skewness * float(ndtri(level)) ** 3 <= 0.4
    return enough & symmetric


def _discordances_possible(totals: IntArray, n: int, level: float) -> tuple[FloatArray, FloatArray]:
    """The range of true discordances that each total of discordant rows leaves possible, (t,) and (t,).

    Exact binomial bounds, rounded outwards to steps that the grids of all differences contain.
    """
    tail = _OUTSIDE * (1 - level) / 2
    low = np.where(totals > 0, betaincinv(np.maximum(totals, 1), n - totals + 1, tail), 0.0)
    high = np.where(totals < n, betaincinv(totals + 1, np.maximum(n - totals, 1), 1 - tail), 1.0)
    low, high = (np.sqrt(n * end) / _END_STEP for end in (low, high))
    low, high = (np.square(steps * _END_STEP) / n for steps in (np.floor(low), np.ceil(high)))
    return low, np.minimum(high, 1.0)


def _limits_that_count(totals: IntArray, guard: _Guard) -> FloatArray:
    """For each total, the largest limit of Tango's whose guarded limit is still at most the difference: (t,)."""
    low, high = (np.maximum(end, abs(guard.difference)) for end in _discordances_possible(totals, guard.n, guard.level))
    grid = guard.grid(float(low.min()), float(high.max()))
    guilty, _ = guard.too_large(grid, guard.difference)
    limits = np.full(grid.size + 1, guard.difference)  # one more, for the end of the last range
    if guilty.size:
        truth = Truth(guard.n, guard.difference, guilty)
        limits[np.searchsorted(grid, guilty)] = largest_limits(truth, guard.allowed(guilty), guard.z)
    ranges = np.stack([np.searchsorted(grid, low), np.searchsorted(grid, high, side="right")], axis=1)
    lowest: FloatArray = np.minimum.reduceat(limits, ranges.ravel())[::2]
    return lowest


def _content_from(guard: _Guard, discordance: FloatArray, limit: float) -> float:
    """The smallest difference, to `_RESOLUTION` and from above, at which one discordance, (1,), no longer objects."""
    allowed = float(guard.allowed(discordance)[0])

    def log_excess(difference: float) -> float:
        error = float(replace(guard, difference=difference).errors(discordance, limit)[0])
        return math.log(max(error, 1e-300) / allowed)

    inside, inside_excess = guard.difference, log_excess(guard.difference)
    width = 1 / guard.n
    while (outside_excess := log_excess(outside := min(inside + width, (inside + 1) / 2))) > 0:
        inside, inside_excess, width = outside, outside_excess, 2 * width
    # False position; the weight of an end that stays is halved, or its side would close in only linearly (Illinois).
    while outside - inside > _RESOLUTION:
        middle = inside + (outside - inside) * inside_excess / (inside_excess - outside_excess)
        middle = min(max(middle, inside + _RESOLUTION / 4), outside - _RESOLUTION / 4)
        if (middle_excess := log_excess(middle)) > 0:
            inside, inside_excess, outside_excess = middle, middle_excess, outside_excess / 2
        else:
            outside, outside_excess, inside_excess = middle, middle_excess, inside_excess / 2
    return outside


def paired_difference_bounds(lost: int, gained: int, n: int, *, low_level: float, high_level: float) -> Bounds:
    """The drop (lost − gained)/n between the bounds of Tango's score interval, all from −1 to 1.

    The low end is where `tango_statistic` reaches z(low_level), the high end where it reaches −z(high_level), rounded
    outwards to the next float: asymptotic levels, which a model exactly at a margin of 1 point breaks in 6.8 % of
    samples of 268 rows instead of 5 %, and in 0.40 % of samples of 1,018 rows instead of 0.1 %. So an end that would
    be wrong more than 1.1 times as often as its level says moves outwards to where an exact unconditional test holds
    that: the high end lies below the true drop in at most 1.1·(1 − high_level) of samples, the low end above it in at
    most 1.1·(1 − low_level), for any n and any share of discordant rows. Where many rows are discordant both ways,
    Tango's ends stay. `buehler_limit` has the method; benchmarks/drop_error_rates.py enumerates what is left.

    With no discordant row the interval still has width: at 95 % its high end is 1 − 0.055^(1/n), as "no error in n
    rows" does not mean "no error". All rows lost make the high end 1.

    Takes milliseconds where Tango's ends stay, else tens of them for n up to 10,000 and up to 0.2 s for 100,000.

    Assumes independent rows. Sources: Tango (1998), Statistics in Medicine 17, 891–908, equations 24–26; Buehler
    (1957), Journal of the American Statistical Association 52, 482–493; Berger and Boos (1994), the same 89, 1012–1016.

    UsageError for no rows, for counts that are negative, not integers or together more than n, and for a level outside
    (0.5, 1).
    """
    n = check_count("n", n, minimum=1)
    lost, gained = check_count("lost", lost), check_count("gained", gained)
    if lost + gained > n:
        raise UsageError(f"lost and gained rows are among the n rows: {lost} + {gained} of {n} cannot be")
    low_level, high_level = check_level("low_level", low_level), check_level("high_level", high_level)
    return Bounds(
        estimate=(lost - gained) / n,
        low=-buehler_limit(gained, lost, n, low_level),  # seen from the other model, a loss is a gain
        high=buehler_limit(lost, gained, n, high_level),
        low_level=low_level,
        high_level=high_level,
    )
