"""How much memory serving takes: the peak of processes that start afresh."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import numpy as np

from pytest_modelserve.artifacts import Artifact
from pytest_modelserve.evidence import Budget, Evidence, Quantity, Verdict, check_error_rates
from pytest_modelserve.performance.asking import check_positive
from pytest_modelserve.performance.fresh import (
    MEDIAN_OF_STARTS,
    fresh_job,
    median_interval,
    start_in_fresh_process,
    start_until_decided,
)
from pytest_modelserve.performance.fresh_child import FreshStart
from pytest_modelserve.performance.host import host_state
from pytest_modelserve.performance.memory_of_process import check_host
from pytest_modelserve.serving import Inputs

_MIB = 1 << 20
_CALLS = 5
"""The arena of onnxruntime grows in the first call and, where shapes allow another plan, once more in the second."""


def measure_memory(
    artifact: Artifact | str | os.PathLike[str],
    inputs: Inputs,
    *,
    max_mib: float,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 1,
    time_limit_s: float = 60.0,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Evidence that serving `inputs` adds at most `max_mib` MiB to the memory of a process, at its peak.

    Each measurement is a new interpreter, which imports onnxruntime, and then opens the model and predicts `inputs`
    five times: pass the batch that is deployed. The figure is its peak of resident memory (VmHWM) less what it held
    after the imports; model, session, inputs, arenas and outputs count. Host memory alone is counted, not a GPU's.

    Judged is the median over fresh processes, by the sign test's interval: PASS rests on 6 of them that are all inside
    the budget, or on 10 of which one may lie outside; FAIL on 10 that are all outside. The error of PASS is split over
    these two looks, FAIL is said at the second alone. Assumes processes that are independent of each other and alike.

    Raises UsageError for a budget that is not positive, InputError for inputs that do not fit, and ModelServeError on
    a host without /proc, for a process that fails, and for one that takes longer than `time_limit_s`.
    """
    check_positive("max_mib", max_mib, "MiB")
    check_positive("time_limit_s", time_limit_s, "seconds")
    check_error_rates(confidence=confidence, alpha=alpha)
    check_host()
    began = time.perf_counter()
    artifact, job, feed = fresh_job(artifact, inputs, providers=providers, threads=threads, calls=_CALLS)
    budget = Budget("at most", max_mib * _MIB)

    def judged(starts: Sequence[FreshStart]) -> Quantity:
        value, interval = median_interval([s.added_bytes for s in starts], confidence=confidence, alpha=alpha)
        return Quantity("peak", value, "bytes", interval, budget)

    starts = start_until_decided(
        lambda: start_in_fresh_process(job, feed, time_limit_s=time_limit_s),
        lambda starts: _verdict(judged(starts)),
        confidence=confidence,
        alpha=alpha,
    )
    added = [s.added_bytes for s in starts]
    verdict = _verdict(judged(starts))
    return Evidence(
        gate="memory",
        subject=artifact.subject,
        quantities=(
            judged(starts),
            Quantity("spread", max(added) - min(added), "bytes"),
            Quantity("baseline", float(np.median([s.baseline_bytes for s in starts])), "bytes"),
        ),
        n=len(starts),
        n_unit="fresh processes",
        method=MEDIAN_OF_STARTS,
        summary=_SUMMARIES[verdict],
        confidence=confidence,
        alpha=alpha,
        advice="" if verdict is Verdict.PASS else _ADVICE,
        details={
            "added_bytes": added,
            "baseline_bytes": [s.baseline_bytes for s in starts],
            "calls": _CALLS,
            "host": host_state(),
        },
        duration_s=time.perf_counter() - began,
    )


def _verdict(quantity: Quantity) -> Verdict:
    assert quantity.verdict is not None
    return quantity.verdict


_SUMMARIES = {
    Verdict.PASS: "serving stays inside its memory budget",
    Verdict.FAIL: "serving takes more memory than its budget allows",
    Verdict.INCONCLUSIVE: "the memory that serving takes cannot be told from its budget",
}
_ADVICE = "serve smaller batches, compress the weights (`int8-dynamic`), or raise max_mib"
