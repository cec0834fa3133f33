"""Memory gates: peak memory of serving in fresh processes, and growth of memory per call."""

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

_MIB = 1 << 20
# The arena of onnxruntime grows in the first call and, where shapes allow another plan, once more in the second.
_CALLS = 5


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
    """Measure the peak memory that serving adds to a process, against a budget of `max_mib` MiB.

    Each measurement is a new interpreter that imports onnxruntime, opens the model and predicts `inputs` five times.
    The figure is its peak of resident memory (VmHWM) less what it held after the imports. It contains the model, the
    session, inputs, arenas and outputs, but no GPU memory.

    The median over fresh processes is judged by the sign test's interval. PASS requires 6 processes within the budget,
    or 10 of which at most one is not; FAIL requires 10 beyond it. The error rate of PASS is split over these two
    interim analyses; FAIL is claimed at the second alone. Processes are assumed to be independent and identically
    distributed.

    Args:
        artifact: An artifact, or the path of an ONNX file.
        inputs: One batch, shape (rows, ...) for each input: pass the batch that is deployed.
        max_mib: The largest addition to memory allowed, in MiB.
        providers: Execution providers of onnxruntime.
        threads: Threads of the session.
        time_limit_s: The longest that one process may take, in seconds.
        confidence: The level at which PASS is claimed.
        alpha: The error rate of FAIL.

    Returns:
        Evidence with the median peak, its spread and the baseline, in bytes.

    Raises:
        UsageError: A budget is not positive, or the model has inputs that are not tensors.
        InputError: The inputs do not fit the model, or hold no row.
        ModelServeError: This host has no /proc, or a process failed or took longer than `time_limit_s`.

    Example:
        `ms.assert_memory("model.onnx", batch, max_mib=200)` starts six processes or more.
    """
    check_positive("max_mib", max_mib, "MiB")
    check_positive("time_limit_s", time_limit_s, "seconds")
    check_error_rates(confidence=confidence, alpha=alpha)
    check_host()
    began = time.perf_counter()
    artifact, job, feed = fresh_job(artifact, inputs, providers=providers, threads=threads, calls=_CALLS)
    budget = Budget("at_most", max_mib * _MIB)

    def peak(starts: Sequence[FreshStart]) -> Quantity:
        value, interval = median_interval([s.added_bytes for s in starts], confidence=confidence, alpha=alpha)
        return Quantity("peak", value, "bytes", interval, budget)

    starts = start_until_decided(
        lambda: start_in_fresh_process(job, feed, time_limit_s=time_limit_s),
        lambda starts: _verdict(peak(starts)),
        confidence=confidence,
        alpha=alpha,
    )
    added = [s.added_bytes for s in starts]
    verdict = _verdict(peak(starts))
    return Evidence(
        gate="memory",
        subject=artifact.subject,
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
    Verdict.PASS: "serving stays within its memory budget",
    Verdict.FAIL: "serving takes more memory than its budget allows",
    Verdict.INCONCLUSIVE: "the fresh processes do not decide whether serving stays within its memory budget",
}
_ADVICE = "serve smaller batches, compress the weights (`int8-dynamic`), or raise max_mib"


ReadBytes = Callable[[], int]

