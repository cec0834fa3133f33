"""The process in which a model starts afresh: `main(job_file, inputs_file, result_file)`.

It holds what a server would: the interpreter, numpy, onnxruntime, one session, the inputs. The rooms of this package
that open and check files stay outside, as they would be counted too.
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

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_modelserve.artifacts import Signature


STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True, eq=False)
class FreshJob:
    """What a fresh process serves, apart from the inputs."""

    model: str
    signature: Signature
    providers: Sequence[str]
    threads: int
    calls: int


@dataclass(frozen=True, slots=True)
class FreshStart:
    """One start: milliseconds by the wall and of the whole process's CPU, and bytes of memory.

    `baseline_bytes` is what was held after the imports, `peak_bytes` the most from then on to the last call.
    """

    session_ms: float
    session_cpu_ms: float
    first_call_ms: float
    first_call_cpu_ms: float
    baseline_bytes: int
    peak_bytes: int

    @property
    def added_bytes(self) -> int:
        """What the model, its session, the inputs and the calls added to the baseline."""
        return self.peak_bytes - self.baseline_bytes


def start_afresh(job: FreshJob, inputs: Callable[[], Mapping[str, NDArray[Any]]]) -> FreshStart:
    """Open the session and call it, once timed and then until `job.calls` are made.

    `inputs` gives the arrays by name, as the model takes them; it is asked after the baseline, so that they count.
    """
    from pytest_modelserve._onnx.sessions import open_session

    pass
    from pytest_modelserve.serving.onnx_predictor import session_runner

    names = [spec.name for spec in job.signature.outputs]
    forget_peak()  # else the peak of the imports stands for that of a small model
    baseline = resident_bytes()
    feed = dict(inputs())
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    session = open_session(Path(job.model), providers=job.providers, threads=job.threads)
    opened_cpu, opened = time.process_time_ns(), time.perf_counter_ns()
    run = session_runner(session, job.signature)
    run(names, feed)
    called_cpu, called = time.process_time_ns(), time.perf_counter_ns()
    for _ in range(job.calls - 1):
        run(names, feed)
    return FreshStart(
        session_ms=(opened - wall) / 1e6,
        session_cpu_ms=(opened_cpu - cpu) / 1e6,
        first_call_ms=(called - opened) / 1e6,
        first_call_cpu_ms=(called_cpu - opened_cpu) / 1e6,
        baseline_bytes=baseline,
        peak_bytes=peak_bytes(),
    )


def main(job_file: str, inputs_file: str, result_file: str) -> None:
    """Read the job, start, and write the result; the files are pickles that the parent wrote a moment ago."""
    start = start_afresh(_unpickled(job_file), lambda: _unpickled(inputs_file))
    Path(result_file).write_text(json.dumps(asdict(start)), encoding="utf-8")


def _unpickled(path: str) -> Any:
    with open(path, "rb") as file:
        return pickle.load(file)


_CLEAR_REFS = Path("/proc/self/clear_refs")


def resident_bytes(status: Path = STATUS) -> int:
    """The physical memory that this process holds now (VmRSS). ModelServeError on a host that does not tell."""
    return _field("VmRSS", status)


def peak_bytes(status: Path = STATUS) -> int:
    """The most that it held since it started, or since `forget_peak` (VmHWM). ModelServeError as above.

    Not getrusage's ru_maxrss: that one survives exec, so that the child of a large process begins with its parent's.
    """
    return _field("VmHWM", status)


def forget_peak() -> bool:
    """Let the peak start again from what is held now; False where the kernel does not allow it."""
    try:
        _CLEAR_REFS.write_text("5", encoding="ascii")  # proc(5): "5" resets the peak resident set size
    except OSError:
        return False
    return True


def check_host(status: Path = STATUS) -> None:
    """Raise ModelServeError where this host does not tell a process its memory."""
    resident_bytes(status)


def _field(name: str, status: Path) -> int:
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration) as error:
        raise ModelServeError(
            f"memory is read from {name} in {status}, which this host does not have: run this gate on Linux"
        ) from error
