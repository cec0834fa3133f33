"""Is a call fast enough? An absolute budget for a quantile of latency, judged by two clocks."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Unit,
    Verdict,
    check_error_rates,
    keep_samples,
)
from pytest_modelserve.performance.operator_costs import breakdown
from pytest_modelserve.performance.timing import (
    Call,
    CallTimes,
    Cap,
    Clocks,
    calibration_kernel,
    host_state,
    in_machine_units,
    time_in_turn,
    warm_up,
)
from pytest_modelserve.serving import Predictor
from pytest_modelserve.serving.inputs import check_not_empty, check_positive, check_quantile
from pytest_modelserve.stats import Bounds, interim_error_rate, samples_for_quantile
from pytest_modelserve.stats.quantiles import DependentBounds, dependent_quantile_bounds

# How timed calls stand to a latency budget, by one clock or two; reads no clock.


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
        return Budget("at_most", limit).verdict(self.estimate, self.interval)

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


# When the calls that were timed are judged: one look, or several at growing numbers, under one error budget.


_SAMPLE_FACTOR = 8
"""Calls at the first look beyond the fewest that can pass: with 8 times as many, PASS may rest on about the 97th
percentile instead of the slowest call of all, so that one interruption by the host does not decide."""
_LEAST_S = 0.25
"""Fast calls go on for so long before the first look: some hundred of 10 µs would be over within one mood of the
host."""
PATIENCE_NS = 5_000_000_000
"""What all calls may take together, and when no further look is begun; the fewest that can pass go on until the cap."""
_MOST_CALLS = 100_000
_MOST_LOOKS = 4
_GROWTH = 3
"""Some three times as many calls at each look: four looks reach from a quarter of a second to the 5 s."""


@dataclass(frozen=True, slots=True)
class Looks:
    """After how many calls a quantile is judged, and the levels of its bounds at each of these looks.

    `fewest` is how many independent calls bound the quantile at all.
    """

    calls: tuple[int, ...]
    low_level: float
    high_level: float
    fewest: int


def plan_looks(quantile: float, *, low_error: float, high_error: float, typical_ns: float) -> Looks:
    """The looks for calls of about `typical_ns` nanoseconds: as many as 5 s have room for, four at most.

    The first comes after eight times the fewest calls that can bound the quantile, or a quarter of a second of them if
    those are more; the others lie about three times as far apart. Slow calls get one look, and with it both errors
    undivided. Known before the first timed call, so that the split does not depend on what is judged.
    """
    affordable = min(_MOST_CALLS, int(PATIENCE_NS / typical_ns))
    for count in range(_MOST_LOOKS, 0, -1):
        low_level, high_level = 1 - interim_error_rate(low_error, count), 1 - interim_error_rate(high_error, count)
        fewest = samples_for_quantile(quantile, low_level=low_level, high_level=high_level)
        first = max(_SAMPLE_FACTOR * fewest, int(_LEAST_S * 1e9 / typical_ns))
        last = min(affordable, first * _GROWTH ** (count - 1))
        if last > first * _GROWTH ** (count - 1.5):
            break
    calls = np.geomspace(first, last, count).round() if count > 1 else [max(fewest, last)]
    return Looks(tuple(int(n) for n in calls), low_level, high_level, fewest)


# Timing calls until a latency budget is decided: looks at growing numbers of calls, and none after the cap.


@dataclass(frozen=True, slots=True)
class JudgedCalls:
    """The calls that were timed, maybe none, and what the last look says of them.

    `judged` is what the budget is held against, in ms or machine units; `typical_ms` a warm-up call's duration.
    """

    times: CallTimes
    judged: CallTimes
    judgement: LatencyJudgement
    typical_ms: float
    looks: Looks
    taken: int

    @property
    def in_time(self) -> bool:
        """Whether there are enough for a bound."""
        return len(self.times) >= self.looks.fewest

    @property
    def median_ms(self) -> float:
        """Of the timed calls, by wall time; a warm-up call's where none was timed."""
        return float(np.median(self.times.wall_ms)) if len(self.times) else self.typical_ms