# Segments of equally many calls between readings: their growths give the interval of the mean.
_SEGMENTS = 20
# Proportion of the calls before the first reading: arenas, caches and Python's own pools fill.
_WARM_UP_PROPORTION = 0.25
# glibc's heap grows in steps of 128 KiB (M_TOP_PAD) and a page: a leak is invisible until it fills one.
_STEP_BYTES = 132 * 1024
# There are enough calls for a leak as large as the budget to fill this many steps, two for each segment.
_STEPS_AT_BUDGET = 40
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
    """Measure how much resident memory of this process grows per call, against `max_kib_per_call` KiB.

    A quarter of the calls warms up. The rest is divided into 20 segments, and the mean growth over the segments gets
    the interval of `stats.mean_bounds`: a single jump, by another thread for example, widens it and does not decide. A
    heap grows in steps and hides what does not fill one yet, so the high end allows for one step (132 KiB) over all
    calls. A leak as large as the budget fills 40 steps: 5,280 calls for a budget of 1 KiB.

    The growths of segments are assumed to be independent and identically distributed. Memory that oscillates around a
    level makes the interval too wide, never too narrow. Only this process is measured: no endpoint and no GPU.

    Args:
        predictor: The served model.
        inputs: One batch, shape (rows, ...) for each input.
        max_kib_per_call: The largest growth allowed, in KiB per call.
        time_limit_s: The time after which no call begins, in seconds. Segments that are then missing make the verdict
            INCONCLUSIVE.
        confidence: The level at which PASS is claimed.
        alpha: The error rate of FAIL.

    Returns:
        Evidence with the growth per call, the total growth and resident memory, in bytes.

    Raises:
        UsageError: `max_kib_per_call` or `time_limit_s` is not positive.
        InputError: The inputs hold no row.
        ModelServeError: This host has no /proc.
        Exception: What the model raises, with a note of the number of the call.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x + 1)
        >>> ms.measure_memory_growth(model, np.zeros((1, 4), np.float32), max_kib_per_call=1000).n
        400
    """
    check_positive("max_kib_per_call", max_kib_per_call, "KiB")
    check_positive("time_limit_s", time_limit_s, "seconds")
    check_error_rates(confidence=confidence, alpha=alpha)
    check_not_empty(inputs)
    began = time.perf_counter()
    budget = Budget("at_most", max_kib_per_call * 1024)
    readings = read_memory(
        lambda: predictor.predict(inputs),
        calls_needed(budget.limit),
        read=resident_bytes,
        wall=Clocks().wall,
        time_limit_s=time_limit_s,
    )
    value, interval = growth_per_call(readings, budget, confidence=confidence, alpha=alpha)
    quantity = Quantity("growth per call", value, "bytes", interval, budget)
    assert quantity.verdict is not None
    return Evidence(
        gate="memory growth",
        subject=predictor.subject,
        quantities=(
            quantity,
            Quantity("total growth", float(readings.bytes[-1] - readings.bytes[0]), "bytes"),
            Quantity("resident", float(readings.bytes[-1]), "bytes"),
        ),
        n=readings.calls,
        n_unit="calls",
        method=Method(
            f"mean growth over {len(readings.bytes) - 1} segments, Student's t or Hall's transformation",
            "Student (1908); Hall (1992), Journal of the Royal Statistical Society B 54, 221–228",
            "growths of segments are independent and identically distributed",
        ),
        summary=_GROWTH_SUMMARIES[quantity.verdict],
        confidence=confidence,
        alpha=alpha,
        findings=()
        if readings.in_time
        else (f"time_limit_s={time_limit_s:g} allowed {readings.calls:,} calls after the warm-up",),
        advice="" if quantity.verdict is Verdict.PASS else _GROWTH_ADVICE,
        details={
            "resident_bytes": [int(reading) for reading in readings.bytes],
            "calls_per_segment": readings.segment,
            "host": host_state(),
            **keep_samples(resident_bytes=readings.bytes),
        },
        duration_s=time.perf_counter() - began,
    )


@dataclass(frozen=True, slots=True)
class Readings:
    """Resident memory at the ends of segments of `segment` calls, shape (segments + 1,)."""

    bytes: NDArray[np.float64]
    segment: int

    @property
    def calls(self) -> int:
        """The number of calls between the first reading and the last."""
        return (self.bytes.size - 1) * self.segment

    @property
    def in_time(self) -> bool:
        """Whether all segments were measured."""
        return self.bytes.size == _SEGMENTS + 1


def calls_needed(limit_bytes: float) -> int:
    """Return how many calls show a leak of `limit_bytes` each as 40 steps of the heap: at least 400, whole segments."""
    calls = max(_FEWEST_CALLS, _STEPS_AT_BUDGET * _STEP_BYTES / limit_bytes)
    return _SEGMENTS * int(np.ceil(calls / _SEGMENTS - 1e-9))


def read_memory(call: Call, calls: int, *, read: ReadBytes, wall: Clock, time_limit_s: float) -> Readings:
    """Read memory over `calls` calls after the warm-up; fewer segments where time is up.

    An exception of `call` gets a note of the number of the call.
    """
    deadline = wall() + round(time_limit_s * 1e9)
    warm_up, segment, made = round(_WARM_UP_PROPORTION * calls), calls // _SEGMENTS, 0

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
        while len(readings) <= _SEGMENTS and called(segment):
            readings.append(read())
    return Readings(np.array(readings, dtype=np.float64), segment)


def growth_per_call(readings: Readings, budget: Budget, *, confidence: float, alpha: float) -> tuple[float, Interval]:
    """Return the mean growth in bytes per call, and its interval: unbounded where a segment is missing."""
    low_level, high_level = levels_for(budget, confidence=confidence, alpha=alpha)
    if not readings.in_time:
        value = float(readings.bytes[-1] - readings.bytes[0]) / max(readings.calls, 1)
        return value, Interval(-np.inf, np.inf, low_level, high_level)
    growths = np.diff(readings.bytes) / readings.segment
    bounds = mean_bounds(growths, low_level=low_level, high_level=high_level)
    hidden = _STEP_BYTES / readings.calls
    return bounds.estimate, Interval(bounds.low, bounds.high + hidden, low_level, high_level)


_GROWTH_SUMMARIES = {
    Verdict.PASS: "memory does not grow beyond its budget",
    Verdict.FAIL: "memory grows with every call",
    Verdict.INCONCLUSIVE: "the readings do not decide whether memory grows beyond its budget",
}
_GROWTH_ADVICE = (
    "look for references that keep inputs or outputs alive (caches, lists, callbacks), or measure in a process where "
    "nothing else allocates"
)
