"""Distribution-free bounds of a quantile from order statistics, for independent and for dependent samples."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, bdtrc, stdtrit

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.autocorrelation import serial_dependence
from pytest_modelserve.stats.intervals import Bounds, check_level, check_vector


def quantile_bounds(samples: ArrayLike, quantile: float, *, low_level: float, high_level: float) -> Bounds:
    """Return the `quantile` of the distribution of `samples` (n,), bounded by two order statistics.

    The estimate is the inverse of the empirical distribution function: the smallest sample that at least that
    proportion of the samples does not exceed. With B ~ Bin(n, quantile), the low end is the largest X₍ᵣ₎ with P(B >= r)
    >= `low_level` and the high end the smallest X₍ₛ₎ with P(B < s) >= `high_level`. If n is too small for any order
    statistic to have that level, the end is infinite; `samples_for_quantile` returns how many are enough.

    Assumes independent samples of one distribution of any shape; ties only raise the levels. Infinite samples (a call
    that never returned) are ordered like any other. Source: David and Nagaraja (2003),
    Order Statistics, 3rd ed., section 7.1.

    UsageError for no samples, NaN among them, more than one axis, a quantile outside (0, 1) or a level outside
    (0.5, 1).
    """
    ordered = _ordered(samples)
    quantile = _check_quantile(quantile)
    low_level, high_level = check_level("low_level", low_level), check_level("high_level", high_level)
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
    """Return the median of the distribution of `samples` (n,) with the sign test's interval.

    The case `quantile=0.5` of `quantile_bounds`: for an even n the estimate is the lower of the two middle samples.
    """
    return quantile_bounds(samples, 0.5, low_level=low_level, high_level=high_level)


def samples_for_quantile(quantile: float, *, low_level: float, high_level: float) -> int:
    """Return the smallest n for which both ends of `quantile_bounds` are finite: 59 for a 95 % high end of a p95.

    Solves 1 − quantileⁿ >= high_level and 1 − (1 − quantile)ⁿ >= low_level. UsageError as for `quantile_bounds`.
    """
    quantile = _check_quantile(quantile)
    low_level, high_level = check_level("low_level", low_level), check_level("high_level", high_level)

    def both_finite(n: int) -> bool:
        return _low_rank(n, quantile, low_level) >= 1 and _high_rank(n, quantile, high_level) <= n

    # The closed form may be off by one by rounding, so the result is checked with the ranks of quantile_bounds.
    n = math.ceil(max(math.log1p(-high_level) / math.log(quantile), math.log1p(-low_level) / math.log1p(-quantile)))
    while n > 1 and both_finite(n - 1):
        n -= 1
    while not both_finite(n):
        n += 1
    return n


def _rank(n: int, quantile: float) -> int:
    """Return the smallest k with k/n >= quantile; n·quantile alone rounds 100 · 0.07 up to 7.000000000000001."""
    rank = math.ceil(n * quantile)
    return rank - 1 if (rank - 1) / n >= quantile else rank


def _low_rank(n: int, quantile: float, level: float) -> int:
    """Return the largest r with P(B >= r) >= level; 0 where there is none."""
    return bisect_left(range(1, n + 1), True, key=lambda r: bdtrc(r - 1, n, quantile) < level)


def _high_rank(n: int, quantile: float, level: float) -> int:
    """Return the smallest s with P(B < s) >= level; n + 1 where there is none."""
    return 1 + bisect_left(range(1, n + 1), True, key=lambda s: bdtr(s - 1, n, quantile) >= level)


def _ordered(samples: ArrayLike) -> NDArray[np.float64]:
    values = check_vector("samples", samples)
    if not values.size:
        raise UsageError("samples must not be empty: a quantile needs at least one")
    if missing := int(np.isnan(values).sum()):
        raise UsageError(f"samples must not be NaN, got {missing} of {values.size}: leave them out")
    return np.sort(values)


def _check_quantile(quantile: float) -> float:
    if not 0 < quantile < 1:
        raise UsageError(f"quantile must be above 0 and below 1 (for example 0.95), got {quantile}")
    return float(quantile)


# With fewer blocks `serial_dependence` finds none, which would be taken for independence.
_FEWEST_BLOCKS = 8
# Blocks as long as the dependence still depend on their neighbors; at twice that length hardly.
_MARGIN = 2
# Fewer samples beyond a level do not show whether they come in bursts.
_FEWEST_BEYOND = 10
# Of bursts that leave too few blocks to rank, the proportion beyond a level is known badly: it must be so much smaller
# than that beyond the quantile. In 300 simulated samples of 20,000, with slow periods of 2,000 and 4,000 in a tenth and
# three tenths of the time, the end misses in 30.3 (rare), 8.3 (long) and 1.3 %; without the rule in 30.3, 8.0 and
# 1.0 %, where 36, 16 and 13 % of the ends are infinite.
_FEW_BLOCKS_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class DependentBounds:
    """Bounds of a quantile, and the length of the blocks within which samples near it depend on each other.

    `block` is 1 without dependence, and 0 where no block contains it, as in a drift.
    """

    bounds: Bounds
    block: int


def dependent_quantile_bounds(
    samples: ArrayLike, quantile: float, *, low_level: float, high_level: float
) -> DependentBounds:
    """Return the `quantile` of serially dependent `samples` (n,), with blocks of dependent samples counted as one.

    An end at a level t claims that a proportion of samples lies beyond t, so the dependence of exceeding t matters.
    Each end starts at the order statistic of `quantile_bounds`. Where `dependence_block` finds that samples beyond it
    come in blocks, it moves to the order statistic of n // block independent samples, where dependence is measured
    again, and so on outwards. Without dependence these are `quantile_bounds`. Where too few blocks remain to rank one,
    a high end is also a level that at least 10 samples exceed, but in all eighths of the sample a tenth of those that
    may, by Student's t over the eighths. An end that no level supports is infinite.

    Bursts that are rarer than the sample is long cannot be seen. Simulated with 472 samples of bursts of 3 to 40
    (tests/stats/test_quantiles.py): a low end, on which FAIL rests, keeps its level. A high end keeps it where each
    sample contains several bursts, and not where most contain none.

    Source: the order statistics as for `quantile_bounds`; the effective number by batch means, Law, Simulation Modeling
    and Analysis, chapter 9. UsageError as for `quantile_bounds`.
    """
    values = check_vector("samples", samples)
    plain = quantile_bounds(values, quantile, low_level=low_level, high_level=high_level)
    ends = _Ends(values, np.sort(values), quantile, low_level, high_level)
    bounds = Bounds(plain.estimate, ends.low(plain.low), ends.high(plain.high), low_level, high_level)
    return DependentBounds(bounds, dependence_block(values >= plain.estimate))


def dependence_block(values: ArrayLike) -> int:
    """Return the block length of consecutive `values` (n,) from which on blocks are independent of each other.

    1 without a sign of dependence. Otherwise blocks are doubled until their means show none, and once more; 0 where
    fewer than 8 blocks would remain. UsageError as for `serial_dependence`.
    """
    numbers = check_vector("values", values)
    if serial_dependence(numbers) is None:
        return 1
    block = 2
    while numbers.size // block >= _FEWEST_BLOCKS:
        count = numbers.size // block
        if serial_dependence(numbers[: count * block].reshape(count, block).mean(axis=1)) is None:
            return _MARGIN * block
        block *= 2
    return 0


@dataclass(frozen=True, slots=True)
class _Ends:
    """Searches for the two ends; `ordered` are the sorted values."""

    values: NDArray[np.float64]
    ordered: NDArray[np.float64]
    quantile: float
    low_level: float
    high_level: float

    def high(self, plain: float) -> float:
        """Return the high end: so few samples lie above it that more would be likely."""
        if math.isinf(plain):
            return plain
        n = self.values.size
        above, last = n - 1 - int(np.searchsorted(self.ordered, plain)), False
        while not last:
            last = above == 0
            block = dependence_block(self.values >= self.ordered[n - self._tested(above)])
            rank = self._ranks(n // block).high if block else math.inf
            supported = -1 if math.isinf(rank) else n * (n // block - int(rank)) // (n // block)
            is_rare = supported < 0 and self._are_rare_throughout(above, few_blocks=block > 0)
            if above <= supported or is_rare:
                return float(self.ordered[n - 1 - above])
            above = supported if supported >= 0 else above // 2
        return math.inf

    def low(self, plain: float) -> float:
        """Return the low end: so few samples lie below it that fewer would be unlikely."""
        if math.isinf(plain):
            return plain
        n = self.values.size
        below, last = int(np.searchsorted(self.ordered, plain)), False
        while not last:
            last = below == 0
            block = dependence_block(self.values <= self.ordered[self._tested(below) - 1])
            rank = self._ranks(n // block).low if block else -math.inf
            supported = -1 if math.isinf(rank) else n * (int(rank) - 1) // (n // block)
            if below <= supported:
                return float(self.ordered[below])
            below = supported if supported >= 0 else max(2 * below - n, 0)
        return -math.inf

    def _are_rare_throughout(self, above: int, *, few_blocks: bool) -> bool:
        """Return whether few samples lie beyond the end in all eighths of the sample; with `few_blocks`, very few.

        In a drift no block contains the dependence, and of long bursts too few blocks remain to rank one, but a level
        far beyond most samples is still above the quantile.
        """
        if few_blocks and above < _FEWEST_BEYOND:
            return False  # none beyond it in a drift is no sign of a bound
        share = _FEW_BLOCKS_SHARE if few_blocks else 1.0
        beyond = self.values > self.ordered[self.values.size - 1 - above]
        proportions = np.array([part.mean() for part in np.array_split(beyond, _FEWEST_BLOCKS)])
        width = stdtrit(_FEWEST_BLOCKS - 1, self.high_level) * proportions.std(ddof=1) / math.sqrt(_FEWEST_BLOCKS)
        return bool(proportions.mean() + width <= share * (1 - self.quantile))

    def _tested(self, beyond: int) -> int:
        """Return the number of extreme samples to test for bursts: enough to show them, and at least `beyond`."""
        return max(beyond, min(_FEWEST_BEYOND, self.values.size))

    def _ranks(self, count: int) -> Bounds:
        """Return the ranks, from 1, of both ends among `count` independent samples."""
        ranks = np.arange(1, count + 1)
        return quantile_bounds(ranks, self.quantile, low_level=self.low_level, high_level=self.high_level)