@dataclass(frozen=True, slots=True)
class LatencyLooks:
    """What is asked of the calls: a quantile, its budget (ms or machine units), and the error rates of all looks.

    `pass_error` is spent at the high end of the interval and `fail_error` at the low one.
    """

    quantile: float
    limit: float
    pass_error: float
    fail_error: float
    works_in_this_thread: bool
    machine_units: bool = False

    def at(self, call: Call, *, clocks: Clocks, cap: Cap) -> JudgedCalls:
        """The calls up to the first look that decides, or up to the last that was begun in time.

        With `machine_units`, a calibration kernel takes turns with the calls. A look that the cap cuts short is judged
        by the calls that were made.
        """
        in_turn = (call, calibration_kernel()) if self.machine_units else (call,)
        with cap.turn():
            typical_ns = sum(warm_up(each, clock=clocks.wall) for each in in_turn)
        looks = plan_looks(self.quantile, low_error=self.fail_error, high_error=self.pass_error, typical_ns=typical_ns)
        made: tuple[CallTimes, ...] = ()
        for taken, wanted in enumerate(looks.calls, start=1):  # noqa: B007
            before = len(made[0]) if made else 0
            with cap.turn() as deadline_ns:
                more = time_in_turn(in_turn, wanted - before, clocks=clocks, deadline_ns=deadline_ns, before=before)
            made = tuple(a.followed_by(b) for a, b in zip(made, more, strict=True)) if made else more
            judged = in_machine_units(*made) if self.machine_units and len(made[0]) else made[0]
            judgement = self._judgement(judged, looks, typical_ns / 1e6)
            is_decided = judgement.verdict(self.limit) is not Verdict.INCONCLUSIVE
            if is_decided or len(made[0]) < wanted or cap.used_ns > PATIENCE_NS:
                break
        return JudgedCalls(made[0], judged, judgement, typical_ns / 1e6, looks, taken)

    @property
    def unit(self) -> Unit:
        """What the budget and the judged calls are in."""
        return "ratio" if self.machine_units else "ms"

    def _judgement(self, judged: CallTimes, looks: Looks, typical_ms: float) -> LatencyJudgement:
        if not len(judged):
            return unbounded(typical_ms, low_level=looks.low_level, high_level=looks.high_level)
        return judge_latency(
            judged,
            quantile=self.quantile,
            low_level=looks.low_level,
            high_level=looks.high_level,
            works_in_this_thread=self.works_in_this_thread,
            unit="kernels" if self.machine_units else "ms",
        )


_WORK_IN_THIS_THREAD = ("in-process", "torch")


