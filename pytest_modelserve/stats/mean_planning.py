"""What a sample can decide of a mean: the chance of each verdict, and about how many values would decide.

The verdicts are those of a budget "at most `limit`" over `mean_bounds`; for "at least", turn every sign. Both are
approximations for planning: the values are taken to be about normal, and to scatter as the sample does.
"""

from __future__ import annotations

import math
from bisect import bisect_left

from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri, stdtrit

from pytest_modelserve.stats import _arguments
from pytest_modelserve.stats.block_means import block_means, reach
from pytest_modelserve.stats.noninferiority import VerdictShares

_MOST_BLOCKS = 10**12
"""Nobody labels more: where that many do not decide, the budget is at fault."""


def mean_power(
    values: ArrayLike, *, truth: float, limit: float, block: int = 1, confidence: float, alpha: float
) -> VerdictShares:
    """The probability of each verdict with as many `values` (n,), were their true mean `truth`.

    A single block decides nothing: it is INCONCLUSIVE for sure. Values that do not vary decide everything. UsageError
    as for `block_means`, for a confidence outside (0.5, 1) and an alpha outside (0, 0.5).
    """
    confidence, alpha = _arguments.level("confidence", confidence), _arguments.error_rate("alpha", alpha)
    sample = block_means(values, block=block)
    if sample.blocks < 2:
        return VerdictShares(passes=0.0, inconclusive=1.0, fails=0.0)
    if sample.standard_error == 0:
        return VerdictShares(passes=float(truth <= limit), inconclusive=0.0, fails=float(truth > limit))
    passes = float(ndtr((limit - truth - reach(sample, confidence, below=False)) / sample.standard_error))
    fails = float(ndtr((truth - limit - reach(sample, 1 - alpha, below=True)) / sample.standard_error))
    return VerdictShares(passes=passes, inconclusive=max(1 - passes - fails, 0.0), fails=fails)


def values_needed(
    values: ArrayLike,
    *,
    truth: float,
    limit: float,
    block: int = 1,
    confidence: float,
    alpha: float,
    power: float = 0.9,
) -> int | None:
    """About how many values decide, with probability `power`, on a true mean of `truth`: PASS up to `limit`, else FAIL.

    The smallest number of blocks that is at least (t + z(power))²·s²/(limit − truth)², where s² is the variance of a
    block in `values` (n,) and t, Student's quantile for that many blocks, is stretched as their skewness stretches it.
    None where no number is enough (`truth` is `limit`, or nearly) or a single block tells no variance. UsageError as
    for `mean_power`, and for a power outside (0.5, 1).
    """
    confidence, alpha = _arguments.level("confidence", confidence), _arguments.error_rate("alpha", alpha)
    level, z = confidence if truth <= limit else 1 - alpha, float(ndtri(_arguments.level("power", power)))
    sample = block_means(values, block=block)
    if sample.blocks < 2 or truth == limit:
        return None
    if sample.standard_error == 0:
        return math.ceil(2 * sample.n / sample.blocks)
    student = float(stdtrit(sample.blocks - 1, level)) * sample.standard_error
    stretch = reach(sample, level, below=truth > limit) / student
    spread = sample.standard_error * math.sqrt(sample.blocks) / abs(limit - truth)

    def is_enough(blocks: int) -> bool:
        return math.sqrt(blocks) >= (float(stdtrit(blocks - 1, level)) * stretch + z) * spread

    enough = 2
    while not is_enough(enough):
        if enough > _MOST_BLOCKS:
            return None
        enough *= 2
    blocks = bisect_left(range(enough), True, lo=max(enough // 2, 2), key=is_enough)
    return math.ceil(blocks * sample.n / sample.blocks)
