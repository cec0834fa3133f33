"""How much memory serving takes: the peak of processes that start afresh."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Artifact
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Verdict,
    check_error_rates,
    keep_samples,
    levels_for,
)
from pytest_modelserve.performance.fresh_process import (
    MEDIAN_OF_STARTS,
    fresh_job,
    median_interval,
    start_in_fresh_process,
    start_until_decided,
)
from pytest_modelserve.performance.fresh_worker import FreshStart, check_host, resident_bytes
from pytest_modelserve.performance.timing import Call, Clock, Clocks, host_state
from pytest_modelserve.serving import Inputs, Predictor
from pytest_modelserve.serving.inputs import check_not_empty, check_positive
from pytest_modelserve.stats import mean_bounds

# How much memory this process holds and held at most, as Linux counts it.


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
    budget = Budget("at_most", max_mib * _MIB)

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


# Does memory grow with every call? The trend of resident memory over many calls, once the arenas have settled.


ReadBytes = Callable[[], int]

_BLOCKS = 20
"""Stretches between readings: as many growths to judge a mean by."""
_WARM_UP_SHARE = 0.25
"""So much of the calls goes before the first reading that counts: arenas, caches and Python's own pools settle."""
_STEP_BYTES = 132 * 1024
"""glibc's heap grows in steps of 128 KiB (M_TOP_PAD) and a page: a leak is invisible until it fills one."""
_STEPS_AT_BUDGET = 40
"""Calls are so many that a leak as large as the budget shows in this many steps, two to a stretch."""
_FEWEST_CALLS = 400


def measure_memory_growth(
    predictor: Predictor,
    inputs: Inputs,
    *,
    max_kib_per_call: float,
    time_limit_s: float = 60.0,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Evidence that resident memory of this process grows by at most `max_kib_per_call` KiB with each call.

    A quarter of the calls warms up. The rest is cut into 20 stretches of equally many calls, and judged is the mean
    growth over them, between `stats.mean_bounds`: a single jump, by another thread say, widens the interval instead of
    deciding. A heap grows in steps, and what has not filled one yet is not seen, so the high end has room for one step
    (132 KiB) over all calls. There are so many calls that a leak as large as the budget takes 40 steps: 5,280 for a
    budget of 1 KiB.

    Assumes that the growths of stretches are independent and alike, as they are for a heap that grows by chance; memory
    that only goes up and down around a level makes the interval too wide, never too short. Growth in this process alone
    is seen: not that of an endpoint, nor of a GPU.

    No call begins after `time_limit_s`; stretches that are then missing leave the verdict INCONCLUSIVE.

    Raises UsageError for a budget that is not positive and ModelServeError on a host without /proc. What the model
    raises passes through, with the number of the call.
    """
    check_positive("max_kib_per_call", max_kib_per_call, "KiB")
    check_positive("time_limit_s", time_limit_s, "seconds")
    check_error_rates(confidence=confidence, alpha=alpha)
    check_not_empty(inputs)
    began = time.perf_counter()
    budget = Budget("at_most", max_kib_per_call * 1024)
    readings = read_while_calling(
        lambda: predictor.predict(inputs),
        calls_for(budget.limit),
        read=resident_bytes,
        wall=Clocks().wall,
        time_limit_s=time_limit_s,
    )
    value, interval = growth_per_call(readings, budget, confidence=confidence, alpha=alpha)
    quantity = Quantity("growth a call", value, "bytes", interval, budget)
    assert quantity.verdict is not None
    return Evidence(
        gate="memory growth",
        subject=predictor.subject,
        quantities=(
            quantity,
            Quantity("growth in all", float(readings.bytes[-1] - readings.bytes[0]), "bytes"),
            Quantity("resident", float(readings.bytes[-1]), "bytes"),
        ),
        n=readings.calls,
        n_unit="calls",
        method=Method(
            f"mean growth over {len(readings.bytes) - 1} stretches, Student's t or Hall's transformation",
            "Student (1908); Hall (1992), Journal of the Royal Statistical Society B 54, 221–228",
            "growths of stretches are independent and alike",
        ),
        summary=_SUMMARIES_leak[quantity.verdict],
        confidence=confidence,
        alpha=alpha,
        findings=()
        if readings.in_time
        else (f"time_limit_s = {time_limit_s:g} left room for {readings.calls:,} calls after the warm-up",),
        advice="" if quantity.verdict is Verdict.PASS else _ADVICE_leak,
        details={
            "resident_bytes": [int(reading) for reading in readings.bytes],
            "calls_per_stretch": readings.stretch,
            "host": host_state(),
            **keep_samples(resident_bytes=readings.bytes),
        },
        duration_s=time.perf_counter() - began,
    )


@dataclass(frozen=True, slots=True)
class Readings:
    """Resident memory at the ends of stretches of `stretch` calls, shape (stretches + 1,)."""

    bytes: NDArray[np.float64]
    stretch: int

    @property
    def calls(self) -> int:
        """How many calls lie between the first reading and the last."""
        return (self.bytes.size - 1) * self.stretch

    @property
    def in_time(self) -> bool:
        """Whether every stretch was called."""
        return self.bytes.size == _BLOCKS + 1


def calls_for(limit_bytes: float) -> int:
    """How many calls show a leak of `limit_bytes` each as 40 steps of the heap; 400 at least, in whole stretches."""
    calls = max(_FEWEST_CALLS, _STEPS_AT_BUDGET * _STEP_BYTES / limit_bytes)
    return _BLOCKS * int(np.ceil(calls / _BLOCKS - 1e-9))


def read_while_calling(call: Call, calls: int, *, read: ReadBytes, wall: Clock, time_limit_s: float) -> Readings:
    """Readings over `calls` calls after the warm-up; fewer stretches where time is up. What `call` raises passes
    through with the number of the call."""
    deadline = wall() + round(time_limit_s * 1e9)
    warm_up, stretch, made = round(_WARM_UP_SHARE * calls), calls // _BLOCKS, 0

    def called(n: int) -> bool:
        nonlocal made
        for _ in range(n):
            if wall() >= deadline:
                return False
            try:
                call()
            except Exception as error:
                error.add_note(f"raised by call {made + 1} of {warm_up + calls}")
                raise
            made += 1
        return True

    readings = [read()]
    if called(warm_up):
        readings = [read()]
        while len(readings) <= _BLOCKS and called(stretch):
            readings.append(read())
    return Readings(np.array(readings, dtype=np.float64), stretch)


def growth_per_call(readings: Readings, budget: Budget, *, confidence: float, alpha: float) -> tuple[float, Interval]:
    """The mean growth in bytes a call, and its interval; without both ends where a stretch is missing."""
    low_level, high_level = levels_for(budget, confidence=confidence, alpha=alpha)
    if not readings.in_time:
        value = float(readings.bytes[-1] - readings.bytes[0]) / max(readings.calls, 1)
        return value, Interval(-np.inf, np.inf, low_level, high_level)
    growths = np.diff(readings.bytes) / readings.stretch
    bounds = mean_bounds(growths, low_level=low_level, high_level=high_level)
    unseen = _STEP_BYTES / readings.calls
    return bounds.estimate, Interval(bounds.low, bounds.high + unseen, low_level, high_level)


_SUMMARIES_leak = {
    Verdict.PASS: "memory does not grow beyond its budget",
    Verdict.FAIL: "memory grows with every call",
    Verdict.INCONCLUSIVE: "the growth of memory cannot be told from its budget",
}
_ADVICE_leak = (
    "look for what keeps inputs or outputs alive (caches, lists, callbacks), or run it in a process where nothing else "
    "allocates"
)
