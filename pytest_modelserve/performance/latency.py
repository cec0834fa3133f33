"""Is a call fast enough? An absolute budget for a quantile of latency, judged by two clocks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Verdict,
    check_error_rates,
    levels_for,
)
from pytest_modelserve.performance.timing import CallTimes, Clocks, time_calls, warm_up
from pytest_modelserve.serving import Predictor
from pytest_modelserve.stats import Bounds, quantile_bounds, samples_for_quantile

_SAMPLE_FACTOR = 8
"""Calls beyond the fewest that can pass: with 8 times as many, PASS may rest on about the 97th percentile instead of
the slowest call of all, so that one interruption by the host does not decide (p95: 472 calls instead of 59)."""
_TIME_LIMIT_S = 5.0
"""What the additional calls may take together; the fewest that can pass are made however long they take."""


def measure_latency(
    predictor: Predictor,
    inputs: NDArray[Any] | Mapping[str, NDArray[Any]],
    *,
    max_ms: float,
    quantile: float = 0.95,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Evidence that a quantile of the latency of `predictor.predict(inputs)` is at most `max_ms` milliseconds.

    One call is one `predict` of all the rows given: pass the batch that is deployed. The bounds are order statistics
    of the calls. The high end, on which PASS rests, is that of wall time. The low end, on which FAIL rests, is the
    lower of wall time and, where the model computes in this thread, of its CPU time: a call that was slow because the
    host ran something else is INCONCLUSIVE, never FAIL. A plain callable may wait for good reasons (a lock, a
    network), which CPU time does not see, so it is judged by wall time alone.

    Assumes that calls are exchangeable; bursts of load on the host break that, mostly towards INCONCLUSIVE.

    Raises UsageError for a budget that is not positive or a quantile outside (0, 1). What the model raises passes
    through, with the number of the call.
    """
    if not max_ms > 0:
        raise UsageError(f"max_ms is a positive number of milliseconds, not {max_ms}")
    if not 0 < quantile < 1:
        raise UsageError(f"quantile lies between 0 and 1 (0.95, say), not {quantile}")
    check_error_rates(confidence=confidence, alpha=alpha)
    started = time.perf_counter()
    low_level, high_level = levels_for(Budget("at most", max_ms), confidence=confidence, alpha=alpha)
    fewest = samples_for_quantile(quantile, low_level=low_level, high_level=high_level)
    call = lambda: predictor.predict(inputs)  # noqa: E731 (a def would be one more frame in each timed call)
    clocks = Clocks()
    typical_ns = warm_up(call, clock=clocks.wall)
    n = max(fewest, min(_SAMPLE_FACTOR * fewest, int(_TIME_LIMIT_S * 1e9 / typical_ns)))
    times = time_calls(call, n, clocks=clocks)
    judged = judge_latency(
        times,
        quantile=quantile,
        low_level=low_level,
        high_level=high_level,
        works_in_this_thread=predictor.transport != "callable",
    )
    name = f"p{100 * quantile:g}"
    return Evidence(
        gate=f"latency {name}",
        subject=predictor.subject,
        quantities=(
            Quantity(name, judged.wall.estimate, "ms", judged.interval, Budget("at most", max_ms)),
            Quantity("median", float(sorted(times.wall_ms)[n // 2]), "ms"),
        ),
        n=n,
        n_unit="calls",
        method=Method(
            "order statistics",
            "David & Nagaraja, Order Statistics, 3rd ed. 2003, section 7.1",
            "calls are exchangeable",
        ),
        summary=_SUMMARIES[judged.verdict(max_ms)].format(name=name),
        confidence=confidence,
        alpha=alpha,
        findings=judged.findings(max_ms),
        advice=_ADVICE[judged.verdict(max_ms)],
        details={"quantile": quantile, "calls": n, "warm_up_median_ms": typical_ns / 1e6},
        duration_s=time.perf_counter() - started,
    )


_SUMMARIES = {
    Verdict.PASS: "{name} is inside its budget",
    Verdict.FAIL: "{name} is above its budget",
    Verdict.INCONCLUSIVE: "{name} cannot be told from its budget",
}
_ADVICE = {
    Verdict.PASS: "",
    Verdict.FAIL: "make the model smaller or simpler (`compress`), give it more threads, or raise max_ms",
    Verdict.INCONCLUSIVE: "run on a quieter host, or compare against a reference with assert_not_slower, "
    "which noise does not move",
}


@dataclass(frozen=True, slots=True)
class LatencyJudgement:
    """The bounds by each clock and the interval that combines them; `cpu` is None where it does not judge."""

    wall: Bounds
    cpu: Bounds | None
    interval: Interval

    def verdict(self, max_ms: float) -> Verdict:
        """What the combined interval says of the budget."""
        return Budget("at most", max_ms).judge(self.wall.estimate, self.interval)

    def findings(self, max_ms: float) -> tuple[str, ...]:
        """A sentence where the two clocks disagree about the budget."""
        if self.cpu is None or self.wall.low <= max_ms:
            return ()
        if self.cpu.low > max_ms:
            return (f"the thread's own CPU time exceeds the budget too: {self.cpu.estimate:.3g} ms",)
        return (
            f"noisy host: by wall time the call is too slow ({self.wall.estimate:.3g} ms), "
            f"by the thread's own CPU time it is not ({self.cpu.estimate:.3g} ms)",
        )


def judge_latency(
    times: CallTimes,
    *,
    quantile: float,
    low_level: float,
    high_level: float,
    works_in_this_thread: bool,
) -> LatencyJudgement:
    """How timed calls stand to a budget: the pure part of `measure_latency`, which reads no clock."""
    wall = quantile_bounds(times.wall_ms, quantile, low_level=low_level, high_level=high_level)
    cpu = None
    low = wall.low
    if works_in_this_thread:
        cpu = quantile_bounds(times.cpu_ms, quantile, low_level=low_level, high_level=high_level)
        # CPU time can only be below wall time by what the host took away, so it may lift FAIL and never add one.
        low = min(low, cpu.low)
    return LatencyJudgement(wall, cpu, Interval(low, wall.high, low_level, high_level))
