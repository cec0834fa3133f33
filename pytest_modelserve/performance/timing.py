"""Timed calls: two clocks around each, garbage collection off, warm-up excluded, one timed gate at a time on a host."""

from __future__ import annotations

import gc
import getpass
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], object]
Clock = Callable[[], int]

# The first calls allocate the runtime's arenas and fill caches; from about the fifth on they are like the rest.
WARM_UP_CALLS = 10
# No further warm-up call begins after this long: a cold cache does not slow down what takes seconds.
_WARM_UP_NS = 2_000_000_000
# Holders of the lock have time limits themselves, a minute by default; after this long the lock means nothing.
_LOCK_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Clocks:
    """Nanosecond clocks: `wall` is elapsed time, `cpu` that of this thread, `process_cpu` that of all threads."""

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
        """Concatenate two sequences of calls."""
        return CallTimes(np.concatenate([self.wall_ms, later.wall_ms]), np.concatenate([self.cpu_ms, later.cpu_ms]))


def time_calls(call: Call, n: int, *, clocks: Clocks, deadline_ns: int | None = None, before: int = 0) -> CallTimes:
    """Time `n` calls, or those that begin before the wall clock shows `deadline_ns`.

    An exception of `call` gets a note of the number of the call, in which `before` earlier calls are counted.
    """
    # Lists, whose append takes a third of the time of an assignment to an array.
    walls: list[int] = []
    cpus: list[int] = []
    add_wall, add_cpu = walls.append, cpus.append
    wall_clock, cpu_clock = clocks.wall, clocks.cpu
    last = math.inf if deadline_ns is None else deadline_ns
    # One reading of the CPU clock a call, as it takes half a microsecond: the time from call to call, 0.2 µs too long.
    made, end, cpu_before = 0, wall_clock(), cpu_clock()
    with no_garbage_collection():
        while made < n and end < last:
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
    return CallTimes(np.array(walls) / 1e6, np.array(cpus) / 1e6)


def warm_up(call: Call, *, clock: Clock) -> float:
    """Make the calls that do not count; return the median duration of the later half in nanoseconds.

    Ten calls, or as many as begin within two seconds. An exception of `call` gets a note of the number of the call.
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
    try:
        lock.acquire(timeout=timeout_s, poll_interval=0.01)
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


class TimeBudget:
    """A limit on the time that a gate takes, without the time for which it waits for the host lock."""

    def __init__(self, limit_s: float, wall: Clock) -> None:
        self._wall = wall
        self._limit_ns = round(limit_s * 1e9)
        self._began = wall()
        self._waited_ns = 0

    @property
    def used_ns(self) -> int:
        """The time used so far."""
        return self._wall() - self._began - self._waited_ns

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
