"""Timed calls: clocks around each, garbage collection off, warm-up excluded, one timed gate at a time on a host."""

from __future__ import annotations

import gc
import getpass
import math
import os
import random
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.progress import progress

Call = Callable[[], object]
Clock = Callable[[], int]
Calls = tuple[Call, Call]

# The first calls allocate the runtime's arenas and fill caches; from about the fifth on they are like the rest.
WARM_UP_CALLS = 10
# No further warm-up call begins after this long: a cold cache does not slow down what takes seconds.
_WARM_UP_NS = 2_000_000_000
# Holders of the lock have time limits themselves, a minute by default; after this long the lock means nothing.
_LOCK_TIMEOUT_S = 600.0
# The bar of a wait for the lock moves this often.
_LOCK_ATTEMPT_S = 0.2
# A block of calls fills 0.2 ms: long against a clock reading (0.1 µs), short against a burst of host load.
_BLOCK_NS = 200_000
# Calls of a pair above its quantile; with fewer, single calls decide.
_CALLS_ABOVE = 5


@dataclass(frozen=True, slots=True)
class Clocks:
    """Nanosecond clocks: `wall` is elapsed time, `cpu` that of this thread, `process_cpu` that of all threads.

    `run_delay` is the time for which this thread was ready to run and other threads had the CPU; None where it is not
    known (`run_delay_clock`).
    """

    wall: Clock = time.perf_counter_ns
    cpu: Clock = time.thread_time_ns
    process_cpu: Clock = time.process_time_ns
    run_delay: Clock | None = None


@dataclass(frozen=True, slots=True)
class CallTimes:
    """The duration of each call in order, in milliseconds, shape (n,).

    `cpu_ms` is the thread's CPU time. With a run-delay clock `delay_ms` is known instead, and the other is None.
    """

    wall_ms: NDArray[np.float64]
    cpu_ms: NDArray[np.float64] | None = None
    delay_ms: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return self.wall_ms.size

    @property
    def undisturbed_ms(self) -> NDArray[np.float64]:
        """Wall time less run delay. A delay longer than the call fell between two calls, and is not subtracted."""
        assert self.delay_ms is not None
        return np.where(self.delay_ms < self.wall_ms, self.wall_ms - self.delay_ms, self.wall_ms)

    @property
    def disturbed(self) -> float:
        """The proportion of the calls that waited for a CPU; NaN without calls."""
        assert self.delay_ms is not None
        return float(np.mean(self.delay_ms > 0)) if len(self) else math.nan

    def followed_by(self, later: CallTimes) -> CallTimes:
        """Concatenate two sequences of calls, which are by the same clocks."""
        return CallTimes(
            np.concatenate([self.wall_ms, later.wall_ms]),
            _joined(self.cpu_ms, later.cpu_ms),
            _joined(self.delay_ms, later.delay_ms),
        )


class RemoteCalls(ABC):
    """Calls that another process makes and times by its own clocks, so that the way there and back is not counted."""

    @abstractmethod
    def __call__(self) -> object:
        """Make one call."""

    @abstractmethod
    def timed(self, n: int, *, limit_s: float) -> CallTimes:
        """Time `n` calls, or those that begin within `limit_s` seconds."""

    @abstractmethod
    def duration(self, repeats: int) -> int:
        """Return how long a block of calls takes in nanoseconds, by the clock that is compared."""


