"""What a sample can decide of a mean: the chance of each verdict, and about how many values would decide.

The verdicts are those of a budget "at most `limit`" over `mean_bounds`; for "at least", turn every sign. Both are
approximations for planning: the values are taken to be about normal, and to scatter as the sample does.
"""

from __future__ import annotations

import math

from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri, stdtrit

from pytest_modelserve.stats import _arguments
from pytest_modelserve.stats.block_means import block_means
from pytest_modelserve.stats.noninferiority import VerdictShares


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
    room = (limit - truth) / sample.standard_error
    passes = float(ndtr(room - stdtrit(sample.blocks - 1, confidence)))
    fails = float(ndtr(-room - stdtrit(sample.blocks - 1, 1 - alpha)))
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

    (t + z(power))²·s²/(limit − truth)² blocks, where s² is the variance of a block and t the quantile that these
    `values` (n,) pay. None where no number is enough (`truth` is `limit`) or a single block tells no variance.
    UsageError as for `mean_power`, and for a power outside (0.5, 1).
    """
    confidence, alpha = _arguments.level("confidence", confidence), _arguments.error_rate("alpha", alpha)
    level, z = confidence if truth <= limit else 1 - alpha, float(ndtri(_arguments.level("power", power)))
    sample = block_means(values, block=block)
    if sample.blocks < 2 or truth == limit:
        return None
    spread = sample.standard_error * math.sqrt(sample.blocks) / abs(limit - truth)
    blocks = ((float(stdtrit(sample.blocks - 1, level)) + z) * spread) ** 2
    return math.ceil(max(blocks, 2) * sample.n / sample.blocks) if math.isfinite(blocks) else None
