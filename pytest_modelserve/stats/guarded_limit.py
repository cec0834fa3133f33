"""Where Tango's limit must move so that it errs no more often than it may: exact unconditional limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri

from pytest_modelserve.stats.limit_chances import IntArray, Truth, chances_within, largest_limits
from pytest_modelserve.stats.tango import FloatArray, score, tango_limit

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


def guarded_limit(lost: int, gained: int, n: int, level: float) -> float:
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
        return chances_within(Truth(self.n, self.difference, possible), limit, self.z)

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
