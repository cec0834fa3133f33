"""E-processes for a change of a mean or of a rate at an unknown time, against a reference sample of finite size.

An e-process has an expectation of at most 1 at every time if no change exceeds the tolerance. It then ever reaches 1/α
with probability at most α (Ville 1939). Here it is a mixture over the start τ of a change. A mixture keeps
the property, and so does one that leaves some starts out. The value depends on the set of observations only, not on
the order in which they arrive.

Observations come in blocks of time slots: (blocks, streams) totals and numbers of rows, in the order of time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainccinv, betaincinv, log_ndtr, logsumexp

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.intervals import check_count, check_error_rate

Floats = NDArray[np.float64]

SHIFT_SCALE = 0.1
"""Standard deviation of the shifts that the mixture over shifts expects, in standard deviations of the stream."""
_FIRST_WEIGHT = 0.25
"""Prior probability that the change starts in the first slot: a model is served with a shift more often than not."""
_RATES = 10
"""Alternative rates: 1/2, 1/4, … of the way from the highest rate of the hypothesis to 1."""
_SINGLE_SLOTS = 16
"""The newest slots are blocks of their own. Older blocks double in length whenever their age doubles."""


def mean_log_e(
    totals: ArrayLike, rows: ArrayLike, *, reference_rows: ArrayLike, tolerated: ArrayLike, side: ArrayLike
) -> Floats:
    """Return the logarithm of the e-value of a changed mean for each start of the change, (blocks, streams).

    The change starts with block b, so that all rows from b on are compared. Without a tolerance the reference is the
    reference sample with all rows before b, and the mean effect is N(0, 0.1²) distributed. The result is a likelihood
    ratio of location-invariant data. With a tolerance, or one side, the reference is the reference sample alone. The
    effect beyond the tolerance is half-normal, against an effect of exactly the tolerance. Block totals are taken as
    normal.

    Args:
        totals: Sums of scores (blocks, streams) whose mean is 0 and variance 1 in the reference.
        rows: The number of scores (blocks, streams); 0 where a stream has none.
        reference_rows: The size of the reference sample (streams,).
        tolerated: The largest tolerated |mean| (streams,), at least 0.
        side: 1 for a higher mean, −1 for a lower one, 0 for both (streams,).

    Returns:
        0 where there are no rows from the block on.

    Source: Robbins (1970), Annals of Mathematical Statistics 41, 1397–1409 (normal mixtures); Howard, Ramdas, McAuliffe
    and Sekhon (2021), Annals of Statistics 49, 1055–1080 (one-sided ones).

    Example:
        >>> totals, rows = [[12.0], [480.0]], [[10_000], [10_000]]
        >>> mean_log_e(totals, rows, reference_rows=[10_000], tolerated=[0.0], side=[0]).round(2)
        array([[-0.12],
               [ 5.27]])
    """
    sums, counts = np.asarray(totals, dtype=np.float64), np.asarray(rows, dtype=np.float64)
    n, limit, direction = (np.asarray(each, dtype=np.float64) for each in (reference_rows, tolerated, side))
    if (limit < 0).any():
        raise UsageError(f"tolerated must be at least 0, got {limit.min()}")
    after, rows_after = _from_block_on(sums), _from_block_on(counts)
    adaptive = (limit == 0) & (direction == 0)
    rows_before = n + np.where(adaptive, np.cumsum(counts, axis=0) - counts, 0.0)
    before = np.where(adaptive, np.cumsum(sums, axis=0) - sums, 0.0)
    empty = rows_after == 0
    post = after / np.where(empty, 1.0, rows_after)
    weight = 1 / (1 / rows_before + 1 / np.where(empty, 1.0, rows_after))
    shrunk = 1 + weight * SHIFT_SCALE**2
    difference = post - before / rows_before
    with_both = -0.5 * np.log(shrunk) + (weight * difference * SHIFT_SCALE) ** 2 / (2 * shrunk)
    scale = weight * SHIFT_SCALE / np.sqrt(shrunk)
    up, down = (scale * (s * difference - limit) for s in (1, -1))
    beyond = [-0.5 * np.log(shrunk) + u * u / 2 + log_ndtr(u) for u in (up, down)]
    one_sided = np.where(direction > 0, beyond[0], beyond[1]) + math.log(2)
    found = np.where(direction != 0, one_sided, np.where(adaptive, with_both, np.logaddexp(*beyond)))
    return np.where(empty, 0.0, found)


def rate_log_e(events: ArrayLike, rows: ArrayLike, *, limit: ArrayLike) -> Floats:
    """Return the logarithm of the e-value of a rate above `limit` for each start of the change, (blocks, streams).

    A mixture of ten binomial likelihood ratios, with rates of 1/2, 1/4, … of the way from the limit to 1. Each of
    them expects at most 1 for any rate up to the limit, without an approximation, however rare the events are. Where
    the observed rate is below the limit, the value is −inf: every ratio is below 1 there, and leaving it out is valid.

    Args:
        events: Numbers of events (blocks, streams); fractions are allowed for dependent rows.
        rows: Numbers of rows (blocks, streams).
        limit: The highest rate of the hypothesis (streams,), from 0 to 1.

    Source: Wald (1945), Annals of Mathematical Statistics 16, 117–186; mixtures as in Robbins (1970).

    Example:
        >>> rate_log_e([[3.0], [30.0]], [[1000], [1000]], limit=[0.01]).round(1)
        array([[ 1.9],
               [10.7]])
    """
    found, bound = np.asarray(events, dtype=np.float64), np.asarray(limit, dtype=np.float64)
    hits, trials = _from_block_on(found), _from_block_on(np.asarray(rows, dtype=np.float64))
    value = np.full(hits.shape, -np.inf)
    block, stream = np.nonzero((hits > bound * trials) & (bound < 1))
    if block.size:
        k, n, p = hits[block, stream], trials[block, stream], bound[stream]
        steps = 0.5 ** np.arange(1, _RATES + 1)
        rates = p[:, np.newaxis] + (1 - p[:, np.newaxis]) * steps
        with np.errstate(divide="ignore"):
            gain = np.log(rates) - np.log(p)[:, np.newaxis]
        ratios = k[:, np.newaxis] * gain + (n - k)[:, np.newaxis] * np.log1p(-steps)
        value[block, stream] = logsumexp(ratios, axis=1) - math.log(_RATES)
    return value


def rate_limits(events: ArrayLike, rows: ArrayLike, *, alpha: float) -> tuple[Floats, Floats]:
    """Return lower and upper limits of rates (streams,), each missed with probability at most `alpha`.

    Clopper and Pearson (1934), Biometrika 26, 404–413; fractions are allowed for dependent rows.
    """
    check_error_rate("alpha", alpha)
    k, n = np.asarray(events, dtype=np.float64), np.asarray(rows, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        low = np.where(k > 0, betaincinv(np.maximum(k, 1e-300), n - k + 1, alpha), 0.0)
        high = np.where(k < n, betainccinv(k + 1, np.maximum(n - k, 1e-300), alpha), 1.0)
    return low, high


@dataclass(frozen=True, slots=True)
class Starts:
    """The possible starts of a change, and their prior probabilities, when `latest` is the newest slot with data.

    `slots` are the first slots of the blocks, and `weights` belong to them. `future` is the weight of later slots, from
    which nothing is known: their e-value is 1. The weights of all slots of a life add up to 1; slots that lie inside
    a block of several slots are left out.
    """

    slots: NDArray[np.int64]
    weights: Floats
    future: float

    @classmethod
    def of(cls, latest: int, *, life: int) -> Starts:
        """Return the starts: 1/4 for slot 0, and the rest evenly over the other slots of the life."""
        check_count("life", life, minimum=2)
        slots = block_starts(check_count("latest", latest))
        later = (1 - _FIRST_WEIGHT) / (life - 1)
        weights = np.where(slots == 0, _FIRST_WEIGHT, np.where(slots < life, later, 0.0))
        return cls(slots, weights, later * max(life - 1 - latest, 0))

    def block_of(self, slot: ArrayLike) -> NDArray[np.int64]:
        """Return the index of the block of each slot."""
        return np.searchsorted(self.slots, slot, side="right") - 1


def block_starts(latest: int) -> NDArray[np.int64]:
    """Return the first slots of all blocks up to the slot `latest`, rising.

    The newest 16 slots are blocks, and blocks of an age from 16·2ᵏ to 32·2ᵏ slots have 2ᵏ⁺¹ slots and start at
    multiples of it. A start that is left out never comes back, so that blocks can be added up as they grow old. There
    are about 16 + 8·log₂(latest/16).

    Example:
        >>> block_starts(20).tolist()
        [0, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
    """
    newest, size, span = latest, 1, _SINGLE_SLOTS
    parts: list[NDArray[np.int64]] = []
    while newest >= 0:
        oldest = max(newest - span + 1, 0)
        parts.append(np.arange(-(-oldest // size) * size, newest + 1, size, dtype=np.int64))
        newest, size, span = oldest - 1, 2 * size, _SINGLE_SLOTS * size
    return np.concatenate(parts[::-1])


def mixture_log_e(log_e: ArrayLike, starts: Starts) -> Floats:
    """Return the logarithm of each stream's e-value (streams,): the mixture over all starts, later ones included."""
    values = np.asarray(log_e, dtype=np.float64)
    with np.errstate(divide="ignore"):
        weighted = np.concatenate([values + np.log(starts.weights)[:, np.newaxis], np.full_like(values[:1], 0.0)])
        weighted[-1] = np.log(starts.future)
    mixed: Floats = logsumexp(weighted, axis=0)
    return mixed


def start_probabilities(log_e: ArrayLike, starts: Starts) -> Floats:
    """Return the posterior probability of each start (blocks,) of one stream's change, given that it has changed."""
    with np.errstate(divide="ignore"):
        weighted = np.asarray(log_e, dtype=np.float64) + np.log(starts.weights)
    probabilities: Floats = np.exp(weighted - logsumexp(weighted))
    return probabilities


def _from_block_on(values: Floats) -> Floats:
    return np.cumsum(values[::-1], axis=0)[::-1]
