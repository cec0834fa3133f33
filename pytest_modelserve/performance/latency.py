"""Latency gate: a quantile of the duration of a call against an absolute budget."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Verdict,
    check_error_rates,
    keep_samples,
)
from pytest_modelserve.performance.operator_costs import measure_operator_costs
from pytest_modelserve.performance.timing import Call, CallTimes, Clocks, TimeBudget, host_state, time_calls, warm_up
from pytest_modelserve.serving import Predictor
from pytest_modelserve.serving.inputs import check_not_empty, check_positive, check_quantile
from pytest_modelserve.stats import Bounds, interim_error_rate, samples_for_quantile
from pytest_modelserve.stats.quantiles import DependentBounds, dependent_quantile_bounds

_COMPUTE_IN_THIS_THREAD = ("in-process", "torch")


def measure_latency(
    predictor: Predictor,
    inputs: NDArray[Any] | Mapping[str, NDArray[Any]],
    *,
    max_ms: float,
    quantile: float = 0.95,
    time_limit_s: float = 60.0,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Measure a quantile of the latency of `predictor.predict(inputs)` against a budget of `max_ms` milliseconds.

    The bounds are order statistics of the timed calls. PASS rests on wall time. FAIL rests on the lower of wall time
    and, where the model computes in this thread, CPU time: a call that another process delayed is INCONCLUSIVE, never
    FAIL. A callable may wait for a lock or a network, so it is judged by wall time alone, and a finding says so.

    Calls that fit into 5 s get up to four interim analyses. The first comes after a quarter of a second, or after eight
    times the fewest calls that can bound the quantile; each later one after about three times as many, up to 100,000.
    Slow calls get fewer analyses, or one. Their number is fixed after the warm-up. Both error rates are split equally
    over them (Bonferroni): a model beyond its budget passes at most once in 20, and one within it fails at most once in
    1,000.

    Dependent calls, in bursts of load for example, are counted in blocks (`stats.quantiles.dependent_quantile_bounds`);
    too few blocks are INCONCLUSIVE. The error rates hold for exchangeable calls, and approximately for dependent ones.
    No analysis begins after 5 s and no call after `time_limit_s`.

    Args:
        predictor: The served model.
        inputs: One batch, shape (rows, ...) for each input. A call predicts all of its rows: pass the batch that is
            deployed.
        max_ms: The largest latency allowed, in milliseconds.
        quantile: The quantile of latency that is bounded, in (0, 1).
        time_limit_s: The time after which no call begins, in seconds. Waiting for other timed gates is not counted.
        confidence: The level at which PASS is claimed.
        alpha: The error rate of FAIL.

    Returns:
        Evidence with the quantile and the median, in milliseconds. A FAIL lists the costliest operators.

    Raises:
        UsageError: `max_ms` or `time_limit_s` is not positive, or `quantile` is not in (0, 1).
        InputError: The inputs hold no row.
        Exception: What the model raises, with a note of the number of the call.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x.sum(axis=1))
        >>> ms.assert_latency(model, np.zeros((1, 4), np.float32), max_ms=50).gate
        'latency p95'
    """
    check_positive("max_ms", max_ms, "milliseconds")
    check_quantile(quantile)
    check_positive("time_limit_s", time_limit_s, "seconds")
    check_error_rates(confidence=confidence, alpha=alpha)
    check_not_empty(inputs)
    began = time.perf_counter()
    clocks = Clocks()
    design = LatencyDesign(
        quantile,
        max_ms,
        pass_error=1 - confidence,
        fail_error=alpha,
        uses_cpu_time=predictor.transport in _COMPUTE_IN_THIS_THREAD,
    )
    timed = design.run(lambda: predictor.predict(inputs), clocks=clocks, budget=TimeBudget(time_limit_s, clocks.wall))
    bounds = timed.bounds
    verdict = bounds.verdict(max_ms)
    name = f"p{100 * quantile:g}"
    costs = measure_operator_costs(predictor, inputs) if verdict is Verdict.FAIL else None
    return Evidence(
        gate=f"latency {name}",
        subject=predictor.subject,
        quantities=(
            Quantity(name, bounds.estimate, "ms", bounds.interval, Budget("at_most", max_ms)),
            Quantity("median", timed.median_ms, "ms"),
        ),
        n=len(timed.times),
        n_unit="calls",
        method=_method(timed),
        summary=_SUMMARIES[verdict].format(name=name),
        confidence=confidence,
        alpha=alpha,
        findings=(
            *bounds.findings(max_ms),
            *_time_limit_finding(timed, time_limit_s),
            *((str(costs),) if costs else ()),
        ),
        advice=_ADVICE[verdict] if timed.in_time else _MORE_TIME,
        details={
            "quantile": quantile,
            "calls": len(timed.times),
            "interim_analyses": list(timed.schedule.calls),
            "interim_analyses_made": timed.analyses,
            "warm_up_median_ms": timed.typical_ms,
            "block": bounds.wall.block,
            "host": host_state(),
            **(costs.details() if costs else {}),
            **keep_samples(wall_ms=timed.times.wall_ms, cpu_ms=timed.times.cpu_ms),
        },
        duration_s=time.perf_counter() - began,
    )


