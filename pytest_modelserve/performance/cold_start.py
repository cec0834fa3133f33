"""Cold-start gate: time to open a session and to make the first call, in fresh processes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pytest_modelserve.artifacts import Artifact
from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Budget, Evidence, Quantity, Verdict, check_error_rates
from pytest_modelserve.performance.fresh_process import (
    MEDIAN_OF_STARTS,
    FreshStart,
    fresh_job,
    median_interval,
    start_in_fresh_process,
    start_until_decided,
)
from pytest_modelserve.performance.timing import host_state
from pytest_modelserve.serving import Inputs, Predictor
from pytest_modelserve.serving.inputs import check_positive


def measure_cold_start(
    artifact: Artifact | Predictor | str | os.PathLike[str],
    inputs: Inputs,
    *,
    max_cpu_ms: float | None = None,
    max_ms: float | None = None,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    time_limit_s: float = 60.0,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Measure how long a model takes to open and to make its first prediction, against one or two budgets.

    Each start is a new interpreter, whose imports are not counted. `max_ms` is judged by undisturbed time, as in
    `measure_latency`: wall time less what other processes took. With several threads, or where the system does not
    report it, PASS rests on wall time and FAIL on the lower of wall and CPU time. With several threads CPU time can be
    the longer of the two, and wall time then decides alone. The files have been read before, so a cold disk is not
    measured.

    The medians over fresh processes are judged as in `measure_memory`, after 6 processes and, where those do not
    decide, after 10 (11 with two budgets). With two budgets each takes half of `alpha`.

    Args:
        artifact: An artifact, the path of an ONNX file, or a predictor that serves one; its interpreter starts.
        inputs: One batch, shape (rows, ...) for each input.
        max_cpu_ms: The largest CPU time of the whole process, in milliseconds; host load hardly changes it.
        max_ms: The largest time from opening the file to the first prediction, in milliseconds.
        providers: Execution providers of onnxruntime; by default those of the predictor, or the CPU.
        threads: Threads of the session; by default those of the predictor, or 1.
        time_limit_s: The longest that one process may take, in seconds.
        confidence: The level at which PASS is claimed.
        alpha: The error rate of FAIL.

    Returns:
        Evidence with the medians of the start, and of its session and first call, in milliseconds.

    Raises:
        UsageError: No budget is given, one is not positive, or the model has inputs that are not tensors.
        InputError: The inputs do not fit the model, or hold no row.
        ModelServeError: A process failed or took longer than `time_limit_s`.

    Example:
        `ms.assert_cold_start("model.onnx", batch, max_cpu_ms=500)` starts six processes or more.
    """
    budgets = {"max_cpu_ms": max_cpu_ms, "max_ms": max_ms}
    _check(budgets)
    check_positive("time_limit_s", time_limit_s, "seconds")
    check_error_rates(confidence=confidence, alpha=alpha)
    began = time.perf_counter()
    subject, job, feeds = fresh_job(artifact, [inputs], providers=providers, threads=threads, calls=1)
    alpha_each = alpha / sum(limit is not None for limit in budgets.values())

    def medians(starts: Sequence[FreshStart]) -> tuple[Quantity, ...]:
        return median_starts(starts, max_cpu_ms=max_cpu_ms, max_ms=max_ms, confidence=confidence, alpha=alpha_each)

    starts = start_until_decided(
        lambda: start_in_fresh_process(job, feeds, time_limit_s=time_limit_s),
        lambda starts: _worst(medians(starts)),
        confidence=confidence,
        alpha=alpha_each,
    )
    verdict = _worst(medians(starts))
    return Evidence(
        gate="cold start",
        subject=subject,
        quantities=(
            *medians(starts),
            *(Quantity(name, float(np.median(values)), "ms") for name, values in _phases(starts).items()),
            *_wall_quantity(starts, max_ms),
        ),
        n=len(starts),
        n_unit="fresh processes",
        method=MEDIAN_OF_STARTS,
        summary=_SUMMARIES[verdict],
        confidence=confidence,
        alpha=alpha,
        findings=_noise(starts, max_ms),
        advice=_ADVICE[verdict],
        details={
            **{name: list(values) for name, values in _phases(starts).items()},
            **({"run delay": [s.run_delay_ms for s in starts]} if _is_undisturbed(starts) else {}),
            "host": host_state(),
        },
        duration_s=time.perf_counter() - began,
    )


