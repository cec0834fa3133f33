"""A model served in a child process: it may crash or hang there, and may run on another onnxruntime."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._onnx.sessions import CPU, check_providers, check_started, reason
from pytest_modelserve._processes import ChildProcess, Crash, ScriptProcess
from pytest_modelserve.artifacts import Artifact, is_unchanged, read_graph
from pytest_modelserve.artifacts.metadata import elem_type
from pytest_modelserve.errors import ArtifactError, InputError, ModelServeError, UsageError
from pytest_modelserve.serving.crash_guards import KnownCrashes, crashes_when_optimized, find_known_crashes
from pytest_modelserve.serving.inputs import Feed, check_threads
from pytest_modelserve.serving.onnx_predictor import (
    ML_DTYPES,
    OnnxPredictor,
    SessionPredictor,
    check_loadable,
    codes_of,
    failed_run,
    numbers_of,
)
from pytest_modelserve.serving.predictor import Inputs, Predictor, ProcessCrashError
from pytest_modelserve.serving.subprocess_worker import decode, encode

# For one call if no other limit is given: hundreds of times what a row of a large model takes.
TIME_LIMIT_S = 10.0
# For a call of a model that is served in another interpreter.
CALL_LIMIT_S = 60.0
_START_LIMIT_S = 120.0
# Rows may take this many times as long as the fastest rows so far, if that is more than the limit.
_SLOWEST_RATIO = 20
_SCRIPT = Path(__file__).with_name("subprocess_worker.py")


class SubprocessPredictor(SessionPredictor):
    """A model file served in a new interpreter, which starts again after a crash.

    `model` is its artifact, or the predictor whose providers, threads and graph optimizations are taken over unless
    others are given; `level` is a member of onnxruntime's GraphOptimizationLevel.
    `interpreter` is the Python of another environment, which needs numpy and onnxruntime alone.
    `predict` raises ProcessCrashError if the process crashes or exceeds its time limit: `time_limit_s`, or for many
    rows 20 times the fastest time of as many rows, if that is longer. Opening the file may take `start_limit_s`. Inputs
    on which onnxruntime is known to crash are rejected only if `guarded`. `starts` counts the processes so far. With a
    `process` this is one session of several in it, which it does not end.
    """

    transport = "own process"
    is_thread_safe = False  # one pipe

    artifact: Artifact

    def __init__(
        self,
        model: OnnxPredictor | SubprocessPredictor | Artifact,
        *,
        time_limit_s: float,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        guarded: bool = False,
        start_limit_s: float = _START_LIMIT_S,
        interpreter: str | os.PathLike[str] | None = None,
        process: ServingProcess | None = None,
        level: str | None = None,
    ) -> None:
        artifact = model if isinstance(model, Artifact) else model.artifact
        Predictor.__init__(self, artifact.subject, artifact.signature)
        self.artifact = artifact
        self.time_limit_s = time_limit_s
        self.providers: tuple[str, ...] = (CPU,)
        self.threads, self.optimize = 1, True
        if not isinstance(model, Artifact):
            self.providers, self.threads, self.optimize = model.providers, model.threads, model.optimize
        if providers is not None:
            self.providers = tuple(providers)
        if threads is not None:
            self.threads = check_threads(threads)
        self._level = level
        self._guarded = guarded
        self._owns_process = process is None
        self.process = process or ServingProcess(str(self.subject), interpreter, start_limit_s)
        self._number = next(self.process.numbers)
        self._opened_in: ChildProcess | None = None
        self._fastest_row_s: float | None = None
        self._attach(self._run_there, KnownCrashes())

    @property
    def starts(self) -> int:
        """The number of processes so far."""
        return self.process.starts

    def predict(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the model's outputs; raise ProcessCrashError if the process ends instead."""
        if self.closed:
            raise self._closed_error()
        self.start()
        return super().predict(inputs)

    def request(self, operation: str, *, limit_s: float | None = None, **arguments: object) -> Any:
        """Return the result of an operation of the process (`subprocess_worker.Server`) with this model's session.

        InputError where the run of the model rejects its inputs, ArtifactError where it fails for another reason.
        """
        self.start()
        limit_s = self.time_limit_s if limit_s is None else limit_s
        try:
            return self.process.request(operation, limit_s, session=self._number, **arguments)
        except RemoteError as error:
            is_of_inputs = error.kind == "InvalidArgument"
            raise failed_run(self.subject, self._reason(error), is_of_inputs=is_of_inputs) from None

    def keep(self, batches: Sequence[Inputs]) -> None:
        """Send inputs to the process, for operations that time calls there; the model need not be open yet."""
        self.process.start()
        feeds = [sendable(self._checked(batch)) for batch in batches]
        self.process.request("keep", self.time_limit_s, session=self._number, feeds=feeds)

    def again(self, *, threads: int | None = None, time_limit_s: float | None = None) -> SubprocessPredictor:
        """Return another predictor of the same model, in another process."""
        return SubprocessPredictor(
            self,
            time_limit_s=self.time_limit_s if time_limit_s is None else time_limit_s,
            threads=threads,
            guarded=self._guarded,
            interpreter=self.process.interpreter,
            level=self._level,
        )

    def another_session(
        self, *, providers: Sequence[str] | None = None, threads: int | None = None, level: str | None = None
    ) -> SubprocessPredictor:
        """Return another session of the same model in the same process, by default with the same options.

        `level` is a member of onnxruntime's GraphOptimizationLevel.
        """
        return SubprocessPredictor(
            self,
            time_limit_s=self.time_limit_s,
            providers=providers,
            threads=threads,
            guarded=self._guarded,
            process=self.process,
            level=self._level if level is None else level,
        )

    def describe(self) -> str:
        """Return one line: the model, its runtime, and that another process serves it."""
        runtime = self.process.runtime
        version = f" {runtime['onnxruntime']}" if runtime else ""
        where = f"{', '.join(self.providers)}, {self.threads} thread{'s' if self.threads > 1 else ''}"
        of = f" of {self.process.interpreter}" if self.process.interpreter else ""
        return f"{self.subject} on onnxruntime{version}, {where}, in a process of its own{of}"

    def close(self) -> None:
        """Release the session, and the process if it is of this model alone."""
        super().close()
        if self._owns_process:
            self.process.end()
        elif self._opened_in is not None and self._opened_in is self.process.child:
            with suppress(ModelServeError):
                self.process.request("close", self.time_limit_s, session=self._number)

    def start(self) -> None:
        """Start the process and open the model, as the first `predict` does; ModelServeError if that fails."""
        if self._opened_in is not None and self._opened_in is self.process.child:
            return
        try:
            self.process.start()
            self.open()
        except ProcessCrashError as error:
            raise ModelServeError(f"while {self.subject} was opened in a process of its own, {error}") from None
        except ArtifactError as error:
            if self._owns_process:
                self.process.end()
            raise ArtifactError(f"{self.subject} could not be opened in a process of its own: {error}") from error

    def open(self) -> dict[str, Any]:
        """Open the model in the process, which runs; return the times that it took."""
        path, signature = self.artifact.path, self.artifact.signature
        if not is_unchanged(self.artifact):
            raise ArtifactError(f"the model {path} changed after it was opened: open it again")
        check_loadable(str(path), signature)
        if self._guarded:
            self.known_crashes = find_known_crashes(read_graph(path))
        providers = check_providers(self.providers, self.process.runtime["providers"])
        try:
            opened = self._open_session(self._number, providers)
        except RemoteError as error:
            raise ArtifactError(f"onnxruntime refuses the model {path}: {self._reason(error)}") from None
        check_started(path, providers, opened["providers"])
        self._opened_in = self.process.child
        return opened

    def profile(
        self, inputs: Inputs, providers: Sequence[str], folder: Path, *, calls: int, most_s: float
    ) -> tuple[list[str], list[dict[str, Any]]]:
        """Run a session on `providers` with onnxruntime's profiler; return those that started, and its events.

        `calls` calls, or those that begin within `most_s` seconds. `folder` gets the file of the profile.
        """
        number = next(self.process.numbers)
        self.start()
        try:
            opened = self._open_session(number, providers, profile=str(folder / "profile"))
            feeds = [sendable(self._checked(inputs))]
            self.process.request("keep", self.time_limit_s, session=number, feeds=feeds)
            limit_s = most_s + self.time_limit_s
            self.process.request("time", limit_s, session=number, order=np.zeros(calls, np.int64), most_s=most_s)
            file = self.process.request("end_profile", self.time_limit_s, session=number)
        except RemoteError as error:
            raise ArtifactError(
                f"onnxruntime refuses the model {self.artifact.path} on {', '.join(providers)}: {self._reason(error)}"
            ) from None
        self.process.request("close", self.time_limit_s, session=number)
        return opened["providers"], json.loads(Path(file).read_text(encoding="utf-8"))

    def _open_session(self, number: int, providers: Sequence[str], **options: str) -> dict[str, Any]:
        level = self._level or ("ORT_ENABLE_ALL" if self.optimize else "ORT_DISABLE_ALL")
        if level == "ORT_ENABLE_ALL" and crashes_when_optimized(read_graph(self.artifact.path)):
            level = "ORT_ENABLE_LAYOUT"
        return self.process.request(  # type: ignore[no-any-return]
            "open",
            self.process.start_limit_s,
            session=number,
            path=os.path.abspath(self.artifact.path),
            providers=list(providers),
            threads=self.threads,
            level=level,
            outputs={spec.name: spec.dtype in ML_DTYPES for spec in self.signature.outputs},
            **options,
        )

    def _reason(self, error: RemoteError) -> str:
        return reason(str(error), version=self.process.runtime["onnxruntime"])

    def _run_there(self, _names: list[str], feed: Feed) -> list[Any]:
        rows = _row_count(feed)
        limit_s = max(self.time_limit_s, _SLOWEST_RATIO * rows * (self._fastest_row_s or 0.0))
        started = time.monotonic()
        values = self.request("run", limit_s=limit_s, feed=sendable(feed))
        row_s = (time.monotonic() - started) / rows
        self._fastest_row_s = row_s if self._fastest_row_s is None else min(row_s, self._fastest_row_s)
        return [
            numbers_of(value[1], value[0], spec.dtype) if isinstance(value, tuple) else value
            for spec, value in zip(self.signature.outputs, values, strict=True)
        ]


