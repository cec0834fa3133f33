"""How likely Tango's limit is to fall within a given number, for a model whose true drop and discordance are known.

The tables of n rows with Tango's limit at or below some number are enumerated by the rarer kind of discordant row: for
each count of it, they are all tables with few enough lost rows, or with enough gained ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, gammaln

from pytest_modelserve.stats.tango import FloatArray, score, tango_limit

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


def chances_within(truth: Truth, limit: float, z: float) -> FloatArray:
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
    reached = chances_within(truth, lower, z)[:, None] + np.cumsum(chances, axis=1)
    # Just below the table with which the probability gets too large.
    too_large = np.append(limits[order], upper)[np.sum(reached <= allowed[:, None], axis=1)]
    largest: FloatArray = np.nextafter(too_large, -1)
    return largest


def _limit_within_reason(truth: Truth, allowed: FloatArray, z: float) -> float:
    """A number below the true difference within which Tango's limit falls no more often than allowed."""
    width = 1 / truth.n
    while np.any(chances_within(truth, lower := max(truth.difference - width, -1.0), z) > allowed):
        width *= 2
    return lower


def _log_binomial(count: IntArray, n: IntArray | int, p: FloatArray) -> FloatArray:
    # A probability of exactly 0 or 1 is as good as one that no count survives; 0·log 0 would be NaN.
    hit, miss = np.log(np.maximum(p, 1e-300)), np.log1p(-np.minimum(p, 1 - 1e-16))
    ways = gammaln(n + 1) - gammaln(count + 1) - gammaln(n - count + 1)
    logarithm: FloatArray = ways + count * hit + (n - count) * miss
    return logarithm