def _joined(first: NDArray[np.float64] | None, later: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    return later if first is None or later is None else np.concatenate([first, later])


@contextmanager
def run_delay_clock(tasks: Path = Path("/proc/self/task")) -> Iterator[Clock | None]:
    """Yield the clock of this thread's run delay, or None where the system does not report it.

    Linux does, in nanoseconds and exact at every moment at which the thread runs (Documentation/scheduler/sched-stats).
    A reading takes about 2 µs.
    """
    try:
        descriptor = os.open(tasks / str(threading.get_native_id()) / "schedstat", os.O_RDONLY)
    except OSError:
        yield None
        return

    def read() -> int:
        return int(os.pread(descriptor, 64, 0).split()[1])

    try:
        # A kernel that does not count shows three zeros: no thread has ever run.
        counts = os.pread(descriptor, 64, 0).split()
        yield read if len(counts) == 3 and int(counts[0]) > 0 else None
    finally:
        os.close(descriptor)


def time_calls(call: Call, n: int, *, clocks: Clocks, deadline_ns: int | None = None, before: int = 0) -> CallTimes:
    """Time `n` calls, or those that begin before the wall clock shows `deadline_ns`.

    An exception of `call` gets a note of the number of the call, in which `before` earlier calls are counted.
    """
    if isinstance(call, RemoteCalls):
        limit_s = math.inf if deadline_ns is None else max(deadline_ns - clocks.wall(), 0) / 1e9
        times = call.timed(n, limit_s=limit_s)
        return times if clocks.run_delay is not None else replace(times, delay_ms=None)
    # Lists, whose append takes a third of the time of an assignment to an array.
    walls: list[int] = []
    seconds: list[int] = []
    add_wall, add_second = walls.append, seconds.append
    wall_clock, second_clock = clocks.wall, clocks.run_delay or clocks.cpu
    last = math.inf if deadline_ns is None else deadline_ns
    # One reading of the second clock a call: CPU time takes half a microsecond, run delay two. It covers the time from
    # call to call, 0.3 µs more than the call.
    made, end, before_call = 0, wall_clock(), second_clock()
    with no_garbage_collection():
        while made < n and end < last:
            start = wall_clock()
            try:
                call()
            except Exception as error:
                error.add_note(f"raised by timed call {before + made + 1} of {before + n}")
                raise
            end = wall_clock()
            after_call = second_clock()
            add_second(after_call - before_call)
            before_call = after_call
            add_wall(end - start)
            made += 1
    wall_ms, second_ms = np.array(walls) / 1e6, np.array(seconds) / 1e6
    return CallTimes(wall_ms, second_ms) if clocks.run_delay is None else CallTimes(wall_ms, delay_ms=second_ms)


def warm_up(call: Call, *, clock: Clock, calls: int = WARM_UP_CALLS) -> float:
    """Make the calls that do not count; return the median duration of the later half in nanoseconds.

    So many calls, or as many as begin within two seconds. An exception of `call` gets a note of the number of the call.
    """
    if isinstance(call, RemoteCalls):
        walls = call.timed(WARM_UP_CALLS, limit_s=_WARM_UP_NS / 1e9).wall_ms
        return float(max(1e6 * np.median(walls[len(walls) // 2 :]), 1.0))
    began = clock()
    durations: list[int] = []
    for number in range(calls):
        start = clock()
        if durations and start - began > _WARM_UP_NS:
            break
        try:
            call()
        except Exception as error:
            error.add_note(f"raised by warm-up call {number + 1} of {calls}")
            raise
        durations.append(clock() - start)
    return float(max(np.median(durations[len(durations) // 2 :]), 1.0))


@dataclass(frozen=True, slots=True)
class PairTimer:
    """Interleave the calls of two models so that changes in host load affect both equally.

    `clock` is compared, `wall` tells when time is up. Without a `quantile`, a pair is a block of `repeats` calls of
    each, and its ratio that of the durations. With one, `repeats` calls of each alternate, and the ratio is that of the
    quantiles.
    """

    clock: Clock
    wall: Clock
    quantile: float | None = None
    repeats: int = 1

    def log_ratios(self, calls: Calls, n: int, *, rng: random.Random, deadline_ns: int | None = None) -> list[float]:
        """Return `n` log-ratios of the first call's time to the second's; fewer where time is up between two calls.

        An exception of a call gets a note of the number of the pair.
        """
        time_pair = self._time_blocks if self.quantile is None else self._time_quantiles
        ratios: list[float] = []
        with no_garbage_collection():
            while len(ratios) < n:
                try:
                    ratio = time_pair(calls, rng, lambda: deadline_ns is not None and self.wall() >= deadline_ns)
                except Exception as error:
                    error.add_note(f"raised in pair {len(ratios) + 1} of {n}")
                    raise
                if ratio is None:
                    break
                ratios.append(ratio)
        return ratios

    def _time_blocks(self, calls: Calls, rng: random.Random, is_late: Callable[[], bool]) -> float | None:
        durations = [0, 0]
        for which in _shuffled(rng):
            if is_late():
                return None
            durations[which] = _duration(calls[which], self.repeats, self.clock)
        return math.log(durations[0] / durations[1])

    def _time_quantiles(self, calls: Calls, rng: random.Random, is_late: Callable[[], bool]) -> float | None:
        assert self.quantile is not None
        durations = np.empty((2, self.repeats))
        for repeat in range(self.repeats):
            for which in _shuffled(rng):
                if is_late():
                    return None
                durations[which, repeat] = _duration(calls[which], 1, self.clock)
        first, second = np.quantile(durations, self.quantile, axis=1, method="inverted_cdf")
        return math.log(first / second)


def plan_pairs(calls: Calls, *, clock: Clock, wall: Clock, quantile: float | None) -> tuple[PairTimer, float]:
    """Warm both calls up; return a timer whose pairs are long enough, and the ratio of the warm-up durations."""
    typical = [warm_up(call, clock=wall) for call in calls]
    if quantile is None:
        repeats = block_repeats(max(typical))
    else:
        repeats = math.ceil(_CALLS_ABOVE / min(quantile, 1 - quantile) - 1e-9)
    return PairTimer(clock, wall, quantile, repeats), typical[0] / typical[1]


def time_blocks(
    calls: Sequence[Call], repeats: Sequence[int], blocks: int, *, clock: Clock, rng: random.Random
) -> NDArray[np.float64]:
    """Return the time of a call in each of `blocks` rounds, (blocks, calls), in nanoseconds.

    A round makes `repeats` of each call one after the other, in random order, so that host load affects all equally.
    """
    durations = np.empty((blocks, len(calls)))
    with no_garbage_collection():
        for block in range(blocks):
            for which in rng.sample(range(len(calls)), len(calls)):
                durations[block, which] = _duration(calls[which], repeats[which], clock) / repeats[which]
    return durations


def block_repeats(typical_ns: float) -> int:
    """Return how many calls of this duration fill a block that is long against a reading of the clock."""
    return max(1, round(_BLOCK_NS / typical_ns))


def _shuffled(rng: random.Random) -> tuple[int, int]:
    return (0, 1) if rng.random() < 0.5 else (1, 0)


def _duration(call: Call, repeats: int, clock: Clock) -> int:
    if isinstance(call, RemoteCalls):
        return max(call.duration(repeats), 1)
    start = clock()
    for _ in range(repeats):
        call()
    return max(clock() - start, 1)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Disable Python's garbage collector, and restore its state at the end."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def host_lock(folder: Path | None = None, *, timeout_s: float = _LOCK_TIMEOUT_S) -> Iterator[bool]:
    """Hold an inter-process lock, so that one timed gate of this user runs on this host at a time; True where held.

    It excludes the workers of xdist and other test runs, and no other load. Hold it only while timing. A gate runs
    without the lock (False) where `folder`, by default that of temporary files, cannot be written, or where the lock
    is not free within `timeout_s`.
    """
    from filelock import FileLock, Timeout

    # One file for each user: another user's could not be opened for writing.
    path = (folder or Path(tempfile.gettempdir())) / f"pytest_modelserve-timing-{_user()}.lock"
    lock = FileLock(path)
    ends = time.monotonic() + timeout_s

    def attempts() -> Iterator[None]:
        while True:
            try:
                lock.acquire(timeout=max(0.0, min(_LOCK_ATTEMPT_S, ends - time.monotonic())), poll_interval=0.01)
                return
            except Timeout:
                if time.monotonic() >= ends:
                    raise
            yield

    try:
        for _ in progress(attempts(), "waiting for a timed gate of another process"):
            pass
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
    except (KeyError, OSError, ImportError):  # a container's user without a name; Windows without one
        return "unknown"


class TimeBudget:
    """A limit on the time that a gate takes, without the time for which it waits for the host lock."""

    def __init__(self, limit_s: float, clocks: Clocks) -> None:
        self._wall = clocks.wall
        self._run_delay = clocks.run_delay or (lambda: 0)
        self._limit_ns = round(limit_s * 1e9)
        self._began = self._wall()
        self._delayed_before = self._run_delay()
        self._waited_ns = 0

    @property
    def used_ns(self) -> int:
        """The time used so far."""
        return self._wall() - self._began - self._waited_ns

    @property
    def undisturbed_ns(self) -> int:
        """The time used so far, without that for which other processes had the CPU where the system reports it.

        A gate's patience is measured by it, so that a busy host makes the gate slower and not undecided.
        """
        return self.used_ns - (self._run_delay() - self._delayed_before)

    @property
    def is_used_up(self) -> bool:
        """Whether nothing more may begin."""
        return self.used_ns >= self._limit_ns

    @contextmanager
    def timed(self) -> Iterator[int]:
        """Hold the host lock; yields the wall-clock reading at which time is up."""
        requested = self._wall()
        with host_lock():
            self._waited_ns += self._wall() - requested
            yield self._began + self._waited_ns + self._limit_ns


def host_state(root: Path = Path("/")) -> dict[str, Any]:
    """Return the load average of the last minute, CPU pressure, the cgroup's CPU quota and the frequency governor.

    What this host does not report is left out. `pressure_stall_percent` is the proportion of the last 10 s in which
    some task waited for a CPU; `cpu_quota` is in CPUs.
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
    """Parse `some avg10=0.66 avg60=0.58 …`, as the kernel's Documentation/accounting/psi.rst describes it."""
    for line in (_text(path) or "").splitlines():
        kind, *fields = line.split()
        if kind == "some":
            return _number(dict(field.partition("=")[::2] for field in fields).get("avg10"))
    return None


def _quota(cgroup: Path) -> float | None:
    """Read cpu.max of version 2 ("200000 100000" or "max 100000"), or the two files of version 1 (-1: none)."""
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
