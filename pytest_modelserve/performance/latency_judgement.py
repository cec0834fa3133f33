"""How timed calls stand to a latency budget, by one clock or two; reads no clock."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_modelserve.evidence import Budget, Interval, Verdict
from pytest_modelserve.performance.timing import CallTimes
from pytest_modelserve.stats import Bounds
from pytest_modelserve.stats.dependent_quantiles import DependentBounds, dependent_quantile_bounds


@dataclass(frozen=True, slots=True)
class LatencyJudgement:
    """The bounds by each clock and the interval that combines them; `cpu` is None where it does not judge.

    `unit` is what durations are told in.
    """

    wall: DependentBounds
    cpu: DependentBounds | None
    calls: int
    unit: str = "ms"

    @property
    def estimate(self) -> float:
        """The quantile by wall time."""
        return self.wall.bounds.estimate

    @property
    def interval(self) -> Interval:
        """From the lower of the two low ends to the high end of wall time.

        CPU time can only be below wall time by what the host took away, so it may lift FAIL and never add one.
        """
        wall = self.wall.bounds
        low = wall.low if self.cpu is None else min(wall.low, self.cpu.bounds.low)
        return Interval(low, wall.high, wall.low_level, wall.high_level)

    def verdict(self, limit: float) -> Verdict:
        """What the combined interval says of a budget of at most `limit`."""
        return Budget("at most", limit).judge(self.estimate, self.interval)

    def findings(self, limit: float) -> tuple[str, ...]:
        """Sentences: where the two clocks disagree about the budget, and where calls depend on each other."""
        return tuple(filter(None, (self._clocks(limit), self._dependence())))

    def _clocks(self, limit: float) -> str:
        if self.cpu is None:
            return "judged by wall time alone: such a model may wait, for a lock or a network, which CPU time misses"
        if self.wall.bounds.low <= limit:
            return ""
        wall, cpu = self.estimate, self.cpu.bounds.estimate
        if self.cpu.bounds.low > limit:
            return f"the thread's own CPU time exceeds the budget too: {cpu:.3g} {self.unit}"
        return (
            f"noisy host: by wall time the call is too slow ({wall:.3g} {self.unit}), "
            f"by the thread's own CPU time it is not ({cpu:.3g} {self.unit})"
        )

    def _dependence(self) -> str:
        bounds, block = self.wall.bounds, self.wall.block
        if block == 1:
            return ""
        reach = "throughout (the host's speed drifts)" if block == 0 else f"over some {block} of the {self.calls:,}"
        return f"calls about the quantile depend on each other {reach}, " + (
            "so that nothing bounds it: more calls or a quieter host would"
            if math.isinf(bounds.high)
            else "so that its interval is wider"
        )


def judge_latency(
    times: CallTimes,
    *,
    quantile: float,
    low_level: float,
    high_level: float,
    works_in_this_thread: bool,
    unit: str = "ms",
) -> LatencyJudgement:
    """The judgement over `times` in the order of the calls; UsageError where there are none."""
    wall = dependent_quantile_bounds(times.wall_ms, quantile, low_level=low_level, high_level=high_level)
    cpu = None
    if works_in_this_thread:
        cpu = dependent_quantile_bounds(times.cpu_ms, quantile, low_level=low_level, high_level=high_level)
    return LatencyJudgement(wall, cpu, len(times), unit)


def unbounded(duration: float, *, low_level: float, high_level: float, unit: str = "ms") -> LatencyJudgement:
    """The judgement where time was up before the first timed call: a warm-up call's duration, and no bound."""
    bounds = Bounds(duration, -math.inf, math.inf, low_level, high_level)
    return LatencyJudgement(DependentBounds(bounds, 1), None, 0, unit)