class RemoteError(Exception):
    """What an operation raised in the process; `kind` is the name of its class."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class ServingProcess:
    """A process with sessions of onnxruntime, of this Python or of another one; it starts again after a crash.

    `child` is the process that runs now, `runtime` holds the versions of Python, numpy and onnxruntime of the last one
    and its execution providers. Calls of several threads take turns.
    """

    def __init__(
        self,
        subject: str,
        interpreter: str | os.PathLike[str] | None = None,
        start_limit_s: float = _START_LIMIT_S,
    ) -> None:
        self.interpreter = None if interpreter is None else find_interpreter(interpreter)
        self.start_limit_s = start_limit_s
        self.numbers = itertools.count()
        self.child: ChildProcess | None = None
        self.runtime: dict[str, Any] = {}
        self.starts = 0
        self._subject = subject
        self._lock = threading.RLock()

    def start(self) -> None:
        """Start the process unless it runs; UsageError for an interpreter that cannot serve."""
        with self._lock:
            if self.child is not None:
                return
            self.starts += 1
            try:
                self.child = ScriptProcess(self.interpreter or sys.executable, _SCRIPT)
            except OSError as error:
                raise UsageError(
                    f"interpreter {self.interpreter!r} cannot be started ({error.strerror}): pass the path of a Python "
                    "executable, such as .venv/bin/python"
                ) from None
            try:
                self.runtime = self.request("hello", self.start_limit_s)
            except ProcessCrashError as error:
                if self.interpreter is None:
                    raise
                advice = "pass a Python of version 3.8 or newer"
                if "ModuleNotFoundError" in str(error):
                    advice = f"{self.interpreter} -m pip install numpy onnxruntime"
                raise UsageError(
                    f"interpreter {self.interpreter!r} cannot serve {self._subject}, as {error}: {advice}"
                ) from None

    def request(self, operation: str, limit_s: float, **arguments: object) -> Any:
        """Return the result of an operation; ProcessCrashError if the process ends instead, or is ended in time.

        Raises RemoteError for what the operation raises.
        """
        try:
            message = encode({"operation": operation, **arguments})
        except ValueError as error:
            raise InputError(f"the inputs of {self._subject} cannot be sent to its process: {error}") from None
        with self._lock:
            assert self.child is not None
            try:
                result = self.child.call(
                    message, timeout_s=limit_s, description=f"opening {self._subject}" if operation == "open" else ""
                )
            except BaseException:
                self.end()
                raise
            if isinstance(result, Crash):
                self.end()
                raise self._crash_error(result, limit_s)
        reply = decode(bytearray(result))
        if "error" in reply:
            raise RemoteError(reply["error"], reply["kind"])
        return reply["result"]

    def _crash_error(self, crash: Crash, limit_s: float) -> ProcessCrashError:
        process = f"the process that serves {self._subject}"
        if crash.timed_out:
            return ProcessCrashError(f"{process} did not return within {round(limit_s, 2):g} s", time_limit_s=limit_s)
        lines = crash.log_tail.splitlines()
        last = f": {lines[-1].strip()[:200]}" if lines else ""
        return ProcessCrashError(f"{process} {'was ' if crash.signal else ''}{crash}{last}")

    def end(self) -> None:
        """End the process."""
        if self.child is not None:
            self.child.close()
            self.child = None


def find_interpreter(interpreter: str | os.PathLike[str]) -> str:
    """Return the path of a Python executable, or of one in PATH; UsageError for one that does not exist."""
    if not isinstance(interpreter, (str, os.PathLike)):
        raise UsageError(f"interpreter must be the path of a Python; got {type(interpreter).__name__}")
    name = os.path.expanduser(os.fspath(interpreter))
    found = shutil.which(name)
    if found is None:
        inside = Path(name, "bin", "python")
        hint = f"; did you mean {str(inside)!r}?" if inside.exists() else ": pass a Python, such as .venv/bin/python"
        state = "is no executable file" if Path(name).exists() else "does not exist"
        raise UsageError(f"interpreter {name!r} {state}{hint}")
    return os.path.abspath(found)


def sendable(feed: Feed) -> dict[str, Any]:
    """Return inputs as `encode` takes them: numbers whose dtype numpy lacks as their element type and codes."""

    def value(array: Any) -> Any:
        name = array.dtype.name if isinstance(array, np.ndarray) else ""
        return (elem_type(name), codes_of(array)) if name in ML_DTYPES else array

    return {name: value(array) for name, array in feed.items()}


def _row_count(inputs: Feed) -> int:
    arrays = list(inputs.values())
    return max((len(array) for array in arrays if isinstance(array, np.ndarray) and array.ndim), default=1) or 1
