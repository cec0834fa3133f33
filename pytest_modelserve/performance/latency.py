"""Latency gate: a quantile of the duration of a call against an absolute budget."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError, unknown_choice
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Method,
    Quantity,
    Verdict,
    check_error_rates,
    keep_samples,
)
from pytest_modelserve.performance.batches import Batches, batches_of, largest_batch
from pytest_modelserve.performance.child_calls import calls_of
from pytest_modelserve.performance.latency_bounds import (
    DecisiveTime,
    LatencyBounds,
    LatencyClock,
    choose_decisive_time,
    decisive_durations,
    latency_bounds,
    unavailable,
)
from pytest_modelserve.performance.operator_costs import measure_operator_costs
from pytest_modelserve.performance.timing import (
    Call,
    CallTimes,
    Clocks,
    TimeBudget,
    host_state,
    run_delay_clock,
    time_calls,
    warm_up,
)
from pytest_modelserve.serving import Servable
from pytest_modelserve.serving.inputs import check_positive, check_quantile
from pytest_modelserve.serving.serve import open_models
from pytest_modelserve.stats import Bounds, interim_error_rate, samples_for_quantile
from pytest_modelserve.stats.quantiles import DependentBounds


def measure_latency(
    predictor: Servable,
    inputs: Batches | Any,
    *,
    max_ms: float,
    quantile: float = 0.95,
    clock: LatencyClock = "auto",
    time_limit_s: float = 60.0,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Measure a quantile of the latency of `predictor.predict(inputs)` against a budget of `max_ms` milliseconds.

    The bounds are order statistics of the timed calls by undisturbed time: wall time less the time for which the call
    was ready to run while other threads had the CPU. It contains what the call itself waits for, such as locks and
    networks, and is the latency on a host of its own. Linux reports it for calls that run in one thread, and the
    evidence then has both times and the proportion of the calls that were disturbed. Elsewhere wall time decides, and
    a finding says why; where the model computes in one thread, FAIL then requires that its CPU time exceeds the
    budget, too.

    A model in a process of its own (`ms.serve(interpreter=...)`) is timed there, without the way to it.

    Calls that fit into 5 s get up to four interim analyses. The first comes after a quarter of a second, or after eight
    times the fewest calls that can bound the quantile; each later one after about three times as many, up to 100,000.
    Slow calls get fewer analyses, or one. Their number is fixed after the warm-up. Both error rates are split equally
    over them (Bonferroni): a model beyond its budget passes at most once in 20, and one within it fails at most once in
    1,000.

    Dependent calls, in bursts of load for example, are counted in blocks (`stats.quantiles.dependent_quantile_bounds`);
    too few blocks are INCONCLUSIVE. The error rates hold for exchangeable calls, and approximately for dependent ones.
    No analysis begins after 5 s, without what other processes take, and no call after `time_limit_s`.

    Args:
        predictor: The model: whatever `ms.serve` takes.
        inputs: One batch, shape (rows, ...) for each input, as it is deployed; or a list of batches of different
            shapes, which are called in random order. A call predicts all rows of one batch.
        max_ms: The largest latency allowed, in milliseconds.
        quantile: The quantile of latency that is bounded, in (0, 1).
        clock: "undisturbed", "wall", or "auto": undisturbed time where the system reports it, else wall time.
        time_limit_s: The time after which no call begins, in seconds. Waiting for other timed gates is not counted.
        confidence: The level at which PASS is claimed.
        alpha: The error rate of FAIL.

    Returns:
        Evidence with the quantile and the median, in milliseconds. A FAIL lists the costliest operators.

    Raises:
        UsageError: `max_ms` or `time_limit_s` is not positive, `quantile` is not in (0, 1), `clock` is unknown, or
            undisturbed time is requested and not available.
        InputError: The inputs hold no batch, or a batch holds no row.
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
    if clock not in get_args(LatencyClock):
        raise UsageError(unknown_choice("clock", clock, get_args(LatencyClock)))
    check_positive("time_limit_s", time_limit_s, "seconds")
    check_error_rates(confidence=confidence, alpha=alpha)
    with open_models(predictor, inputs=inputs) as (given, (served,)):
        batches = batches_of(given)
        began = time.perf_counter()
        calls = calls_of(served, batches)
        with run_delay_clock() as run_delay:
            clocks = replace(Clocks(), run_delay=run_delay)
            design = LatencyDesign(
                quantile,
                max_ms,
                pass_error=1 - confidence,
                fail_error=alpha,
                decisive=choose_decisive_time(served, clock, is_reported=run_delay is not None),
                must_be_undisturbed=clock == "undisturbed",
            )
            timed = design.run(calls, clocks=clocks, budget=TimeBudget(time_limit_s, clocks))
        bounds = timed.bounds
        verdict = bounds.verdict(max_ms)
        name = f"p{100 * quantile:g}"
        costs = measure_operator_costs(served, largest_batch(batches)) if verdict is Verdict.FAIL else None
        return Evidence(
            gate=f"latency {name}",
            subject=served.subject,
            quantities=(
                Quantity(name, bounds.estimate, "ms", bounds.interval, Budget.of("max_ms", max_ms)),
                Quantity("median", timed.median_ms, "ms"),
                *_disturbance(timed, quantile),
            ),
            n=len(timed.times),
            n_unit="calls",
            method=_method(timed),
            summary=_SUMMARIES[verdict].format(name=name),
            confidence=confidence,
            alpha=alpha,
            findings=(
                *bounds.findings(max_ms),
                *_disturbance_finding(timed, quantile, max_ms),
                *_time_limit_finding(timed, time_limit_s),
                *((str(costs),) if costs else ()),
            ),
            advice=_ADVICE[verdict] if timed.in_time else _MORE_TIME,
            details={
                "quantile": quantile,
                "clock": timed.decisive.clock,
                "calls": len(timed.times),
                "interim_analyses": list(timed.schedule.calls),
                "interim_analyses_made": timed.analyses,
                "warm_up_median_ms": timed.typical_ms,
                "block": bounds.high.block,
                "host": host_state(),
                **calls.details(timed.decisive_ms),
                **(costs.details() if costs else {}),
                **keep_samples(**_samples(timed)),
            },
            duration_s=time.perf_counter() - began,
        )


def _disturbance(timed: TimedCalls, quantile: float) -> tuple[Quantity, ...]:
    """Return the quantile by the time that does not decide and the proportion of disturbed calls, if they are known."""
    if not timed.decisive.is_known or not len(timed.times):
        return ()
    name = f"p{100 * quantile:g}"
    times = timed.times
    other, durations = (
        ("wall", times.wall_ms) if timed.decisive.is_undisturbed else ("undisturbed", times.undisturbed_ms)
    )
    return (
        Quantity(f"{other} {name}", _quantile(durations, quantile), "ms"),
        Quantity("disturbed calls", times.disturbed, "proportion"),
    )


def _disturbance_finding(timed: TimedCalls, quantile: float, limit: float) -> tuple[str, ...]:
    """Say where the host's load decides by one of the two times and not by the other."""
    if not timed.decisive.is_known or not len(timed.times):
        return ()
    wall, undisturbed = (_quantile(each, quantile) for each in (timed.times.wall_ms, timed.times.undisturbed_ms))
    if not undisturbed <= limit < wall:
        return ()
    other, value = ("wall", wall) if timed.decisive.is_undisturbed else ("undisturbed", undisturbed)
    return (
        f"busy host: {100 * timed.times.disturbed:.0f} % of the calls waited for a CPU, and by {other} time "
        f"p{100 * quantile:g} is {value:.3g} ms",
    )


