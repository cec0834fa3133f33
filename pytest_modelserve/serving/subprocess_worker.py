"""The process that answers for an isolated model: `main(descriptor)`, which ends when its parent does."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from pytest_modelserve.errors import ArtifactError, InputError, ModelServeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_modelserve.serving.onnx_predictor import OnnxPredictor


@dataclass(frozen=True, slots=True)
class ServingJob:
    """What the process serves."""

    path: str
    sha256: str
    name: str
    variant: str
    providers: tuple[str, ...]
    threads: int
    optimize: bool


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """The answer to one call, or what was raised in its place."""

    outputs: Mapping[str, NDArray[Any]] | None = None
    refused: bool = False
    told: str = ""

    def result(self) -> dict[str, NDArray[Any]]:
        """The outputs; InputError for inputs that were refused, ArtifactError for any other failure."""
        if self.outputs is None:
            raise (InputError if self.refused else ArtifactError)(self.told)
        return dict(self.outputs)


def main(descriptor: int) -> None:
    """Serve the job that comes first through the connection, and then one call after the other until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which closes the connection
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _leave_no_core()
    connection = Connection(descriptor)
    try:
        job: ServingJob = pickle.loads(connection.recv_bytes())
        try:
            predictor = _served(job)
        except ModelServeError as error:
            _send(connection, Reply(told=str(error)))
            return
        _send(connection, Reply({}))
        while True:
            _send(connection, _answer(predictor, pickle.loads(connection.recv_bytes())))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _end_with_parent() -> None:
    """Standard input is the parent's line: it ends when the parent does, also while a call never returns."""
    os.read(0, 1)
    os._exit(0)


def _leave_no_core() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _served(job: ServingJob) -> OnnxPredictor:
    from pytest_modelserve.artifacts import open_artifact
    from pytest_modelserve.serving.onnx_predictor import OnnxPredictor

    artifact = open_artifact(job.path, name=job.name, variant=job.variant)
    if artifact.sha256 != job.sha256:
        raise ArtifactError(f"the model {job.path} changed after it was opened: open it again")
    return OnnxPredictor(
        artifact, providers=job.providers, threads=job.threads, optimize=job.optimize, guarded=False
    )  # fmt: skip


def _answer(predictor: OnnxPredictor, inputs: Any) -> Reply:
    try:
        return Reply(predictor.predict(inputs))
    except InputError as error:
        return Reply(refused=True, told=str(error))
    except Exception as error:  # the connection has to be answered, whatever it was
        return Reply(told=str(error) if isinstance(error, ModelServeError) else f"{type(error).__name__}: {error}")


def _send(connection: Connection, reply: Reply) -> None:
    connection.send_bytes(pickle.dumps(reply, protocol=5))
