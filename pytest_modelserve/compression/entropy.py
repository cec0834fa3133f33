"""Where to cut off a distribution so that 8 bits tell the most of what is left.

What is cut off is lost by its whole distance from the edge. Over twelve small networks, of which most have outputs
without a bound, "entropy" lost up to 19 dB against "min-max" (a residual CNN: 16.6 for 35.7) and won 2 at best; where
a column of inputs is a long tail it can leave no answer, which "int8-static" refuses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# The talk quantises to 128 levels: the non-negative half of int8.
_LEVELS = 128
# What onnxruntime's smooth_distribution gives to a bin that is empty.
_EPSILON = 1e-4


def entropy_bounds(counts: NDArray[np.int64], edges: NDArray[Any]) -> tuple[float, float]:
    """The two edges between which the distribution in 128 levels is nearest to the whole, by Kullback-Leibler.

    `counts` (n,) of values between `edges` (n + 1,), which are symmetric about 0; n is even and at least 128. As
    onnxruntime's `get_entropy_threshold`, step by step and to the same result; that one adds up in Python and takes
    half a second for each value inside a model where this takes a fiftieth of one.

    Source: Migacz, "8-bit Inference with TensorRT", GTC 2017, S7310.
    """
    middle = counts.size // 2
    below = np.concatenate(([0], np.cumsum(counts)))
    best, bounds = np.inf, (float(edges[0]), float(edges[-1]))
    for half in range(_LEVELS // 2, middle + 1):
        start, end = middle - half, min(middle + half + 1, counts.size)
        kept = counts[start:end]
        reference = kept.copy()
        reference[0] += below[start]
        reference[-1] += below[-1] - below[end]
        divergence = _divergence(reference, _in_levels(kept, reference != 0))
        if divergence < best:
            best, bounds = divergence, (float(edges[start]), float(edges[end]))
    return bounds


def _in_levels(kept: NDArray[np.int64], is_used: NDArray[np.bool_]) -> NDArray[np.int64]:
    """`kept` summed up to 128 levels, each spread evenly over its bins again."""
    width = kept.size // _LEVELS
    whole = _LEVELS * width
    levels = kept[:whole].reshape(_LEVELS, width).sum(axis=1)
    levels[-1] += kept[whole:].sum()
    used = is_used[:whole].reshape(_LEVELS, width).sum(axis=1)
    spread = np.divide(levels, used, out=np.zeros(_LEVELS), where=used > 0).astype(np.int64)
    return np.concatenate((np.repeat(spread, width), np.zeros(kept.size - whole, np.int64)))


def _divergence(reference: NDArray[np.int64], candidate: NDArray[np.int64]) -> float:
    p, q = _smooth(reference), _smooth(candidate)
    if p is None or q is None:
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def _smooth(counts: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """`counts` with a little taken from the bins that hold something for those that hold nothing; None if too few."""
    is_empty = counts == 0
    empty = int(is_empty.sum())
    if empty == counts.size or _EPSILON * empty >= counts.size - empty:
        return None
    taken = _EPSILON * empty / (counts.size - empty)
    return np.where(is_empty, _EPSILON, counts - taken)