def median_starts(
    starts: Sequence[FreshStart],
    *,
    max_cpu_ms: float | None,
    max_ms: float | None,
    confidence: float,
    alpha: float,
) -> tuple[Quantity, ...]:
    """Return the medians of the starts with their budgets, for those that are given."""
    cpu, cpu_interval = median_interval(_cpu(starts), confidence=confidence, alpha=alpha)
    start, interval = median_interval(_decisive_times(starts), confidence=confidence, alpha=alpha)
    if not _is_undisturbed(starts):
        interval = replace(interval, low=min(interval.low, cpu_interval.low))
    quantities = []
    if max_cpu_ms is not None:
        quantities.append(Quantity("start CPU", cpu, "ms", cpu_interval, Budget.of("max_cpu_ms", max_cpu_ms)))
    if max_ms is not None:
        quantities.append(Quantity("start", start, "ms", interval, Budget.of("max_ms", max_ms)))
    return tuple(quantities)


def _wall(starts: Sequence[FreshStart]) -> list[float]:
    return [s.session_ms + s.first_call_ms for s in starts]


def _is_undisturbed(starts: Sequence[FreshStart]) -> bool:
    """Return whether the run delay of every start is known."""
    return all(s.run_delay_ms is not None for s in starts)


def _decisive_times(starts: Sequence[FreshStart]) -> list[float]:
    """Return undisturbed time where it is known, else wall time."""
    if not _is_undisturbed(starts):
        return _wall(starts)
    return [wall - (s.run_delay_ms or 0.0) for wall, s in zip(_wall(starts), starts, strict=True)]


def _wall_quantity(starts: Sequence[FreshStart], max_ms: float | None) -> tuple[Quantity, ...]:
    """Return the median wall time where undisturbed time decides."""
    if max_ms is None or not _is_undisturbed(starts):
        return ()
    return (Quantity("wall start", float(np.median(_wall(starts))), "ms"),)


def _cpu(starts: Sequence[FreshStart]) -> list[float]:
    return [s.session_cpu_ms + s.first_call_cpu_ms for s in starts]


def _phases(starts: Sequence[FreshStart]) -> dict[str, list[float]]:
    return {
        "session": [s.session_ms for s in starts],
        "session CPU": [s.session_cpu_ms for s in starts],
        "first call": [s.first_call_ms for s in starts],
        "first call CPU": [s.first_call_cpu_ms for s in starts],
    }


def _noise(starts: Sequence[FreshStart], max_ms: float | None) -> tuple[str, ...]:
    wall, cpu = float(np.median(_wall(starts))), float(np.median(_cpu(starts)))
    if max_ms is None or wall <= max_ms or cpu > max_ms or _is_undisturbed(starts):
        return ()
    return (
        f"noisy host, or waiting for a disk: the start is too slow by wall time ({wall:.3g} ms), "
        f"but not by CPU time ({cpu:.3g} ms)",
    )


def _worst(quantities: Sequence[Quantity]) -> Verdict:
    return max((q.verdict for q in quantities if q.verdict is not None), key=lambda verdict: verdict.severity)


def _check(budgets: dict[str, float | None]) -> None:
    if all(limit is None for limit in budgets.values()):
        raise UsageError("a budget is missing: give max_cpu_ms, max_ms, or both")
    for name, limit in budgets.items():
        if limit is not None:
            check_positive(name, limit, "milliseconds")


_SUMMARIES = {
    Verdict.PASS: "the first prediction comes within its budget",
    Verdict.FAIL: "the first prediction comes later than its budget allows",
    Verdict.INCONCLUSIVE: "the fresh processes do not decide whether the first prediction comes within its budget",
}
_ADVICE = {
    Verdict.PASS: "",
    Verdict.FAIL: "optimize the graph beforehand (recipe `optimize`), make the model smaller, or raise the budget",
    Verdict.INCONCLUSIVE: "run on a quieter host, or give max_cpu_ms, which host load hardly changes",
}
