"""The recorded times of a load: latency from the time a request was due, and its three parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.load.schedule import Schedule

Floats = NDArray[np.float64]

_MOST_SLICES = 60


@dataclass(frozen=True, slots=True)
class Failure:
    """Failed requests of one kind: how many, and the message of the first."""

    count: int
    message: str


REQUEST = np.dtype(
    [("index", "i8"), ("due", "f8"), ("taken", "f8"), ("sent", "f8"), ("ended", "f8"), ("answered", "?")]
)
"""A request: its number, when it was due, `taken` by a thread that was free for it, sent, and ended."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadRun:
    """What happened to every request, in the order in which they were due.

    `requests` (n,) are of the type REQUEST, in seconds from the start of the load, NaN for what did not happen.
    `answered` is False for a request that failed or was still open at the end. `first_s` is the end of the warm-up.
    `cpu_share` is the CPU time of a process of the generator, together with a model that runs in it, per second.
    `started` is the start in seconds of the epoch.
    """

    schedule: Schedule
    requests: NDArray[Any]
    first_s: float
    failures: Mapping[str, Failure] = field(default_factory=dict)
    cpu_share: float = 0.0
    in_flight_limit: int = 0
    started: float = 0.0

    def __len__(self) -> int:
        return self.requests.size

    @property
    def counted(self) -> LoadRun:
        """The requests that were due after the warm-up."""
        return replace(self, requests=self.requests[self.due_s >= self.first_s])

    @property
    def judged(self) -> LoadRun:
        """The requests that were due after the warm-up; UsageError if there are none."""
        if not len(counted := self.counted):
            raise UsageError(
                "no request was sent after the warm-up: give a longer duration_s, or a shorter warm_up_s"
                + "".join(f"; {finding}" for finding in self.failure_findings())
            )
        return counted

    @property
    def warm_up(self) -> LoadRun:
        """The requests of the warm-up."""
        return replace(self, requests=self.requests[self.due_s < self.first_s])

    @property
    def index(self) -> NDArray[np.int64]:
        """The number of each request."""
        return self._field("index")

    @property
    def due_s(self) -> Floats:
        """When each was due."""
        return self._field("due")

    @property
    def taken_s(self) -> Floats:
        """When a thread was free for it."""
        return self._field("taken")

    @property
    def sent_s(self) -> Floats:
        """When it was sent."""
        return self._field("sent")

    @property
    def ended_s(self) -> Floats:
        """When it was answered or failed."""
        return self._field("ended")

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Whether it was answered."""
        return self._field("answered")

    def _field(self, name: str) -> NDArray[Any]:
        found: NDArray[Any] = self.requests[name]
        return found

    @property
    def latency_ms(self) -> Floats:
        """From due to answered; infinite for a request without an answer, which is not a fast one."""
        return np.where(self.answered, 1e3 * (self.ended_s - self.due_s), math.inf)

    @property
    def service_ms(self) -> Floats:
        """From sent to answered, which a client without a schedule would call latency; infinite without an answer."""
        return np.where(self.answered, 1e3 * (self.ended_s - self.sent_s), math.inf)

    @property
    def queueing_ms(self) -> Floats:
        """From due until fewer requests were in flight than may be, of requests that were sent."""
        sent = np.isfinite(self.sent_s)
        return 1e3 * np.maximum(self.taken_s[sent] - self.due_s[sent], 0.0)

    @property
    def issue_lag_ms(self) -> Floats:
        """By how much the generator itself was late, of requests that were sent."""
        sent = np.isfinite(self.sent_s)
        return 1e3 * (self.sent_s[sent] - np.maximum(self.due_s[sent], self.taken_s[sent]))

    @property
    def open_requests(self) -> int:
        """The number of requests that had not ended when the load did."""
        return int(np.isnan(self.ended_s).sum())

    @property
    def failed(self) -> int:
        """The number of requests without an answer, those still open included."""
        return int((~self.answered).sum())

    @property
    def seconds(self) -> float:
        """The time over which the requests were due, or the closed loop lasted; above 0."""
        if self.schedule.is_open:
            return max(self.schedule.duration_s - self.first_s, 1e-9)
        ends = self.ended_s[np.isfinite(self.ended_s)]
        return max(float(ends.max(initial=self.schedule.duration_s)) - self.first_s, 1e-9)

    @property
    def most_in_flight(self) -> int:
        """The largest number of requests that were sent and had not ended."""
        sent = np.isfinite(self.sent_s)
        ends = np.where(np.isnan(self.ended_s[sent]), math.inf, self.ended_s[sent])
        times = np.concatenate([self.sent_s[sent], ends])
        change = np.repeat([1, -1], int(sent.sum()))
        return int(np.cumsum(change[np.lexsort((change, times))]).max(initial=0))

    def goodput(self, max_ms: float) -> float:
        """Return the number of requests per second that were answered within `max_ms` of the time they were due."""
        return float((self.latency_ms <= max_ms).sum()) / self.seconds

    def failure_findings(self) -> tuple[str, ...]:
        """Return one sentence for each kind of failed request, over the whole load."""
        kinds = sorted(self.failures.items(), key=lambda item: -item[1].count)
        found = [f"{each.count:,} requests failed with {name}: {each.message}" for name, each in kinds]
        if self.open_requests:
            found.append(f"{self.open_requests:,} requests were still open when the load ended")
        return tuple(found)

    def timeline(self, quantile: float) -> dict[str, Any]:
        """Return the median and the quantile of latency over slices of the time for which requests were due.

        `start_s` is the start of the first slice, and null stands for a slice without answers.
        """
        if not len(self):
            return {}
        count = max(1, min(_MOST_SLICES, len(self) // 20))
        start, width = float(self.due_s[0]), float(self.due_s[-1] - self.due_s[0]) / count or 1.0
        slices = np.clip(((self.due_s - start) / width).astype(np.int64), 0, count - 1)
        latency = [self.latency_ms[slices == number] for number in range(count)]
        return {
            "start_s": round(start, 4),
            "slice_s": width,
            "quantile": quantile,
            "median_ms": [_rounded(each, 0.5) for each in latency],
            "quantile_ms": [_rounded(each, quantile) for each in latency],
        }


def joined(runs: Sequence[LoadRun], schedule: Schedule) -> LoadRun:
    """Return the runs of several processes, each of which sent every k-th request of `schedule`, as one."""
    requests = [run.requests.copy() for run in runs]
    for number, each in enumerate(requests):
        each["index"] = each["index"] * len(runs) + number
    failures: dict[str, Failure] = {}
    for run in runs:
        for name, found in run.failures.items():
            before = failures.get(name, Failure(0, found.message))
            failures[name] = Failure(before.count + found.count, before.message)
    return LoadRun(
        schedule,
        np.sort(np.concatenate(requests), order=("due", "index")),
        runs[0].first_s,
        failures,
        cpu_share=max(run.cpu_share for run in runs),
        in_flight_limit=sum(run.in_flight_limit for run in runs),
        started=runs[0].started,
    )


def quantile_of(values: Floats, quantile: float) -> float:
    """Return the smallest value that at least `quantile` of them do not exceed; NaN without values."""
    return float(np.quantile(values, quantile, method="inverted_cdf")) if values.size else math.nan


def _rounded(values: Floats, quantile: float) -> float | None:
    value = quantile_of(values, quantile)
    return float(f"{value:.4g}") if math.isfinite(value) else None
