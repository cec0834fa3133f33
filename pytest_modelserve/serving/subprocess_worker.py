"""The process that serves a model for SubprocessPredictor: one call of `serve` for each message."""

from __future__ import annotations

import faulthandler
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_modelserve.errors import ArtifactError, InputError, ModelServeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_modelserve.serving.onnx_predictor import OnnxPredictor


@dataclass(frozen=True, slots=True)
class ServingJob:
    """The model to serve, and how."""

    path: str
    sha256: str
    name: str
    variant: str
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    threads: int = 1
    optimize: bool = True
    guarded: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """The outputs of one call, or the error that it raised; `is_input_error` says which class."""

    outputs: Mapping[str, NDArray[Any]] | None = None
    is_input_error: bool = False
    message: str = ""

    def result(self) -> dict[str, NDArray[Any]]:
        """Return the outputs; raise InputError for rejected inputs, ArtifactError for any other failure."""
        if self.outputs is None:
            raise (InputError if self.is_input_error else ArtifactError)(self.message)
        return dict(self.outputs)


_predictor: OnnxPredictor | None = None


def serve(payload: bytes) -> bytes:
    """Open the model of the pickled ServingJob, which comes first; then return the pickled Reply to pickled inputs."""
    global _predictor
    message = pickle.loads(payload)
    try:
        if _predictor is None:
            faulthandler.disable()  # the last line of the log is what onnxruntime said
            _predictor = _opened(message)
            reply = Reply({})
        else:
            reply = Reply(_predictor.predict(message))
    except InputError as error:
        reply = Reply(is_input_error=True, message=str(error))
    except Exception as error:  # every message gets a reply
        known = isinstance(error, ModelServeError)
        reply = Reply(message=str(error) if known else f"{type(error).__name__}: {error}")
    return pickle.dumps(reply, protocol=5)


def _opened(job: ServingJob) -> OnnxPredictor:
    from pytest_modelserve.artifacts import open_artifact
    from pytest_modelserve.serving.onnx_predictor import OnnxPredictor

    artifact = open_artifact(job.path, name=job.name, variant=job.variant)
    if artifact.sha256 != job.sha256:
        raise ArtifactError(f"the model {job.path} changed after it was opened: open it again")
    return OnnxPredictor(
        artifact, providers=job.providers, threads=job.threads, optimize=job.optimize, guarded=job.guarded
    )  # fmt: skip
