"""Timing calls: two clocks around each, garbage collection off, the first calls left out."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], object]
Clock = Callable[[], int]

WARM_UP_CALLS = 10
"""The first calls allocate the runtime's arenas and fill caches; from about the fifth on they are like the rest."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """Nanosecond clocks: `wall` is what a user waits, `cpu` what this thread worked."""

    wall: Clock = time.perf_counter_ns
    cpu: Clock = time.thread_time_ns


@dataclass(frozen=True, slots=True)
class CallTimes:
    """The duration of each call in order, in milliseconds, shape (n,), by both clocks."""

    wall_ms: NDArray[np.float64]
    cpu_ms: NDArray[np.float64]


def time_calls(call: Call, n: int, *, clocks: Clocks) -> CallTimes:
    """The durations of `n` calls; what `call` raises passes through with the number of the call noted."""
    wall = np.empty(n, dtype=np.int64)
    cpu = np.empty(n, dtype=np.int64)
    wall_clock, cpu_clock = clocks.wall, clocks.cpu
    with no_garbage_collection():
        for index in range(n):
            cpu_start = cpu_clock()
            start = wall_clock()
            try:
                call()
            except Exception as error:
                error.add_note(f"raised by timed call {index + 1} of {n}")
                raise
            end = wall_clock()
            wall[index] = end - start
            cpu[index] = cpu_clock() - cpu_start
    return CallTimes(wall / 1e6, cpu / 1e6)


def warm_up(call: Call, *, clock: Clock) -> float:
    """Make the calls that are not counted; return the median duration of the later half in nanoseconds."""
    durations = []
    for _ in range(WARM_UP_CALLS):
        start = clock()
        call()
        durations.append(clock() - start)
    return float(max(np.median(durations[WARM_UP_CALLS // 2 :]), 1.0))


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python's collector from running inside a timed call; left as it was found."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
