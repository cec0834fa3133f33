"""Schedules of requests: when each is due, or a number of clients that send one after the other."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.serving.inputs import check_positive

Arrivals = Literal["poisson", "constant"]
DueTimes = Sequence[float] | str | os.PathLike[str]

# An hour at 2,000 requests a second; more would not fit into memory together with their times.
_MOST_REQUESTS = 10_000_000

_TITLES = {"poisson": "Poisson", "constant": "constant"}


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Requests over `duration_s` seconds: each `due_s` (n,) after the start, or sent by `clients` one after the other.

    Exactly one of the two is given. `name` completes "load of …".
    """

    name: str
    duration_s: float
    due_s: NDArray[np.float64] | None = None
    clients: int | None = None
    limit: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether arrivals do not wait for completions."""
        return self.due_s is not None

    @property
    def rate(self) -> float:
        """Requests per second that were planned; NaN for a closed loop."""
        return math.nan if self.due_s is None else self.due_s.size / self.duration_s

    def part(self, number: int, parts: int) -> Schedule:
        """Return every `parts`-th request from `number` on, or that share of the clients."""
        if self.due_s is not None:
            return Schedule(self.name, self.duration_s, self.due_s[number::parts])
        assert self.clients is not None
        return Schedule(self.name, self.duration_s, clients=len(range(number, self.clients, parts)))


def plan_schedule(
    *,
    duration_s: float,
    rate_qps: float | None = None,
    clients: int | None = None,
    schedule: DueTimes | None = None,
    arrivals: Arrivals = "poisson",
    seed: int = 0,
) -> Schedule:
    """Return the schedule of exactly one of a rate, a number of clients and recorded due times.

    Args:
        duration_s: Seconds of load; that of a recorded schedule is its own.
        rate_qps: Requests per second of an open loop. The number of requests is `rate_qps * duration_s`, rounded.
        clients: Number of clients of a closed loop, each of which sends its next request after an answer.
        schedule: Recorded due times in seconds, not descending; the first request is due at once. A file of them is
            `.npy`, or text with one number a line.
        arrivals: "poisson", with independent exponential gaps, or "constant" gaps.
        seed: Seed of Poisson arrivals. Generators on several hosts need different ones.

    Raises:
        UsageError: None or several of the three are given, or one is invalid.
        InputError: The recorded times are empty, not finite or not ascending, or their file cannot be read.
    """
    given = {"rate_qps": rate_qps, "clients": clients, "schedule": schedule}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise UsageError(
            f"exactly one of rate_qps=, clients= and schedule= says which load; got {' and '.join(named) or 'none'}"
        )
    if arrivals not in get_args(Arrivals):
        raise UsageError(unknown_choice("arrivals", arrivals, get_args(Arrivals)))
    if type(seed) is not int or seed < 0:
        raise UsageError(f"seed must be a whole number of at least 0; got {seed!r}")
    if schedule is not None:
        return _recorded(schedule)
    check_positive("duration_s", duration_s, "seconds")
    if clients is not None:
        return Schedule(f"{check_clients(clients)} clients", duration_s, clients=clients)
    assert rate_qps is not None
    check_positive("rate_qps", rate_qps, "requests per second")
    expected = rate_qps * duration_s
    if not 0.5 < expected <= _MOST_REQUESTS:
        raise UsageError(
            f"rate_qps={rate_qps:g} over duration_s={duration_s:g} gives {expected:,.0f} requests; give 1 to "
            f"{_MOST_REQUESTS:,}"
        )
    count = round(expected)
    if arrivals == "constant":
        due = np.arange(count) / rate_qps
    else:
        due = np.cumsum(np.random.default_rng(seed).exponential(1 / rate_qps, count))
    return Schedule(f"{rate_qps:g} requests/s, {_TITLES[arrivals]} arrivals", duration_s, due)


def check_clients(clients: int) -> int:
    """Return `clients` if it is a whole number from 1 to 10,000; otherwise raise UsageError."""
    if isinstance(clients, bool) or not isinstance(clients, int) or not 1 <= clients <= 10_000:
        raise UsageError(f"clients must be a whole number from 1 to 10,000; got {clients!r}")
    return clients


def _recorded(schedule: DueTimes) -> Schedule:
    path = Path(schedule) if isinstance(schedule, (str, os.PathLike)) else None
    name = "a recorded schedule" if path is None else f"the schedule {path.name}"
    times = np.zeros(0) if path is None else _times_in(path)
    try:
        times = np.asarray(schedule if path is None else times, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"schedule must hold due times in seconds: {error}") from None
    if times.ndim != 1 or not times.size:
        raise InputError(f"schedule must hold at least one due time in seconds, shape (n,); got shape {times.shape}")
    if not np.isfinite(times).all():
        raise InputError(f"schedule must hold finite seconds; got {times[~np.isfinite(times)][0]}")
    if (late := np.flatnonzero(np.diff(times) < 0)).size:
        at = int(late[0]) + 1
        raise InputError(
            f"schedule must not descend: request {at} is due at {times[at]:g} s, after one at {times[at - 1]:g} s; "
            "sort the times"
        )
    due = times - times[0]
    # The last request stands for a gap as the others do, so that n requests of a rate last n / rate.
    duration = float(due[-1]) * due.size / max(1, due.size - 1) or 1.0
    return Schedule(f"{name}, {due.size:,} requests", duration, due)


def _times_in(path: Path) -> NDArray[np.float64]:
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        return np.asarray([float(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()])
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"schedule {path}: expected .npy, or text with one number a line: {reason}") from None
