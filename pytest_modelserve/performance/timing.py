"""Timing calls: two clocks around each, garbage collection off, the first calls left out, and an end in sight."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], object]
Clock = Callable[[], int]

WARM_UP_CALLS = 10
"""The first calls allocate the runtime's arenas and fill caches; from about the fifth on they are like the rest."""
_WARM_UP_NS = 2_000_000_000
"""No further call warms up after this long: what takes seconds is not made slower by a cold cache."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """Nanosecond clocks: `wall` is what a user waits, `cpu` what this thread worked, `process_cpu` what all did."""

    wall: Clock = time.perf_counter_ns
    cpu: Clock = time.thread_time_ns
    process_cpu: Clock = time.process_time_ns


@dataclass(frozen=True, slots=True)
class CallTimes:
    """The duration of each call in order, in milliseconds, shape (n,), by both clocks."""

    wall_ms: NDArray[np.float64]
    cpu_ms: NDArray[np.float64]

    def __len__(self) -> int:
        return self.wall_ms.size

    def followed_by(self, later: CallTimes) -> CallTimes:
        """Both as one sequence of calls."""
        return CallTimes(np.concatenate([self.wall_ms, later.wall_ms]), np.concatenate([self.cpu_ms, later.cpu_ms]))


def time_calls(call: Call, n: int, *, clocks: Clocks, deadline_ns: int | None = None) -> CallTimes:
    """The durations of `n` calls, or of those that were begun before the wall clock showed `deadline_ns`.

    What `call` raises passes through with the number of the call noted.
    """
    return time_in_turn((call,), n, clocks=clocks, deadline_ns=deadline_ns)[0]


def time_in_turn(
    calls: Sequence[Call], n: int, *, clocks: Clocks, deadline_ns: int | None = None, before: int = 0
) -> tuple[CallTimes, ...]:
    """As `time_calls`, for several calls that take turns: each `n` times, or each as often as all were.

    They follow on `before` that were timed earlier, which the number of a call that raises counts in.
    """
    # Lists, whose append takes a third of the time of an assignment to an array.
    walls: list[list[int]] = [[] for _ in calls]
    cpus: list[list[int]] = [[] for _ in calls]
    turns = [(call, wall.append, cpu.append) for call, wall, cpu in zip(calls, walls, cpus, strict=True)]
    wall_clock, cpu_clock = clocks.wall, clocks.cpu
    last = math.inf if deadline_ns is None else deadline_ns
    # One reading of the CPU clock a call, as it takes half a microsecond: the time from call to call, 0.2 µs too long.
    made, end, cpu_before = 0, wall_clock(), cpu_clock()
    with no_garbage_collection():
        while made < n and end < last:
            for call, add_wall, add_cpu in turns:
                start = wall_clock()
                try:
                    call()
                except Exception as error:
                    error.add_note(f"raised by timed call {before + made + 1} of {before + n}")
                    raise
                end = wall_clock()
                cpu_after = cpu_clock()
                add_cpu(cpu_after - cpu_before)
                cpu_before = cpu_after
                add_wall(end - start)
            made += 1
    return tuple(CallTimes(np.array(wall) / 1e6, np.array(cpu) / 1e6) for wall, cpu in zip(walls, cpus, strict=True))


def warm_up(call: Call, *, clock: Clock) -> float:
    """Make the calls that are not counted; return the median duration of the later half in nanoseconds.

    Ten calls, or as many as begin within two seconds. What `call` raises passes through with the number noted.
    """
    began = clock()
    durations: list[int] = []
    for number in range(WARM_UP_CALLS):
        start = clock()
        if durations and start - began > _WARM_UP_NS:
            break
        try:
            call()
        except Exception as error:
            error.add_note(f"raised by warm-up call {number + 1} of {WARM_UP_CALLS}")
            raise
        durations.append(clock() - start)
    return float(max(np.median(durations[len(durations) // 2 :]), 1.0))


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