def _quantile(durations: NDArray[np.float64], quantile: float) -> float:
    return float(np.quantile(durations, quantile, method="inverted_cdf"))


def _samples(timed: TimedCalls) -> dict[str, NDArray[np.float64]]:
    times = timed.times
    second = {"undisturbed_ms": times.undisturbed_ms} if timed.decisive.is_known else {"cpu_ms": times.cpu_ms}
    return {"wall_ms": times.wall_ms, **{name: array for name, array in second.items() if array is not None}}


def _method(timed: TimedCalls) -> Method:
    block, planned = timed.bounds.high.block, len(timed.schedule.calls)
    return Method(
        f"order statistics of {timed.decisive.clock} time"
        + (" of blocks" if block != 1 else "")
        + (f", interim analysis {timed.analyses} of {planned}" if planned > 1 else ""),
        "David & Nagaraja, Order Statistics, 3rd ed. 2003, section 7.1"
        + ("; Bonferroni over the interim analyses" if planned > 1 else ""),
        "calls are exchangeable" if block == 1 else "blocks of calls are independent",
    )


def _time_limit_finding(timed: TimedCalls, time_limit_s: float) -> tuple[str, ...]:
    if timed.in_time:
        return ()
    elapsed_ms = float(np.median(timed.times.wall_ms)) if len(timed.times) else timed.typical_ms
    needed = timed.schedule.fewest * elapsed_ms / 1e3
    return (
        f"time_limit_s={time_limit_s:g} allowed {len(timed.times)} timed calls of about "
        f"{elapsed_ms / 1e3:.3g} s; {timed.schedule.fewest} are needed ({needed:.3g} s)",
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
    Verdict.INCONCLUSIVE: "run again, on a quieter host if calls were disturbed, or compare with a reference by "
    "assert_not_slower, which host load does not bias",
}


