"""Fresh processes that serve a model: how they are started, and how many are needed to decide."""

from __future__ import annotations

import json
import math
import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pytest_modelserve._processes import call_in_child, format_log
from pytest_modelserve.artifacts import Artifact, Signature, as_artifact
from pytest_modelserve.errors import ModelServeError, UsageError
from pytest_modelserve.evidence import Interval, Method, Verdict
from pytest_modelserve.performance.batches import check_batch
from pytest_modelserve.performance.fresh_worker import FreshJob, FreshStart
from pytest_modelserve.performance.timing import host_lock
from pytest_modelserve.progress import progress
from pytest_modelserve.serving import Inputs, serve
from pytest_modelserve.serving.inputs import checked_feed
from pytest_modelserve.stats import interim_error_rate, median_bounds

# The method of `start_until_decided` and `median_interval`.
MEDIAN_OF_STARTS = Method(
    "sign interval of the median, one of 2 interim analyses",
    "David & Nagaraja, Order Statistics, 3rd ed. 2003, section 7.1; Bonferroni over the interim analyses",
    "processes are independent and identically distributed",
)
_ANALYSES = 2
_CHILD = "pytest_modelserve.performance.fresh_worker:run"

Feed = dict[str, NDArray[Any]]
Start = Callable[[], FreshStart]


def fresh_job(
    model: object,
    batches: Sequence[Inputs],
    *,
    providers: Sequence[str],
    threads: int,
    calls: int,
) -> tuple[Artifact, FreshJob, list[Feed]]:
    """Return the artifact, the job of a fresh process, and each batch by name, after one prediction in this process.

    UsageError for anything but a file (`as_artifact`), and for a model with inputs that are not tensors; InputError for
    inputs that do not fit.
    """
    artifact = as_artifact(model)
    for batch in batches:
        check_batch(batch)
    others = [spec.name for spec in artifact.signature.inputs if not spec.is_tensor]
    if others:
        raise UsageError(f"input {others[0]!r} is not a tensor: only tensors can be sent to a fresh process")
    with serve(artifact, providers=providers, threads=threads) as predictor:
        for batch in batches:
            predictor.predict(batch)
    job = FreshJob(
        model=str(artifact.path),
        signature=Signature(artifact.signature.inputs, artifact.signature.outputs),
        providers=tuple(providers),
        threads=threads,
        calls=calls,
    )
    return artifact, job, [checked_feed(batch, artifact.signature) for batch in batches]


def start_in_fresh_process(job: FreshJob, feeds: list[Feed], *, time_limit_s: float) -> FreshStart:
    """Start `job` with the batches `feeds` in a new interpreter, holding the host lock.

    A forked child would begin with this process's memory. ModelServeError for a process that fails, with the end of its
    output, and for one that is killed because it takes longer than the limit.
    """
    with tempfile.TemporaryDirectory(prefix="modelserve-") as folder, host_lock():
        # A file, as inputs that are sent would be part of the baseline; from protocol 5 on arrays are read without a
        # second copy.
        inputs_file = Path(folder, "inputs")
        inputs_file.write_bytes(pickle.dumps(feeds, protocol=5))
        result = call_in_child(_CHILD, pickle.dumps((job, str(inputs_file))), timeout_s=time_limit_s)
    if isinstance(result, bytes):
        return FreshStart(**json.loads(result))
    if result.timed_out:
        raise ModelServeError(
            f"a fresh process that serves {job.model} took longer than {time_limit_s:g} s and was killed: "
            "raise time_limit_s, or find out what blocks it"
        )
    raise ModelServeError(f"a fresh process that serves {job.model} failed, {result}{format_log(result.log_tail)}")


def start_until_decided(
    start: Start, verdict: Callable[[Sequence[FreshStart]], Verdict], *, confidence: float, alpha: float
) -> tuple[FreshStart, ...]:
    """Start the fewest processes that can PASS, and if they do not decide, the fewest that can FAIL."""
    starts: list[FreshStart] = []
    for size in interim_starts(confidence=confidence, alpha=alpha):
        starts += [start() for _ in progress(range(size - len(starts)), "fresh processes")]
        if verdict(starts) is not Verdict.INCONCLUSIVE:
            break
    return tuple(starts)


def interim_starts(*, confidence: float, alpha: float) -> tuple[int, int]:
    """Return the numbers of starts at the two analyses: 6 and 10 for the default error rates.

    All of n starts lie above their median with probability 2⁻ⁿ. PASS is possible at both analyses, so each takes half
    of its error rate; FAIL is possible at the second alone, which takes all of alpha.
    """
    to_pass = math.ceil(-math.log2(interim_error_rate(1 - confidence, _ANALYSES)))
    to_fail = math.ceil(-math.log2(alpha))
    return to_pass, max(to_fail, to_pass + 1)


def median_interval(values: Sequence[float], *, confidence: float, alpha: float) -> tuple[float, Interval]:
    """Return the median of positive `values` and its interval; at the first analysis the low end is 0."""
    bounds = median_bounds(values, low_level=1 - alpha, high_level=1 - interim_error_rate(1 - confidence, _ANALYSES))
    may_fail = len(values) >= interim_starts(confidence=confidence, alpha=alpha)[1]
    low = bounds.low if may_fail else 0.0
    return bounds.estimate, Interval(low, bounds.high, bounds.low_level, bounds.high_level)
