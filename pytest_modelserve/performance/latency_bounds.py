"""The time that decides on a latency, and bounds of its quantile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Budget, Interval, Verdict
from pytest_modelserve.performance.timing import CallTimes
from pytest_modelserve.serving import Predictor
from pytest_modelserve.serving.predictor import CPU
from pytest_modelserve.serving.serve import in_child
from pytest_modelserve.stats.quantiles import DependentBounds, dependent_quantile_bounds

LatencyClock = Literal["auto", "undisturbed", "wall"]


@dataclass(frozen=True, slots=True)
class DecisiveTime:
    """The time that decides: undisturbed time if it is known and wall time was not requested, else wall time.

    `why_unknown` is the reason for which undisturbed time cannot be measured; empty if it can. With `guarded_by_cpu` a
    FAIL by wall time needs CPU time beyond the budget as well. Undisturbed time lies between the two: where it is not
    known, PASS rests on the larger and FAIL on the smaller.
    """

    why_unknown: str = ""
    wall_requested: bool = False
    guarded_by_cpu: bool = False
    may_use_threads: bool = False

    @property
    def is_known(self) -> bool:
        """Whether undisturbed time can be measured."""
        return not self.why_unknown

    @property
    def is_undisturbed(self) -> bool:
        """Whether undisturbed time decides."""
        return self.is_known and not self.wall_requested

    @property
    def clock(self) -> str:
        """The name of the clock, as the parameter of the gate has it."""
        return "undisturbed" if self.is_undisturbed else "wall"


_NOT_REPORTED = "this system does not report the run delay of a thread (/proc/self/task/TID/schedstat)"


def choose_decisive_time(predictor: Predictor, clock: LatencyClock, *, is_reported: bool) -> DecisiveTime:
    """Return the time that decides on `predictor`; UsageError for undisturbed time that is not available.

    Anything but a session on the CPU may use threads of its own, which `LatencyDesign.run` finds out.
    """
    threads = getattr(predictor, "threads", 1)
    child = in_child(predictor)
    if child is None and predictor.transport not in ("in-process", "torch", "callable"):
        why_unknown = "the model runs in another process"
    elif child is not None and child.providers != (CPU,):
        why_unknown = "a provider may compute in threads of its own"
    elif threads != 1:
        why_unknown = f"the session has {threads} threads"
    else:
        is_reported = is_reported and (child is None or child.process.runtime["reports_delay"])
        why_unknown = "" if is_reported else _NOT_REPORTED
    if why_unknown and clock == "undisturbed":
        raise unavailable(why_unknown)
    return DecisiveTime(
        why_unknown,
        wall_requested=clock == "wall",
        guarded_by_cpu=clock != "wall" and (predictor.transport in ("in-process", "torch") or child is not None),
        may_use_threads=child is None and getattr(predictor, "providers", ()) != (CPU,),
    )


def unavailable(why_unknown: str) -> UsageError:
    """Return the error for undisturbed time that cannot be measured."""
    return UsageError(f"clock='undisturbed' is not available, as {why_unknown}: pass clock='wall' or clock='auto'")


@dataclass(frozen=True, slots=True)
class LatencyBounds:
    """Bounds of the quantile: PASS rests on the high end of `high`, FAIL on the low end of both.

    The two are the same unless CPU time guards wall time.
    """

    low: DependentBounds
    high: DependentBounds
    calls: int
    decisive: DecisiveTime

    @property
    def estimate(self) -> float:
        """The quantile by the decisive time."""
        return self.high.bounds.estimate

    @property
    def interval(self) -> Interval:
        """From the lower of the two low ends to the high end."""
        low, high = self.low.bounds, self.high.bounds
        return Interval(min(low.low, high.low), high.high, high.low_level, high.high_level)

    def verdict(self, limit: float) -> Verdict:
        """Compare the interval with a budget of at most `limit`."""
        return Budget("at_most", limit).verdict(self.estimate, self.interval)

    def findings(self, limit: float) -> tuple[str, ...]:
        """Say why wall time decides, where its two clocks disagree about `limit`, and where calls are dependent."""
        return tuple(filter(None, (self._wall_finding(), self._clock_finding(limit), self._dependence_finding())))

    def _wall_finding(self) -> str:
        if self.decisive.is_known or self.decisive.wall_requested:
            return ""
        return f"judged by wall time, which contains the load of the host: {self.decisive.why_unknown}"

    def _clock_finding(self, limit: float) -> str:
        if self.low is self.high or self.high.bounds.low <= limit:
            return ""
        wall, cpu = self.estimate, self.low.bounds.estimate
        if self.low.bounds.low > limit:
            return f"the thread's own CPU time exceeds the budget too: {cpu:.3g} ms"
        return (
            f"noisy host: the call is too slow by wall time ({wall:.3g} ms), "
            f"but not by the thread's own CPU time ({cpu:.3g} ms)"
        )

    def _dependence_finding(self) -> str:
        bounds, block = self.high.bounds, self.high.block
        if block == 1:
            return ""
        extent = "throughout (the host's speed drifts)" if block == 0 else f"over some {block} of the {self.calls:,}"
        return f"calls near the quantile depend on each other {extent}, " + (
            "so no upper bound is known: more calls or a quieter host would give one"
            if math.isinf(bounds.high)
            else "which widens the interval"
        )


def latency_bounds(
    times: CallTimes, *, quantile: float, low_level: float, high_level: float, decisive: DecisiveTime
) -> LatencyBounds:
    """Bound the quantile of `times`, which are in the order of the calls; UsageError if there are none."""

    def bounds(durations: NDArray[np.float64]) -> DependentBounds:
        return dependent_quantile_bounds(durations, quantile, low_level=low_level, high_level=high_level)

    low = high = bounds(decisive_durations(times, decisive))
    if not decisive.is_undisturbed and decisive.guarded_by_cpu and times.cpu_ms is not None:
        low = bounds(times.cpu_ms)
    return LatencyBounds(low, high, len(times), decisive)


def decisive_durations(times: CallTimes, decisive: DecisiveTime) -> NDArray[np.float64]:
    """Return the durations of the calls by the time that decides, in milliseconds."""
    return times.undisturbed_ms if decisive.is_undisturbed else times.wall_ms