def measure_latency(
    predictor: Predictor,
    inputs: NDArray[Any] | Mapping[str, NDArray[Any]],
    *,
    max_ms: float | None = None,
    max_machine_units: float | None = None,
    quantile: float = 0.95,
    time_limit_s: float = 60.0,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Evidence that a quantile of the latency of `predictor.predict(inputs)` is at most `max_ms` milliseconds.

    One call is one `predict` of all the rows given: pass the batch that is deployed. `max_machine_units` instead of
    `max_ms` is a budget in multiples of a calibration kernel (eight 64 × 64 matrix products in numpy), timed in turn
    with the calls, so that it means about the same on another machine.

    The bounds are order statistics of the calls. The high end, on which PASS rests, is that of wall time. The low end,
    on which FAIL rests, is the lower of wall time and, where the model computes in this thread, of its CPU time: a call
    that was slow because the host ran something else is INCONCLUSIVE, never FAIL. A model that may wait for good
    reasons (a callable: a lock, a network) is judged by wall time alone, and the findings say so.

    Calls that fit into 5 s are judged at up to four looks: after a quarter of a second, or eight times the fewest that
    can bound the quantile if that takes longer, then after about three times as many, and so on, up to 100,000 calls,
    as soon as they decide. Slow calls get fewer looks, or one. The number of looks is fixed after the warm-up, by what
    its calls took, and both error rates are split equally over them (Bonferroni), so that they hold although it looks
    repeatedly: PASS of a model beyond its budget at most once in 20, FAIL of one inside at most once in 1,000.

    Calls in a burst of load depend on each other. Where they do, blocks of them count as one (see
    `stats.dependent_quantiles`), and with too few blocks the verdict is INCONCLUSIVE. The error rates hold for
    exchangeable calls; for dependent ones about, as far as the calls that were made show the dependence. No look begins
    after 5 s, no call after `time_limit_s`; too few by then are INCONCLUSIVE.

    Raises UsageError for both budgets or none, one that is not positive, or a quantile outside (0, 1). What the model
    raises passes through, with the number of the call.
    """
    limit = _limit(max_ms, max_machine_units)
    check_quantile(quantile)
    check_positive("time_limit_s", time_limit_s, "seconds")
    check_error_rates(confidence=confidence, alpha=alpha)
    check_not_empty(inputs)
    began = time.perf_counter()
    clocks = Clocks()
    looks = LatencyLooks(
        quantile,
        limit,
        pass_error=1 - confidence,
        fail_error=alpha,
        works_in_this_thread=predictor.transport in _WORK_IN_THIS_THREAD,
        machine_units=max_ms is None,
    )
    timed = looks.at(lambda: predictor.predict(inputs), clocks=clocks, cap=Cap(time_limit_s, wall=clocks.wall))
    judged = timed.judgement
    verdict = judged.verdict(limit)
    name = f"p{100 * quantile:g}"
    costs = breakdown(predictor, inputs) if verdict is Verdict.FAIL else None
    return Evidence(
        gate=f"latency {name}",
        subject=predictor.subject,
        quantities=(
            Quantity(name, judged.estimate, looks.unit, judged.interval, Budget("at_most", limit)),
            Quantity("median", timed.median_ms, "ms"),
        ),
        n=len(timed.times),
        n_unit="calls",
        method=_method(timed),
        summary=_SUMMARIES[verdict].format(name=name),
        confidence=confidence,
        alpha=alpha,
        findings=(
            *judged.findings(limit),
            *_late(timed, time_limit_s),
            *((costs.told(),) if costs else ()),
        ),
        advice=_ADVICE[verdict] if timed.in_time else _MORE_TIME,
        details={
            "quantile": quantile,
            "calls": len(timed.times),
            "looks": list(timed.looks.calls),
            "looks_taken": timed.taken,
            "warm_up_median_ms": timed.typical_ms,
            "block": judged.wall.block,
            "host": host_state(),
            **(costs.plain() if costs else {}),
            **keep_samples(wall_ms=timed.times.wall_ms, cpu_ms=timed.times.cpu_ms, judged=timed.judged.wall_ms),
        },
        duration_s=time.perf_counter() - began,
    )


def _limit(max_ms: float | None, max_machine_units: float | None) -> float:
    if max_ms is not None and max_machine_units is None:
        check_positive("max_ms", max_ms, "milliseconds")
        return max_ms
    if max_ms is None and max_machine_units is not None:
        check_positive("max_machine_units", max_machine_units, "calibration kernels")
        return max_machine_units
    raise UsageError("give one budget: max_ms, or max_machine_units")


def _method(timed: JudgedCalls) -> Method:
    block, planned = timed.judgement.wall.block, len(timed.looks.calls)
    return Method(
        "order statistics"
        + (" of blocks" if block != 1 else "")
        + (f", look {timed.taken} of {planned}" if planned > 1 else ""),
        "David & Nagaraja, Order Statistics, 3rd ed. 2003, section 7.1"
        + ("; Bonferroni over the looks" if planned > 1 else ""),
        "calls are exchangeable" if block == 1 else "blocks of calls are independent",
    )


def _late(timed: JudgedCalls, time_limit_s: float) -> tuple[str, ...]:
    if timed.in_time:
        return ()
    needed = timed.looks.fewest * timed.median_ms / 1e3
    return (
        f"time_limit_s = {time_limit_s:g} left room for {len(timed.times)} timed calls of about "
        f"{timed.median_ms / 1e3:.3g} s: {timed.looks.fewest} are needed, {needed:.3g} s",
    )


_SUMMARIES = {
    Verdict.PASS: "{name} is inside its budget",
    Verdict.FAIL: "{name} is above its budget",
    Verdict.INCONCLUSIVE: "{name} cannot be told from its budget",
}
_MORE_TIME = "raise time_limit_s, or give fewer rows"
_ADVICE = {
    Verdict.PASS: "",
    Verdict.FAIL: "make the model smaller or simpler (`compress`), give it more threads, or raise the budget",
    Verdict.INCONCLUSIVE: "run on a quieter host, or compare against a reference with assert_not_slower, "
    "which noise does not move",
}
