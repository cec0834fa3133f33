"""A piece of work that is the same on every machine: what a budget is expressed in that travels between them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.performance.timing import Call, CallTimes

_SIZE = 64
"""64 × 64: small enough for every BLAS to stay on one thread (OpenBLAS splits from 64³ multiplications on)."""
_PRODUCTS = 8
"""Together some 0.05 to 0.2 ms: long against a clock reading, short against what stands beside it."""
_NEIGHBOURS = 15
"""A call is held against the median kernel of so many around it: the host's speed changes more slowly than that."""


def calibration_kernel() -> Call:
    """Eight products of 64 × 64 float32 matrices, each of the last one; about as much as a small model does."""
    start = np.full((_SIZE, _SIZE), 0.5, dtype=np.float32)
    step = np.full((_SIZE, _SIZE), 1 / _SIZE, dtype=np.float32)  # keeps values as they are: nothing overflows

    def kernel() -> NDArray[np.float32]:
        product = start
        for _ in range(_PRODUCTS):
            product = product @ step
        return product

    return kernel


def in_machine_units(times: CallTimes, kernel: CallTimes) -> CallTimes:
    """`times` as multiples of the kernel's median among the 15 that ran around each call, by each clock.

    `times` and `kernel` took turns and are equally many. With fewer than 15 it is the median of all.
    """
    return CallTimes(times.wall_ms / _local_median(kernel.wall_ms), times.cpu_ms / _local_median(kernel.cpu_ms))


def _local_median(durations: NDArray[np.float64]) -> NDArray[np.float64]:
    window = min(_NEIGHBOURS, durations.size)
    medians = np.median(np.lib.stride_tricks.sliding_window_view(durations, window), axis=1)
    before = window // 2
    padded: NDArray[np.float64] = np.pad(medians, (before, window - 1 - before), mode="edge")
    return np.maximum(padded, 1e-6)
