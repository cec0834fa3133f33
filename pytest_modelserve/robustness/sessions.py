"""The model of a predictor once more: in another session, or in another process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_modelserve.errors import UsageError
from pytest_modelserve.serving import Predictor
from pytest_modelserve.serving.isolated import TIME_LIMIT_S, Isolated

if TYPE_CHECKING:
    from pytest_modelserve.serving import OnnxPredictor


def isolated(predictor: Predictor, *, isolate: bool | None, time_limit_s: float | None) -> Isolated | None:
    """`predictor`'s model in a process of its own: where `isolate` says so, where a time limit is given, and by default
    where onnxruntime would end the process on some inputs of the model.

    UsageError for a model that no other process can open, and for a limit that is none.
    """
    if time_limit_s is not None:
        if isolate is False:
            raise UsageError("time_limit_s= needs a process that can be ended: leave isolate=False out")
        if not 0 < time_limit_s < float("inf"):
            raise UsageError(f"time_limit_s is a number of seconds above 0, not {time_limit_s}")
    if isolate is False or (isolate is None and time_limit_s is None and not _may_end(predictor)):
        return None
    if predictor.artifact is None:
        raise UsageError(
            f"{predictor.subject} cannot be asked in a process of its own: no file stands behind it; export the model "
            "and serve the artifact, or leave isolate= and time_limit_s= out"
        )
    return Isolated(_onnx(predictor), time_limit_s=TIME_LIMIT_S if time_limit_s is None else time_limit_s)


def served_again(predictor: Predictor, *, threads: int | None) -> Predictor:
    """The same model in a session of its own, to be closed by the caller; UsageError where no file stands behind it."""
    if isinstance(predictor, Isolated):
        return predictor.again(threads=threads)
    if predictor.artifact is None:
        raise UsageError(
            f"{predictor.subject} cannot be opened again: no file stands behind it; export the model and serve the "
            "artifact, or ask for determinism within one session"
        )
    from pytest_modelserve.serving import OnnxPredictor

    like = _onnx(predictor)
    return OnnxPredictor(
        like.artifact,
        providers=like.providers,
        threads=like.threads if threads is None else threads,
        optimise=like.optimise,
    )


def _onnx(predictor: Predictor) -> OnnxPredictor:
    """The predictor of the file behind `predictor`: itself, unless somebody has wrapped one."""
    from pytest_modelserve.serving import OnnxPredictor

    if isinstance(predictor, OnnxPredictor):
        return predictor
    raise UsageError(f"a {type(predictor).__name__} cannot be opened again: serve its artifact with modelserve.serve")


def _may_end(predictor: Predictor) -> bool:
    hazards = getattr(predictor, "hazards", None)
    return hazards is not None and bool(hazards.minimum)
