"""Memory gate: peak memory of serving, in fresh processes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import numpy as np

from pytest_modelserve.artifacts import Artifact
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Quantity,
    Verdict,
    check_error_rates,
)
from pytest_modelserve.performance.batches import Batches, batches_of
from pytest_modelserve.performance.fresh_process import (
    MEDIAN_OF_STARTS,
    FreshStart,
    fresh_job,
    median_interval,
    start_in_fresh_process,
    start_until_decided,
)
from pytest_modelserve.performance.resident_memory import describe_source
from pytest_modelserve.performance.timing import host_state
from pytest_modelserve.serving import Predictor
from pytest_modelserve.serving.inputs import check_positive

_MIB = 1 << 20
# The arena of onnxruntime grows in the first call and, where shapes allow another plan, once more in the second.
_CALLS = 5


def measure_memory(
    artifact: Artifact | Predictor | str | os.PathLike[str],
    inputs: Batches,
    *,
    max_mib: float,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    time_limit_s: float = 60.0,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Measure the peak memory that serving adds to a process, against a budget of `max_mib` MiB.

    Each measurement is a new interpreter that imports onnxruntime, opens the model and predicts each batch five times.
    The figure is its peak of resident memory (VmHWM) less what it held after the imports. It contains the model, the
    session, inputs, arenas and outputs, but no GPU memory.

    The median over fresh processes is judged by the sign test's interval. PASS requires 6 processes within the budget,
    or 10 of which at most one is not; FAIL requires 10 beyond it. The error rate of PASS is split over these two
    interim analyses; FAIL is claimed at the second alone. Processes are assumed to be independent and identically
    distributed.

    Args:
        artifact: An artifact, the path of an ONNX file, or a predictor that serves one; its interpreter starts.
        inputs: One batch, shape (rows, ...) for each input, as it is deployed; or a list of batches of different
            shapes.
        max_mib: The largest addition to memory allowed, in MiB.
        providers: Execution providers of onnxruntime; by default those of the predictor, or the CPU.
        threads: Threads of the session; by default those of the predictor, or 1.
        time_limit_s: The longest that one process may take, in seconds.
        confidence: The level at which PASS is claimed.
        alpha: The error rate of FAIL.

    Returns:
        Evidence with the median peak, its spread and the baseline, in bytes.

    Raises:
        UsageError: A budget is not positive, or the model has inputs that are not tensors.
        InputError: The inputs do not fit the model, or a batch holds no row.
        ModelServeError: This host has neither /proc nor psutil, or a process failed or took longer than `time_limit_s`.

    Example:
        `ms.assert_memory("model.onnx", batch, max_mib=200)` starts six processes or more.
    """
    check_positive("max_mib", max_mib, "MiB")
    check_positive("time_limit_s", time_limit_s, "seconds")
    check_error_rates(confidence=confidence, alpha=alpha)
    source = describe_source()
    began = time.perf_counter()
    subject, job, feeds = fresh_job(artifact, batches_of(inputs), providers=providers, threads=threads, calls=_CALLS)
    budget = Budget.of("max_mib", max_mib, unit=_MIB)

    def peak(starts: Sequence[FreshStart]) -> Quantity:
        value, interval = median_interval([s.added_bytes for s in starts], confidence=confidence, alpha=alpha)
        return Quantity("peak", value, "bytes", interval, budget)

    starts = start_until_decided(
        lambda: start_in_fresh_process(job, feeds, time_limit_s=time_limit_s),
        lambda starts: _verdict(peak(starts)),
        confidence=confidence,
        alpha=alpha,
    )
    added = [s.added_bytes for s in starts]
    verdict = _verdict(peak(starts))
    return Evidence(
        gate="memory",
        subject=subject,
        quantities=(
            peak(starts),
            Quantity("spread", max(added) - min(added), "bytes"),
            Quantity("baseline", float(np.median([s.baseline_bytes for s in starts])), "bytes"),
        ),
        n=len(starts),
        n_unit="fresh processes",
        method=MEDIAN_OF_STARTS,
        summary=_SUMMARIES[verdict],
        confidence=confidence,
        alpha=alpha,
        findings=(source,) if source else (),
        advice="" if verdict is Verdict.PASS else _ADVICE,
        details={
            "added_bytes": added,
            "baseline_bytes": [s.baseline_bytes for s in starts],
            "calls": _CALLS,
            "batches": len(feeds),
            "host": host_state(),
        },
        duration_s=time.perf_counter() - began,
    )


def _verdict(quantity: Quantity) -> Verdict:
    assert quantity.verdict is not None
    return quantity.verdict


_SUMMARIES = {
    Verdict.PASS: "serving stays within its memory budget",
    Verdict.FAIL: "serving takes more memory than its budget allows",
    Verdict.INCONCLUSIVE: "the fresh processes do not decide whether serving stays within its memory budget",
}
_ADVICE = "serve smaller batches, compress the weights (`int8-dynamic`), or raise max_mib"
