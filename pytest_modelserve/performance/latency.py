"""Is a call fast enough? An absolute budget for a quantile of latency, judged by two clocks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Method,
    Quantity,
    Verdict,
    check_error_rates,
    keep_samples,
)
from pytest_modelserve.performance.asking import check_positive, check_quantile, check_rows
from pytest_modelserve.performance.breakdown import breakdown
from pytest_modelserve.performance.host import host_state
from pytest_modelserve.performance.latency_looks import JudgedCalls, LatencyLooks
from pytest_modelserve.performance.timing import Clocks
from pytest_modelserve.performance.turn import Cap
from pytest_modelserve.serving import Predictor

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
    check_rows(inputs)
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
            Quantity(name, judged.estimate, looks.unit, judged.interval, Budget("at most", limit)),
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
