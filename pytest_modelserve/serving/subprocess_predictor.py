"""A model served in a child process, which may crash or hang without ending the tests."""

from __future__ import annotations

import os
import pickle
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._processes import ChildProcess, Crash
from pytest_modelserve.artifacts import Artifact
from pytest_modelserve.errors import ModelServeError
from pytest_modelserve.serving.predictor import Inputs, Predictor
from pytest_modelserve.serving.subprocess_worker import Reply, ServingJob

if TYPE_CHECKING:
    from pytest_modelserve.serving.onnx_predictor import OnnxPredictor

# For one call if no other limit is given: hundreds of times what a row of a large model takes.
TIME_LIMIT_S = 10.0
_START_LIMIT_S = 120.0
# Rows may take this many times as long as the fastest rows so far, if that is more than the limit.
_SLOWEST_RATIO = 20


class ProcessCrashError(ModelServeError):
    """The process that serves a model crashed, or exceeded its time limit and was ended.

    `time_limit_s` is the exceeded limit, None after a crash.
    """

    def __init__(self, message: str, *, time_limit_s: float | None = None) -> None:
        super().__init__(message)
        self.time_limit_s = time_limit_s


class SubprocessPredictor(Predictor):
    """A model file served in a new interpreter, which starts again after a crash.

    `model` is its artifact, or the predictor whose providers and threads are taken over.
    `predict` raises ProcessCrashError if the process crashes or exceeds its time limit: `time_limit_s`, or for many
    rows 20 times the fastest time of as many rows, if that is longer. Opening the file may take `start_limit_s`. Inputs
    on which onnxruntime is known to crash are rejected only if `guarded`. `starts` counts the processes so far.
    """

    transport = "own process"

    artifact: Artifact

    def __init__(
        self,
        model: OnnxPredictor | Artifact,
        *,
        time_limit_s: float,
        threads: int | None = None,
        guarded: bool = False,
        start_limit_s: float = _START_LIMIT_S,
    ) -> None:
        artifact = model if isinstance(model, Artifact) else model.artifact
        super().__init__(artifact.subject, artifact.signature)
        self.artifact = artifact
        self.time_limit_s = time_limit_s
        self.starts = 0
        self._model, self._start_limit_s = model, start_limit_s
        self._job = ServingJob(
            path=os.path.abspath(artifact.path),
            sha256=artifact.sha256,
            name=artifact.name,
            variant=artifact.variant,
            guarded=guarded,
        )
        if not isinstance(model, Artifact):
            self._job = replace(self._job, providers=model.providers, threads=model.threads, optimize=model.optimize)
        if threads is not None:
            self._job = replace(self._job, threads=threads)
        self._fastest_row_s: float | None = None
        self._child: ChildProcess | None = None

    def predict(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the model's outputs; raise ProcessCrashError if the process ends instead."""
        if self.closed:
            raise self._closed_error()
        if self._child is None:
            self.start()
        rows = _row_count(inputs)
        limit_s = max(self.time_limit_s, _SLOWEST_RATIO * rows * (self._fastest_row_s or 0.0))
        started = time.monotonic()
        reply = self._exchange(inputs if isinstance(inputs, np.ndarray) else dict(inputs), limit_s)
        row_s = (time.monotonic() - started) / rows
        self._fastest_row_s = row_s if self._fastest_row_s is None else min(row_s, self._fastest_row_s)
        return reply.result()

    def again(self, *, threads: int | None) -> SubprocessPredictor:
        """Return another predictor of the same model, in another process."""
        return SubprocessPredictor(
            self._model, time_limit_s=self.time_limit_s, threads=threads, guarded=self._job.guarded
        )

    def describe(self) -> str:
        """Return one line: the description of the model, and that another process serves it."""
        model = self.subject if isinstance(self._model, Artifact) else self._model.describe()
        return f"{model}, in a process of its own"

    def close(self) -> None:
        """End the process."""
        super().close()
        self._end()

    def start(self) -> None:
        """Start the process and open the model, as the first `predict` does; ModelServeError if that fails."""
        self.starts += 1
        self._child = ChildProcess("pytest_modelserve.serving.subprocess_worker:serve")
        try:
            reply = self._exchange(self._job, self._start_limit_s, description=f"opening {self.subject}")
        except ProcessCrashError as error:
            raise ModelServeError(f"while {self.subject} was opened in a process of its own, {error}") from None
        if reply.outputs is None:
            self._end()
            raise ModelServeError(f"{self.subject} could not be opened in a process of its own: {reply.message}")

    def _exchange(self, message: object, limit_s: float, *, description: str = "") -> Reply:
        assert self._child is not None
        try:
            result = self._child.call(pickle.dumps(message, protocol=5), timeout_s=limit_s, description=description)
        except BaseException:
            self._end()
            raise
        if isinstance(result, Crash):
            self._end()
            raise self._crash_error(result, limit_s)
        reply: Reply = pickle.loads(result)
        return reply

    def _crash_error(self, crash: Crash, limit_s: float) -> ProcessCrashError:
        process = f"the process that serves {self.subject}"
        if crash.timed_out:
            return ProcessCrashError(f"{process} did not return within {round(limit_s, 2):g} s", time_limit_s=limit_s)
        lines = crash.log_tail.splitlines()
        last = f": {lines[-1].strip()[:200]}" if lines else ""
        return ProcessCrashError(f"{process} {'was ' if crash.signal else ''}{crash}{last}")

    def _end(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


def _row_count(inputs: Inputs) -> int:
    arrays = [inputs] if isinstance(inputs, np.ndarray) else list(inputs.values())
    return max((len(array) for array in arrays if isinstance(array, np.ndarray) and array.ndim), default=1) or 1
