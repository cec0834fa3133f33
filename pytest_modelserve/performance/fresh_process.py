"""Fresh processes that serve a model: how they are started, and how many are needed to decide."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_modelserve.artifacts import Artifact, as_artifact
from pytest_modelserve.errors import ModelServeError, UsageError
from pytest_modelserve.evidence import Interval, Method, Subject, Verdict
from pytest_modelserve.performance.batches import check_batch
from pytest_modelserve.performance.resident_memory import peak_bytes, reset_peak, resident_bytes
from pytest_modelserve.performance.timing import host_lock
from pytest_modelserve.progress import progress
from pytest_modelserve.serving import Inputs, Predictor, serve
from pytest_modelserve.serving.predictor import CPU, ProcessCrashError
from pytest_modelserve.serving.serve import in_child
from pytest_modelserve.signing import CheckedCopy, checked_copy
from pytest_modelserve.stats import interim_error_rate, median_bounds

if TYPE_CHECKING:
    from pytest_modelserve.serving.subprocess_predictor import SubprocessPredictor

# The method of `start_until_decided` and `median_interval`.
MEDIAN_OF_STARTS = Method(
    "sign interval of the median, one of 2 interim analyses",
    "David & Nagaraja, Order Statistics, 3rd ed. 2003, section 7.1; Bonferroni over the interim analyses",
    "processes are independent and identically distributed",
)
_ANALYSES = 2


@dataclass(frozen=True, slots=True)
class FreshStart:
    """Measurements of one start: wall time, CPU time of the whole process, and memory.

    `run_delay_ms` is the part of wall time for which the main thread was ready to run and did not; None where it is not
    known. `baseline_bytes` is resident memory after the imports, `peak_bytes` its maximum until the last call; both are
    0 where the system does not report memory.
    """

    session_ms: float
    session_cpu_ms: float
    first_call_ms: float
    first_call_cpu_ms: float
    baseline_bytes: int
    peak_bytes: int
    run_delay_ms: float | None = None

    @property
    def added_bytes(self) -> int:
        """The memory that the model, its session, the inputs and the calls added to the baseline."""
        return self.peak_bytes - self.baseline_bytes


@dataclass(frozen=True, slots=True, eq=False)
class FreshJob:
    """What a fresh process serves, without the inputs, and by which Python: by default this one.

    `copy` is the private copy of a signed model, which is removed with the job.
    """

    artifact: Artifact
    providers: Sequence[str]
    threads: int
    calls: int
    interpreter: str | None = None
    copy: CheckedCopy | None = None


def fresh_job(
    model: object,
    batches: Sequence[Inputs],
    *,
    providers: Sequence[str] | None,
    threads: int | None,
    calls: int,
) -> tuple[Subject, FreshJob, list[Inputs]]:
    """Return the subject, the job of a fresh process, and the batches, after one prediction with each.

    Providers and threads that are None are those of the predictor, or one thread of the CPU. UsageError for anything
    but a file (`as_artifact`); InputError for inputs that do not fit.
    """
    artifact = as_artifact(model)
    copy = checked_copy(artifact, None)
    artifact = artifact if copy is None else copy.artifact  # what was verified is what is opened
    child = in_child(model) if isinstance(model, Predictor) else None
    interpreter = None if child is None else child.process.interpreter
    for batch in batches:
        check_batch(batch)
    others = [spec.name for spec in artifact.signature.inputs if not spec.is_tensor]
    if others:
        raise UsageError(f"input {others[0]!r} is not a tensor: only tensors can be sent to a fresh process")
    providers = tuple(getattr(model, "providers", (CPU,)) if providers is None else providers)
    threads = getattr(model, "threads", 1) if threads is None else threads
    with serve(artifact, providers=providers, threads=threads, interpreter=interpreter) as predictor:
        for batch in batches:
            predictor.predict(batch)
    subject = artifact.subject if child is None else child.subject
    return subject, FreshJob(artifact, providers, threads, calls, interpreter, copy), list(batches)


def start_in_fresh_process(job: FreshJob, batches: Sequence[Inputs], *, time_limit_s: float) -> FreshStart:
    """Open the model in a new interpreter and predict each batch `job.calls` times, holding the host lock.

    The process holds what a server would hold: the interpreter, numpy, onnxruntime, one session and the inputs. A
    forked child would begin with this process's memory. ModelServeError for a process that fails, and for one that is
    killed because it takes longer than the limit.
    """
    from pytest_modelserve.serving.subprocess_predictor import SubprocessPredictor

    with (
        host_lock(),
        SubprocessPredictor(
            job.artifact,
            time_limit_s=time_limit_s,
            providers=job.providers,
            threads=job.threads,
            start_limit_s=time_limit_s,
            interpreter=job.interpreter,
        ) as model,
    ):
        try:
            return _measure_start(model, job, batches, deadline=time.monotonic() + time_limit_s)
        except ProcessCrashError as error:
            if error.time_limit_s is None:
                raise ModelServeError(f"a fresh process that serves {job.artifact.path} failed: {error}") from None
            raise ModelServeError(
                f"a fresh process that serves {job.artifact.path} took longer than {time_limit_s:g} s and was killed: "
                "raise time_limit_s, or find out what blocks it"
            ) from None


def _measure_start(
    model: SubprocessPredictor, job: FreshJob, batches: Sequence[Inputs], *, deadline: float
) -> FreshStart:
    process = model.process
    process.start()
    assert process.child is not None
    pid = process.child.pid
    reset_peak(pid)  # a small model would be hidden by the peak of the imports
    baseline = _reading(lambda: resident_bytes(pid))
    model.keep(batches)  # after the baseline, so that the inputs are measured
    opened = model.open()

    def timed(which: int, calls: int) -> dict[str, Any]:
        left_s = max(deadline - time.monotonic(), 0.0)
        return model.request("time", limit_s=left_s, order=np.full(calls, which), most_s=left_s)  # type: ignore[no-any-return]

    first = timed(0, 1)
    timed(0, job.calls - 1)
    for which in range(1, len(batches)):
        timed(which, job.calls)
    # Threads that compute beside the main one go on while it waits for a CPU, so that its delay is not lost time.
    runs_alone = job.threads == 1 and tuple(job.providers) == (CPU,)
    is_known = runs_alone and first["delay"] is not None
    return FreshStart(
        session_ms=opened["wall"] / 1e6,
        session_cpu_ms=opened["process"] / 1e6,
        first_call_ms=float(first["wall"][0]) / 1e6,
        first_call_cpu_ms=first["process"] / 1e6,
        baseline_bytes=baseline,
        peak_bytes=_reading(
            lambda: peak_bytes(pid, max_rss=lambda: int(process.request("max_rss", model.time_limit_s)))
        ),
        run_delay_ms=(opened["delay"] + float(first["delay"][0])) / 1e6 if is_known else None,
    )


def _reading(read: Callable[[], int]) -> int:
    """Return a reading of memory; 0 on a system without one, where the start can be timed all the same."""
    try:
        return read()
    except ModelServeError:
        return 0


def start_until_decided(
    start: Callable[[], FreshStart],
    verdict: Callable[[Sequence[FreshStart]], Verdict],
    *,
    confidence: float,
    alpha: float,
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
