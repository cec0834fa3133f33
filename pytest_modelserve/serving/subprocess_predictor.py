"""A model in a process of its own, which may end or hang without taking the tests with it."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import ModelServeError
from pytest_modelserve.serving.predictor import Inputs, Predictor
from pytest_modelserve.serving.subprocess_worker import Reply, ServingJob

if TYPE_CHECKING:
    from pytest_modelserve.serving.onnx_predictor import OnnxPredictor

TIME_LIMIT_S = 10.0
"""For one call where no other limit is given: hundreds of times what a row of a large model takes."""
_START_LIMIT_S = 120.0
_END_S = 1.0
_PATIENCE = 20
"""How many times as long as the fastest rows so far other rows may take, where that is more than the limit."""
_CHILD = "import sys; from pytest_modelserve.serving.subprocess_worker import main; main(int(sys.argv[1]))"


class ProcessCrashError(ModelServeError):
    """The process that served a model died on a call, or did not return from it in time and was ended.

    `time_limit_s` is the limit that it ran into, None where it died.
    """

    def __init__(self, told: str, *, time_limit_s: float | None = None) -> None:
        super().__init__(told)
        self.time_limit_s = time_limit_s


class SubprocessPredictor(Predictor):
    """The model of `predictor` served in a new interpreter, which is started again after it has died.

    `predict` raises ProcessCrashError where the process dies or takes longer than `time_limit_s`; for many rows, than
    twenty times what as many took so far at their fastest, if that is longer. Inputs on which onnxruntime may end the
    process are not refused, as `predictor` itself would do. The process ends with `close`, and with this one. `starts`
    counts them so far.
    """

    transport = "own process"

    def __init__(self, predictor: OnnxPredictor, *, time_limit_s: float, threads: int | None = None) -> None:
        super().__init__(predictor.subject, predictor.signature)
        self.artifact = predictor.artifact
        self.time_limit_s = time_limit_s
        self.starts = 0
        self._predictor = predictor
        self._job = ServingJob(
            path=os.path.abspath(predictor.artifact.path),
            sha256=predictor.artifact.sha256,
            name=predictor.artifact.name,
            variant=predictor.artifact.variant,
            providers=predictor.providers,
            threads=predictor.threads if threads is None else threads,
            optimize=predictor.optimize,
        )
        self._fastest_row_s: float | None = None
        self._process: _Process | None = None

    def predict(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """What the process answers; ProcessCrashError where it ends instead."""
        if self.closed:
            raise self._closed_error()
        if self._process is None:
            self.starts += 1
            self._process = _Process(self._job, str(self.subject))
        rows = _rows(inputs)
        limit_s = max(self.time_limit_s, _PATIENCE * rows * (self._fastest_row_s or 0.0))
        started = time.monotonic()
        try:
            reply = self._process.call(inputs if isinstance(inputs, np.ndarray) else dict(inputs), limit_s)
        except BaseException:
            self._process = None
            raise
        row_s = (time.monotonic() - started) / rows
        self._fastest_row_s = row_s if self._fastest_row_s is None else min(row_s, self._fastest_row_s)
        return reply.result()

    def again(self, *, threads: int | None) -> SubprocessPredictor:
        """Another process of the same model."""
        return SubprocessPredictor(self._predictor, time_limit_s=self.time_limit_s, threads=threads)

    def describe(self) -> str:
        """One line: what the predictor says of itself, and that another process answers."""
        return f"{self._predictor.describe()}, in a process of its own"

    def close(self) -> None:
        """End the process."""
        super().close()
        if self._process is not None:
            self._process.end()
            self._process = None


class _Process:
    """One running child; whatever goes wrong in `call` has ended it."""

    def __init__(self, job: ServingJob, subject: str) -> None:
        self._subject = subject
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._connection, theirs = Pipe()
        self._child = _spawned(theirs, self._log)
        theirs.close()
        try:
            started = self._exchange(job, _START_LIMIT_S)
        except ProcessCrashError as error:
            raise ModelServeError(f"while {subject} was opened in a process of its own, {error}") from None
        except BaseException:
            self.end()
            raise
        if started.outputs is None:
            self.end()
            raise ModelServeError(f"{subject} could not be opened in a process of its own: {started.told}")

    def call(self, inputs: Inputs, limit_s: float) -> Reply:
        """The reply to `inputs`; ProcessCrashError without one in time."""
        try:
            return self._exchange(inputs, limit_s)
        except BaseException:
            self.end()
            raise

    def _exchange(self, message: object, limit_s: float) -> Reply:
        try:
            self._connection.send_bytes(pickle.dumps(message, protocol=5))
            if not self._connection.poll(limit_s):
                self.end()
                told = f"the process that serves {self._subject} did not return within {round(limit_s, 2):g} s"
                raise ProcessCrashError(told, time_limit_s=limit_s)
            reply: Reply = pickle.loads(self._connection.recv_bytes())
        except (EOFError, BrokenPipeError, ConnectionResetError):
            status = self._child.wait()
            said = self._last_words()
            self.end()
            raise ProcessCrashError(f"the process that serves {self._subject} {_ended(status)}{said}") from None
        return reply

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", errors="replace").strip().splitlines()
        return f": {lines[-1].strip()[:200]}" if lines else ""

    def end(self) -> None:
        """Let the child go, and make sure that it has gone."""
        if self._log.closed:
            return
        self._connection.close()
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            self._child.wait(_END_S if self._child.poll() is None else None)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._log.close()


def _spawned(connection: Connection, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """A new interpreter and no fork: a forked one would hold this one's locks, and threads that are not there."""
    # -W outranks PYTHONWARNINGS, which may make errors of what an import warns of.
    command = [sys.executable, "-W", "ignore", "-c", _CHILD, str(connection.fileno())]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        pass_fds=(connection.fileno(),),
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
    )


def _ended(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"died of {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"died of signal {-status}"


def _rows(inputs: Inputs) -> int:
    arrays = [inputs] if isinstance(inputs, np.ndarray) else list(inputs.values())
    return max((len(array) for array in arrays if isinstance(array, np.ndarray) and array.ndim), default=1) or 1
