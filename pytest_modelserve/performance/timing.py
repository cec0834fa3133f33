"""Timing calls: two clocks around each, garbage collection off, the first calls left out, and an end in sight."""

from __future__ import annotations

import gc
import getpass
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


# A piece of work that is the same on every machine: what a budget is expressed in that travels between them.


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


# One timed gate at a time on this host, whichever process of whichever test run it is in.


_PATIENCE_S = 600.0
"""Holders are capped themselves, at a minute by default; after this long the lock says nothing any more."""


@contextmanager
def host_turn(folder: Path | None = None, *, patience_s: float = _PATIENCE_S) -> Iterator[bool]:
    """Hold the host's lock for what is timed: True where it is held.

    It keeps other timed gates of this user out, the workers of xdist above all, and no other load. Hold it inside the
    timed loop alone, never while building or waiting for the store. Without it, because `folder` (by default the one
    for temporary files) cannot be written or somebody held it for `patience_s`, the gate runs all the same: False.
    """
    from filelock import FileLock, Timeout

    # One file for each user: another user's could not be opened for writing.
    path = (folder or Path(tempfile.gettempdir())) / f"pytest_modelserve-timing-{_user()}.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience_s, poll_interval=0.01)
    except (Timeout, OSError, NotImplementedError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _user() -> str:
    try:
        return "".join(letter if letter.isalnum() else "_" for letter in getpass.getuser())
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


class Cap:
    """A limit on the time that a gate takes, less what it waits for its turns on the host."""

    def __init__(self, limit_s: float, *, wall: Callable[[], int]) -> None:
        self._wall = wall
        self._limit_ns = round(limit_s * 1e9)
        self._began = wall()
        self._waited_ns = 0

    @property
    def used_ns(self) -> int:
        """How long it has taken so far."""
        return self._wall() - self._began - self._waited_ns

    @property
    def is_used_up(self) -> bool:
        """Whether nothing more may begin."""
        return self.used_ns >= self._limit_ns

    @contextmanager
    def turn(self) -> Iterator[int]:
        """Hold the host's lock; gives what the clock shows when time is up."""
        asked = self._wall()
        with host_turn():
            self._waited_ns += self._wall() - asked
            yield self._began + self._waited_ns + self._limit_ns


# What the host was doing while a gate measured: a figure of time means little without it.


def host_state(root: Path = Path("/")) -> dict[str, Any]:
    """The load average of the last minute, CPU pressure, the cgroup's CPU quota and the frequency governor.

    What this host does not tell is left out. `pressure_stall_percent` is the share of the last 10 s in which some task
    waited for a CPU; `cpu_quota` is in CPUs. The CPU model is in the evidence's environment.
    """
    found = {
        "load_average": _load(),
        "pressure_stall_percent": _pressure(root / "proc/pressure/cpu"),
        "cpu_quota": _quota(root / "sys/fs/cgroup"),
        "governor": _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):  # Windows has none
        return None


def _pressure(path: Path) -> float | None:
    """`some avg10=0.66 avg60=0.58 …`, as the kernel's Documentation/accounting/psi.rst describes it."""
    for line in (_text(path) or "").splitlines():
        kind, *fields = line.split()
        if kind == "some":
            return _number(dict(field.partition("=")[::2] for field in fields).get("avg10"))
    return None


def _quota(cgroup: Path) -> float | None:
    """cpu.max of version 2 ("200000 100000" or "max 100000"), or the two files of version 1 (-1: none)."""
    quota, _, period = (_text(cgroup / "cpu.max") or "").partition(" ")
    if not quota:
        quota = _text(cgroup / "cpu/cpu.cfs_quota_us") or ""
        period = _text(cgroup / "cpu/cpu.cfs_period_us") or ""
    allowed, per = _number(quota), _number(period)
    return allowed / per if allowed is not None and per and allowed > 0 else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