def _method(timed: TimedCalls) -> Method:
    block, planned = timed.bounds.wall.block, len(timed.schedule.calls)
    return Method(
        "order statistics"
        + (" of blocks" if block != 1 else "")
        + (f", interim analysis {timed.analyses} of {planned}" if planned > 1 else ""),
        "David & Nagaraja, Order Statistics, 3rd ed. 2003, section 7.1"
        + ("; Bonferroni over the interim analyses" if planned > 1 else ""),
        "calls are exchangeable" if block == 1 else "blocks of calls are independent",
    )


def _time_limit_finding(timed: TimedCalls, time_limit_s: float) -> tuple[str, ...]:
    if timed.in_time:
        return ()
    needed = timed.schedule.fewest * timed.median_ms / 1e3
    return (
        f"time_limit_s={time_limit_s:g} allowed {len(timed.times)} timed calls of about "
        f"{timed.median_ms / 1e3:.3g} s; {timed.schedule.fewest} are needed ({needed:.3g} s)",
    )


_SUMMARIES = {
    Verdict.PASS: "{name} is within its budget",
    Verdict.FAIL: "{name} is above its budget",
    Verdict.INCONCLUSIVE: "too few or too noisy calls to decide whether {name} is within its budget",
}
_MORE_TIME = "raise time_limit_s, or give fewer rows"
_ADVICE = {
    Verdict.PASS: "",
    Verdict.FAIL: "make the model smaller or simpler (`compress`), give it more threads, or raise max_ms",
    Verdict.INCONCLUSIVE: "run on a quieter host, or compare with a reference by assert_not_slower, which host load "
    "does not bias",
}


@dataclass(frozen=True, slots=True)
class LatencyBounds:
    """Bounds of the quantile by wall time and by CPU time; `cpu` is None where CPU time does not count."""

    wall: DependentBounds
    cpu: DependentBounds | None
    calls: int

    @property
    def estimate(self) -> float:
        """The quantile by wall time."""
        return self.wall.bounds.estimate

    @property
    def interval(self) -> Interval:
        """From the lower of the two low ends to the high end of wall time.

        CPU time is below wall time only by what the host took away, so it can prevent a FAIL and never cause one.
        """
        wall = self.wall.bounds
        low = wall.low if self.cpu is None else min(wall.low, self.cpu.bounds.low)
        return Interval(low, wall.high, wall.low_level, wall.high_level)

    def verdict(self, limit: float) -> Verdict:
        """Compare the interval with a budget of at most `limit`."""
        return Budget("at_most", limit).verdict(self.estimate, self.interval)

    def findings(self, limit: float) -> tuple[str, ...]:
        """Explain where the two clocks disagree about `limit`, and where calls depend on each other."""
        return tuple(filter(None, (self._clock_finding(limit), self._dependence_finding())))

    def _clock_finding(self, limit: float) -> str:
        if self.cpu is None:
            return "judged by wall time alone: CPU time misses the time for which such a model may wait"
        if self.wall.bounds.low <= limit:
            return ""
        wall, cpu = self.estimate, self.cpu.bounds.estimate
        if self.cpu.bounds.low > limit:
            return f"the thread's own CPU time exceeds the budget too: {cpu:.3g} ms"
        return (
            f"noisy host: the call is too slow by wall time ({wall:.3g} ms), "
            f"but not by the thread's own CPU time ({cpu:.3g} ms)"
        )

    def _dependence_finding(self) -> str:
        bounds, block = self.wall.bounds, self.wall.block
        if block == 1:
            return ""
        extent = "throughout (the host's speed drifts)" if block == 0 else f"over some {block} of the {self.calls:,}"
        return f"calls near the quantile depend on each other {extent}, " + (
            "so no upper bound is known: more calls or a quieter host would give one"
            if math.isinf(bounds.high)
            else "which widens the interval"
        )


def latency_bounds(
    times: CallTimes, *, quantile: float, low_level: float, high_level: float, uses_cpu_time: bool
) -> LatencyBounds:
    """Bound the quantile of `times`, which are in the order of the calls; UsageError if there are none."""
    wall = dependent_quantile_bounds(times.wall_ms, quantile, low_level=low_level, high_level=high_level)
    cpu = None
    if uses_cpu_time:
        cpu = dependent_quantile_bounds(times.cpu_ms, quantile, low_level=low_level, high_level=high_level)
    return LatencyBounds(wall, cpu, len(times))