# CPU time of other threads per wall time. They go on while the calling thread waits for a CPU, so that its run delay
# is not lost time.
_MOST_OTHER_THREADS = 0.1
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

    decisive: DecisiveTime
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
    def decisive_ms(self) -> NDArray[np.float64]:
        """The durations by the time that decides."""
        return decisive_durations(self.times, self.decisive) if len(self.times) else np.zeros(0)

    @property
    def median_ms(self) -> float:
        """The median of the timed calls; a warm-up call's duration if there are none."""
        return float(np.median(self.decisive_ms)) if len(self.times) else self.typical_ms


@dataclass(frozen=True, slots=True)
class LatencyDesign:
    """A group-sequential test of a latency quantile against `limit` milliseconds.

    `pass_error` is spent at the high end of the interval and `fail_error` at the low end, over all analyses together.
    """

    quantile: float
    limit: float
    pass_error: float
    fail_error: float
    decisive: DecisiveTime
    must_be_undisturbed: bool = False

    def run(self, call: Call, *, clocks: Clocks, budget: TimeBudget) -> TimedCalls:
        """Time calls until an analysis decides, or until the last analysis that began in time.

        An analysis that the time budget cuts short uses the calls that were made.
        """
        with budget.timed():
            typical_ns, other_threads = self._warm_up(call, clocks)
        decisive = self.decisive
        if decisive.is_known and decisive.may_use_threads and other_threads > _MOST_OTHER_THREADS:
            decisive = replace(decisive, why_unknown="other threads of this process compute during a call")
            if self.must_be_undisturbed:
                raise unavailable(decisive.why_unknown)
        if not decisive.is_known:
            clocks = replace(clocks, run_delay=None)
        schedule = plan_interim_analyses(
            self.quantile, low_error=self.fail_error, high_error=self.pass_error, typical_ns=typical_ns
        )
        times = CallTimes(np.zeros(0))
        for analysis, wanted in enumerate(schedule.calls, start=1):  # noqa: B007
            before = len(times)
            with budget.timed() as deadline_ns:
                more = time_calls(call, wanted - before, clocks=clocks, deadline_ns=deadline_ns, before=before)
            times = times.followed_by(more)
            bounds = self._bounds(times, schedule, typical_ns / 1e6, decisive)
            is_decided = bounds.verdict(self.limit) is not Verdict.INCONCLUSIVE
            if is_decided or len(times) < wanted or budget.undisturbed_ns > _PATIENCE_NS:
                break
        return TimedCalls(decisive, times, bounds, typical_ns / 1e6, schedule, analysis)

    def _warm_up(self, call: Call, clocks: Clocks) -> tuple[float, float]:
        """Return the typical duration of a call in nanoseconds, and the CPU time of other threads per wall time."""
        wall, cpu, process = clocks.wall(), clocks.cpu(), clocks.process_cpu()
        typical_ns = warm_up(call, clock=clocks.wall)
        others = clocks.process_cpu() - process - (clocks.cpu() - cpu)
        return typical_ns, others / max(clocks.wall() - wall, 1)

    def _bounds(
        self, times: CallTimes, schedule: InterimSchedule, typical_ms: float, decisive: DecisiveTime
    ) -> LatencyBounds:
        low_level, high_level = schedule.low_level, schedule.high_level
        if not len(times):  # time was up before the first timed call
            unknown = DependentBounds(Bounds(typical_ms, -math.inf, math.inf, low_level, high_level), 1)
            return LatencyBounds(unknown, unknown, 0, decisive)
        return latency_bounds(
            times,
            quantile=self.quantile,
            low_level=low_level,
            high_level=high_level,
            decisive=decisive,
        )
