"""What a fresh process runs that serves a model: `run`.

It holds what a server would hold: the interpreter, numpy, onnxruntime, one session and the inputs. It imports nothing
else of this package, as that would be measured too.
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_modelserve.errors import ModelServeError
from pytest_modelserve.performance.resident_memory import peak_bytes, reset_peak, resident_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_modelserve.artifacts import Signature


@dataclass(frozen=True, slots=True, eq=False)
class FreshJob:
    """What a fresh process serves, without the inputs."""

    model: str
    signature: Signature
    providers: Sequence[str]
    threads: int
    calls: int


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


def measure_start(job: FreshJob, batches: Callable[[], Sequence[Mapping[str, NDArray[Any]]]]) -> FreshStart:
    """Open the session and call it `job.calls` times with each batch, the first time timed.

    `batches` returns arrays by name; it is called after the baseline was read, so that they are measured.
    """
    from pytest_modelserve._onnx.sessions import CPU, open_session
    from pytest_modelserve.performance.timing import run_delay_clock
    from pytest_modelserve.serving.onnx_predictor import session_runner

    names = [spec.name for spec in job.signature.outputs]
    reset_peak()  # a small model would be hidden by the peak of the imports
    baseline = _reading(resident_bytes)
    feeds = [dict(batch) for batch in batches()]
    with run_delay_clock() as run_delay:
        waited = run_delay() if run_delay else 0
        cpu, wall = time.process_time_ns(), time.perf_counter_ns()
        session = open_session(Path(job.model), providers=job.providers, threads=job.threads)
        opened_cpu, opened = time.process_time_ns(), time.perf_counter_ns()
        run = session_runner(session, job.signature)
        run(names, feeds[0])
        called_cpu, called = time.process_time_ns(), time.perf_counter_ns()
        # Threads that compute beside the main one go on while it waits for a CPU, so that its delay is not lost time.
        runs_alone = job.threads == 1 and tuple(job.providers) == (CPU,)
        run_delay_ms = (run_delay() - waited) / 1e6 if run_delay and runs_alone else None
    for feed in [feeds[0]] * (job.calls - 1) + [feed for feed in feeds[1:] for _ in range(job.calls)]:
        run(names, feed)
    return FreshStart(
        session_ms=(opened - wall) / 1e6,
        session_cpu_ms=(opened_cpu - cpu) / 1e6,
        first_call_ms=(called - opened) / 1e6,
        first_call_cpu_ms=(called_cpu - opened_cpu) / 1e6,
        baseline_bytes=baseline,
        peak_bytes=_reading(peak_bytes),
        run_delay_ms=run_delay_ms,
    )


def _reading(read: Callable[[], int]) -> int:
    """Return a reading of memory; 0 on a system without one, where the start can be timed all the same."""
    try:
        return read()
    except ModelServeError:
        return 0


def run(payload: bytes) -> bytes:
    """Return the measurements of a start as JSON, for a pickled job and the file of its pickled batches."""
    job, inputs_file = pickle.loads(payload)

    def batches() -> Any:
        with open(inputs_file, "rb") as file:
            return pickle.load(file)

    return json.dumps(asdict(measure_start(job, batches))).encode()
