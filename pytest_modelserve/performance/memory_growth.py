"""Leak gate: growth of resident memory per call, or per reload of the session."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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
    Verdict,
    check_error_rates,
    keep_samples,
    levels_for,
)
from pytest_modelserve.performance.batches import InputSource, InputStream
from pytest_modelserve.performance.resident_memory import resident_bytes
from pytest_modelserve.performance.slowdown import another_session, can_be_rebuilt
from pytest_modelserve.performance.timing import Call, Clock, Clocks, host_state
from pytest_modelserve.serving import Predictor, Servable
from pytest_modelserve.serving.inputs import check_positive
from pytest_modelserve.serving.predictor import ENDPOINT_TRANSPORTS
from pytest_modelserve.serving.serve import in_child, open_models
from pytest_modelserve.stats import mean_bounds

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
# No further call is made once memory has grown by this much, or by half of what was available: a gate must not take the
# memory of the host. A leak as large as a budget of 10 KiB adds 5 MiB in all.
_MOST_GROWTH = 2 << 30
_FEWEST_SEGMENTS = 5


def measure_memory_growth(
    predictor: Servable,
    inputs: InputStream | Any,
    *,
    max_kib_per_call: float,
    vary: bool = True,
    reload: bool = False,
    seed: int = 0,
    time_limit_s: float = 60.0,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Measure how much resident memory grows per call, against `max_kib_per_call` KiB.

    A model may keep something for every new input, so the inputs change from call to call within their shapes:
    floating-point numbers come up to 1 % closer to zero, and rows change their order. Integers, booleans and text keep
    their values, which may be ids. A finding says where nothing could change. With `reload=True` each call opens the
    model anew, predicts and closes it, which shows what a session leaves behind.

    A quarter of the calls warms up. The rest is divided into 20 segments, and the mean growth over the segments gets
    the interval of `stats.mean_bounds`: a single jump, by another thread for example, widens it and does not decide. A
    heap grows in steps and hides what does not fill one yet, so the high end allows for one step (132 KiB) over all
    calls. A leak as large as the budget fills 40 steps: 5,280 calls for a budget of 1 KiB.

    Calls end early once memory has grown by 2 GiB, or by half of what was available; the last three quarters of them
    are then judged. The growths of segments are assumed to be independent and identically distributed. Memory that
    oscillates around a level makes the interval too wide, never too narrow. Only the process that runs the model is
    measured, this one or that of `ms.serve(interpreter=...)`: no endpoint and no GPU.

    Args:
        predictor: The model: whatever `ms.serve` takes.
        inputs: One batch, shape (rows, ...) for each input; a list of batches of different shapes, which are called in
            turn; or a callable without parameters, or any other iterable, that makes the inputs of each call and whose
            inputs are not varied.
        max_kib_per_call: The largest growth allowed, in KiB per call.
        vary: Change the inputs from call to call; False repeats them as they are.
        reload: Serve the model anew for each call. It must be a model file in onnxruntime.
        seed: Seed of the variation.
        time_limit_s: The time after which no call begins, in seconds. Segments that are then missing make the verdict
            INCONCLUSIVE.
        confidence: The level at which PASS is claimed.
        alpha: The error rate of FAIL.

    Returns:
        Evidence with the growth per call, the total growth and resident memory, in bytes.

    Raises:
        UsageError: `max_kib_per_call` or `time_limit_s` is not positive, `vary` or `reload` is not a bool, or `reload`
            is given for a predictor that cannot be served anew.
        InputError: The inputs hold no batch, a batch holds no row, or an iterable ends before the calls do.
        ModelServeError: This host has neither /proc nor psutil.
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
    _check_flags(vary=vary, reload=reload)
    with open_models(predictor, inputs=inputs) as (given, (served,)):
        if served.transport in ENDPOINT_TRANSPORTS:
            raise UsageError(
                f"{served.subject} is an endpoint, whose memory is not this process's: give the server's process to "
                "assert_conformant(endpoint, pid=, max_memory_mib=)"
            )
        if reload and not can_be_rebuilt(served):
            raise UsageError(
                f"reload=True needs a model file in onnxruntime, as ms.serve(path) gives; {served.subject} cannot be "
                "served anew"
            )
        began = time.perf_counter()
        source = InputSource(given, vary=vary, seed=seed)
        budget = Budget.of("max_kib_per_call", max_kib_per_call, unit=1024)
        gc.collect()  # garbage of earlier code, freed between two readings, would look like negative growth
        readings = read_memory(
            _varied_call(served, source, reload=reload),
            calls_needed(budget.limit, batches=len(source.batches)),
            read=_memory_of(served),
            wall=Clocks().wall,
            time_limit_s=time_limit_s,
            most_growth=min(_MOST_GROWTH, available_bytes() / 2),
        )
        value, interval = growth_per_call(readings, budget, confidence=confidence, alpha=alpha)
        quantity = Quantity("growth per reload" if reload else "growth per call", value, "bytes", interval, budget)
        assert quantity.verdict is not None
        return Evidence(
            gate="memory growth" + (" on reload" if reload else ""),
            subject=served.subject,
            quantities=(
                quantity,
                Quantity("total growth", float(readings.bytes[-1] - readings.bytes[0]), "bytes"),
                Quantity("resident", float(readings.bytes[-1]), "bytes"),
            ),
            n=readings.calls,
            n_unit="reloads" if reload else "calls",
            method=Method(
                f"mean growth over {len(readings.bytes) - 1} segments, Student's t or Hall's transformation, "
                f"{source.method}",
                "Student (1908); Hall (1992), Journal of the Royal Statistical Society B 54, 221–228",
                "growths of segments are independent and identically distributed",
            ),
            summary=_GROWTH_SUMMARIES[quantity.verdict].format(unit="reload" if reload else "call"),
            confidence=confidence,
            alpha=alpha,
            findings=tuple(filter(None, (source.finding(), _early_end_finding(readings, time_limit_s)))),
            advice="" if quantity.verdict is Verdict.PASS else _GROWTH_ADVICE[reload],
            details={
                "resident_bytes": [int(reading) for reading in readings.bytes],
                "calls_per_segment": readings.segment,
                "inputs": source.method,
                "seed": seed,
                "host": host_state(),
                **keep_samples(resident_bytes=readings.bytes),
            },
            duration_s=time.perf_counter() - began,
        )


def _check_flags(**flags: object) -> None:
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise UsageError(f"{name} must be True or False; got {flag!r}")


def _memory_of(predictor: Predictor) -> ReadBytes:
    """Return a reading of the process that runs the model: a child that serves it, or this one."""
    child = in_child(predictor)
    if child is None:
        return resident_bytes
    child.start()
    assert child.process.child is not None
    pid = child.process.child.pid
    return lambda: resident_bytes(pid)


def _varied_call(predictor: Predictor, source: InputSource, *, reload: bool) -> Call:
    """Return a call with the next inputs of `source`, by the served session or by another one each time."""

    def call() -> None:
        inputs = source()
        try:
            if reload:
                with another_session(predictor) as fresh:
                    fresh.predict(inputs)
            else:
                predictor.predict(inputs)
        except Exception as error:
            if source.last_is_varied:
                error.add_note("raised with varied inputs: vary=False repeats them as they are")
            raise

    return call


def _early_end_finding(readings: Readings, time_limit_s: float) -> str:
    if readings.stopped_after:
        return f"no more calls after {readings.stopped_after:,}, as memory had grown too much for this host"
    if readings.in_time:
        return ""
    return f"time_limit_s={time_limit_s:g} allowed {readings.calls:,} calls after the warm-up"


@dataclass(frozen=True, slots=True)
class Readings:
    """Resident memory at the ends of segments of `segment` calls, shape (segments + 1,).

    `stopped_after` is the number of calls after which memory had grown too much for any more; 0 if it had not.
    """

    bytes: NDArray[np.float64]
    segment: int
    stopped_after: int = 0

    @property
    def calls(self) -> int:
        """The number of calls between the first reading and the last."""
        return (self.bytes.size - 1) * self.segment

    @property
    def in_time(self) -> bool:
        """Whether all segments were measured."""
        return self.bytes.size == _SEGMENTS + 1

    @property
    def decide(self) -> bool:
        """Whether there are enough segments for an interval: all, or a few that show an early end."""
        return self.in_time or (self.stopped_after > 0 and self.bytes.size > _FEWEST_SEGMENTS)


def calls_needed(limit_bytes: float, *, batches: int = 1) -> int:
    """Return how many calls show a leak of `limit_bytes` each as 40 steps of the heap: at least 400, whole segments.

    Each segment has as many calls of each of several batches.
    """
    calls = max(_FEWEST_CALLS, _STEPS_AT_BUDGET * _STEP_BYTES / limit_bytes)
    multiple = _SEGMENTS * max(batches, 1)
    return multiple * int(np.ceil(calls / multiple - 1e-9))


def read_memory(
    call: Call,
    calls: int,
    *,
    read: ReadBytes,
    wall: Clock,
    time_limit_s: float,
    most_growth: float = math.inf,
) -> Readings:
    """Read memory over `calls` calls after the warm-up; fewer segments where time is up.

    Once memory has grown by more than `most_growth` bytes, the last three quarters of the calls are the segments.

    An exception of `call` gets a note of the number of the call.
    """
    deadline = wall() + round(time_limit_s * 1e9)
    warm_up, segment, made = round(_WARM_UP_PROPORTION * calls), calls // _SEGMENTS, 0
    watched_every = max(1, segment // _SEGMENTS)
    watched = [read()]

    def has_grown_too_much() -> bool:
        return watched[-1] - watched[0] > most_growth

    def called(n: int) -> bool:
        nonlocal made
        for _ in range(n):
            if wall() >= deadline or has_grown_too_much():
                return False
            try:
                call()
            except Exception as error:
                error.add_note(f"raised by call {made + 1} of {warm_up + calls}")
                raise
            made += 1
            if made % watched_every == 0:
                watched.append(read())
        return True

    readings = [watched[0]]
    if called(warm_up):
        readings = [read()]
        while len(readings) <= _SEGMENTS and called(segment):
            readings.append(read())
    if has_grown_too_much():
        warm = watched[round(_WARM_UP_PROPORTION * len(watched)) :]
        width = max(1, (len(warm) - 1) // _SEGMENTS)
        kept = warm[::width][: _SEGMENTS + 1]
        return Readings(np.array(kept, dtype=np.float64), width * watched_every, stopped_after=made)
    return Readings(np.array(readings, dtype=np.float64), segment)


def available_bytes(path: Path = Path("/proc/meminfo")) -> float:
    """Return the memory that is available on this host; infinity where it does not say."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
        return float(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")))
    except (OSError, StopIteration):
        return math.inf


def growth_per_call(readings: Readings, budget: Budget, *, confidence: float, alpha: float) -> tuple[float, Interval]:
    """Return the mean growth in bytes per call, and its interval: unbounded where a segment is missing."""
    low_level, high_level = levels_for(budget, confidence=confidence, alpha=alpha)
    if not readings.decide:
        value = float(readings.bytes[-1] - readings.bytes[0]) / max(readings.calls, 1)
        return value, Interval(-np.inf, np.inf, low_level, high_level)
    growths = np.diff(readings.bytes) / readings.segment
    bounds = mean_bounds(growths, low_level=low_level, high_level=high_level)
    hidden = _STEP_BYTES / readings.calls
    return bounds.estimate, Interval(bounds.low, bounds.high + hidden, low_level, high_level)


_GROWTH_SUMMARIES = {
    Verdict.PASS: "memory does not grow beyond its budget",
    Verdict.FAIL: "memory grows with every {unit}",
    Verdict.INCONCLUSIVE: "the readings do not decide whether memory grows beyond its budget",
}
_GROWTH_ADVICE = {
    False: "look for references that keep inputs or outputs alive (caches, lists, callbacks), or measure in a process "
    "where nothing else allocates",
    True: "keep one session for the life of the process, try another version of onnxruntime, or measure in a process "
    "where nothing else allocates",
}