# With 8 times the fewest calls that can pass, PASS may rest on about the 97th percentile instead of the slowest call,
# so that a single interruption by the host does not decide.
_SAMPLE_FACTOR = 8
# Fast calls fill at least this long before the first analysis: a hundred calls of 10 µs fit into one burst of load.
_LEAST_S = 0.25
# All calls together may take this long, and no further analysis begins after it. The fewest calls that can pass are
# made nevertheless, until the time limit.
_PATIENCE_NS = 5_000_000_000
_MOST_CALLS = 100_000
_MOST_ANALYSES = 4
# Four analyses, each after three times as many calls, span a quarter of a second to 5 s.
_GROWTH = 3


@dataclass(frozen=True, slots=True)
class InterimSchedule:
    """The numbers of calls after which a quantile is analyzed, and the levels of its bounds at each analysis.

    `fewest` is how many independent calls bound the quantile at all.
    """

    calls: tuple[int, ...]
    low_level: float
    high_level: float
    fewest: int


def plan_interim_analyses(
    quantile: float, *, low_error: float, high_error: float, typical_ns: float
) -> InterimSchedule:
    """Return the schedule for calls of about `typical_ns` nanoseconds: as many analyses as fit into 5 s, at most four.

    It is known before the first timed call, so that the split of the error rates does not depend on the data.
    """
    affordable = min(_MOST_CALLS, int(_PATIENCE_NS / typical_ns))
    for count in range(_MOST_ANALYSES, 0, -1):
        low_level, high_level = 1 - interim_error_rate(low_error, count), 1 - interim_error_rate(high_error, count)
        fewest = samples_for_quantile(quantile, low_level=low_level, high_level=high_level)
        first = max(_SAMPLE_FACTOR * fewest, int(_LEAST_S * 1e9 / typical_ns))
        last = min(affordable, first * _GROWTH ** (count - 1))
        if last > first * _GROWTH ** (count - 1.5):
            break
    calls = np.geomspace(first, last, count).round() if count > 1 else [max(fewest, last)]
    return InterimSchedule(tuple(int(n) for n in calls), low_level, high_level, fewest)


@dataclass(frozen=True, slots=True)
class TimedCalls:
    """The timed calls, perhaps none, and the bounds of the last analysis; `typical_ms` is a warm-up call's duration."""

    times: CallTimes
    bounds: LatencyBounds
    typical_ms: float
    schedule: InterimSchedule
    analyses: int

    @property
    def in_time(self) -> bool:
        """Whether there are enough calls for a bound."""
        return len(self.times) >= self.schedule.fewest

    @property
    def median_ms(self) -> float:
        """The median of the timed calls by wall time; a warm-up call's duration if there are none."""
        return float(np.median(self.times.wall_ms)) if len(self.times) else self.typical_ms


@dataclass(frozen=True, slots=True)
class LatencyDesign:
    """A group-sequential test of a latency quantile against `limit` milliseconds.

    `pass_error` is spent at the high end of the interval and `fail_error` at the low end, over all analyses together.
    """

    quantile: float
    limit: float
    pass_error: float
    fail_error: float
    uses_cpu_time: bool

    def run(self, call: Call, *, clocks: Clocks, budget: TimeBudget) -> TimedCalls:
        """Time calls until an analysis decides, or until the last analysis that began in time.

        An analysis that the time budget cuts short uses the calls that were made.
        """
        with budget.timed():
            typical_ns = warm_up(call, clock=clocks.wall)
        schedule = plan_interim_analyses(
            self.quantile, low_error=self.fail_error, high_error=self.pass_error, typical_ns=typical_ns
        )
        times = CallTimes(np.zeros(0), np.zeros(0))
        for analysis, wanted in enumerate(schedule.calls, start=1):  # noqa: B007
            before = len(times)
            with budget.timed() as deadline_ns:
                more = time_calls(call, wanted - before, clocks=clocks, deadline_ns=deadline_ns, before=before)
            times = times.followed_by(more)
            bounds = self._bounds(times, schedule, typical_ns / 1e6)
            is_decided = bounds.verdict(self.limit) is not Verdict.INCONCLUSIVE
            if is_decided or len(times) < wanted or budget.used_ns > _PATIENCE_NS:
                break
        return TimedCalls(times, bounds, typical_ns / 1e6, schedule, analysis)

    def _bounds(self, times: CallTimes, schedule: InterimSchedule, typical_ms: float) -> LatencyBounds:
        low_level, high_level = schedule.low_level, schedule.high_level
        if not len(times):  # time was up before the first timed call
            return LatencyBounds(
                DependentBounds(Bounds(typical_ms, -math.inf, math.inf, low_level, high_level), 1), None, 0
            )
        return latency_bounds(
            times,
            quantile=self.quantile,
            low_level=low_level,
            high_level=high_level,
            uses_cpu_time=self.uses_cpu_time,
        )
