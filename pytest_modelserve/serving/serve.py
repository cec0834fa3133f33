"""Serve a file, a session, an endpoint, a module, an estimator, a callable or ready outputs as a predictor."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np

from pytest_modelserve.artifacts import Artifact
from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.serving.conversion import Frame
from pytest_modelserve.serving.estimator_predictor import EstimatorPredictor, is_estimator
from pytest_modelserve.serving.inputs import as_batch, checked_feed, count_rows, is_one_batch
from pytest_modelserve.serving.predictor import CPU, CallablePredictor, Predictor, is_url
from pytest_modelserve.serving.ready_outputs import ReadyOutputs, RowPredictor, check_same_order, is_ready
from pytest_modelserve.serving.substitution import active
from pytest_modelserve.serving.torch_predictor import TorchPredictor
from pytest_modelserve.settings import saw_names
from pytest_modelserve.signing import checked_copy

if TYPE_CHECKING:
    import onnxruntime
    from torch import nn

    from pytest_modelserve.scanning import ScanMode
    from pytest_modelserve.serving.subprocess_predictor import SubprocessPredictor
    from pytest_modelserve.training import TrainedModel

_CPU = (CPU,)


# Estimators have no common class, hence Any.
Model: TypeAlias = (
    "Artifact | str | os.PathLike[str] | onnxruntime.InferenceSession | TrainedModel | Callable[..., Any]"
)
Servable: TypeAlias = "Predictor | Model | Any"
"""What `serve` takes: a predictor, a file, a session, a torch module, an estimator, a function, or ready outputs."""


def serve(
    target: Servable,
    *,
    providers: Sequence[str] = _CPU,
    threads: int = 1,
    interpreter: str | os.PathLike[str] | None = None,
    manifest: str | os.PathLike[str] | None = None,
    scan: ScanMode | None = None,
    name: str | None = None,
    variant: str | None = None,
) -> Predictor:
    """Serve a model as a predictor; close it, or use it as a context manager.

    Args:
        target: An Artifact or the path of an ONNX file, which onnxruntime runs; an `onnxruntime.InferenceSession`; the
            URL of a model behind a server, or an `ms.Endpoint` with its settings; or, as a reference that runs itself
            on the CPU, a torch module, a TrainedModel, a fitted scikit-learn estimator or any other callable. Also
            ready outputs for the accuracy and parity gates: an array, a tensor, a mapping of arrays, a frame, or the
            path of a `.npy`, `.npz`, `.csv` or `.parquet` file, whose columns are outputs (those numbered from 0,
            `score_0`, `score_1`, are one).
        providers: Execution providers of onnxruntime, in order of preference.
        threads: Number of threads of onnxruntime or torch.
        interpreter: The Python of another environment, such as ".venv-next/bin/python", whose onnxruntime runs the
            file in a process of its own. It needs numpy and onnxruntime alone. The variant then names that version.
        manifest: What `ms.write_manifest` wrote, for an ONNX file: a private copy of the model, external data included,
            is compared with it, and that copy is opened. Paths in it are relative to the folder that it describes if
            the model lies there, else to the model's. The setting `modelserve_trust` asks for a signature like this.
        scan: Scan the file before anything opens it: "strict", by static rules and a trial in a limited process, or
            "static", by the rules alone; a file that the scan refuses is not opened. See `docs/safety.md`.
        name: Name of the model in evidence and reports (default: its own).
        variant: Variant of the model in evidence and reports (default: its own).

    Returns:
        The predictor; `predict` takes one array, or a mapping from input names to arrays. Tensors, lists, series and
        frames are converted.

    Raises:
        UsageError: `target` cannot be served; `providers`, `threads` or `interpreter` do not apply to it; or
            `interpreter` is no Python with onnxruntime.
        ArtifactError: The scan refuses the file, it cannot be opened, onnxruntime rejects it, it differs from the
            manifest, or it is not signed by a trusted key.
        EndpointError: The server does not answer, or does not know the model.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> with ms.serve(lambda x: {"doubled": 2 * x}, name="double") as predictor:
        ...     predictor.predict(np.array([[1.0, 2.0]]))["doubled"].tolist()
        [[2.0, 4.0]]
    """
    if _is_endpoint(target):
        from pytest_modelserve.serving.endpoint import Endpoint, EndpointPredictor

        _check_settings(target, providers, threads)
        for argument, value in (("interpreter", interpreter), ("manifest", manifest), ("scan", scan)):
            if value is not None:
                raise UsageError(f"{argument} applies to ONNX files only: remove it for an endpoint")
        endpoint: Any = Endpoint(target) if isinstance(target, str) else target
        return EndpointPredictor(endpoint, name=name, variant=variant)
    settings: Any = {"providers": providers, "threads": threads, "name": name, "variant": variant}
    if _is_model_file(target):
        copy = checked_copy(target, manifest)
        if copy is not None:
            predictor = serve(copy.artifact, **settings, interpreter=interpreter, scan=scan)
            predictor.private_copy = copy
            return predictor
    elif manifest is not None:
        raise UsageError(f"manifest applies to ONNX files only: remove it for {_describe(target)}")
    if scan is not None:
        return _serve_scanned(target, scan, **settings, interpreter=interpreter)
    if interpreter is not None:
        return _serve_elsewhere(target, interpreter, **settings)
    if is_ready(target):
        _check_settings(target, providers, threads)
        return ReadyOutputs(target, name=name, variant=variant)
    if isinstance(target, (Artifact, str, os.PathLike)):
        from pytest_modelserve.serving.onnx_predictor import OnnxPredictor

        return OnnxPredictor(target, **settings)
    if _is_session(target):
        from pytest_modelserve.serving.onnx_predictor import SessionPredictor

        _check_settings(target, providers, threads)
        return SessionPredictor(target, name=name, variant=variant or "")
    _check_settings(target, providers, 1)
    if isinstance(target, Predictor):
        raise UsageError(f"{target!r} is served already: pass it as it is")
    if is_torch_module(target):
        subject = Subject(type(target).__name__, "torch")
        return TorchPredictor(target, subject=_renamed(subject, name, variant), threads=threads)
    if isinstance(target, type):
        raise UsageError(f"target {target.__name__} is a class: serve an instance of it")
    if hasattr(target, "module") and hasattr(target, "subject"):
        return TorchPredictor(target.module(), subject=_renamed(target.subject, name, variant), threads=threads)
    _check_settings(target, _CPU, threads)
    if is_estimator(target):
        return EstimatorPredictor(target, name=name, variant=variant)
    if callable(target):
        return CallablePredictor(target, name=name, variant=variant or "")
    if hasattr(target, "SerializeToString"):
        raise UsageError("a model in memory cannot be served: save it, onnx.save(model, path), and pass the path")
    raise UsageError(
        f"{_describe(target)} cannot be served: pass an Artifact, the path of an ONNX file, a session of onnxruntime, "
        "the URL of an endpoint, a torch module, a TrainedModel, an estimator, a callable, or ready outputs"
    )


def _serve_scanned(target: object, mode: ScanMode, **settings: Any) -> Predictor:
    """Scan a file, serve it, and make sure that it is still the file that was scanned."""
    from pytest_modelserve.scanning import check_unchanged, refuse_unsafe

    if not isinstance(target, (Artifact, str, os.PathLike)):
        raise UsageError(f"scan={mode!r} applies to files only: remove it for {_describe(target)}")
    report = refuse_unsafe(target.path if isinstance(target, Artifact) else target, mode)
    predictor = serve(target, **settings)
    try:
        check_unchanged(report)
    except BaseException:
        predictor.close()
        raise
    return predictor


def _serve_elsewhere(
    target: object,
    interpreter: str | os.PathLike[str],
    *,
    providers: Sequence[str],
    threads: int,
    name: str | None,
    variant: str | None,
) -> Predictor:
    if not _is_model_file(target):
        raise UsageError(f"interpreter={interpreter!r} applies to ONNX files only: remove it for {_describe(target)}")
    from pytest_modelserve.serving.onnx_predictor import opened
    from pytest_modelserve.serving.subprocess_predictor import CALL_LIMIT_S, SubprocessPredictor

    artifact = opened(target, name, variant)
    predictor = SubprocessPredictor(
        artifact, time_limit_s=CALL_LIMIT_S, providers=providers, threads=threads, interpreter=interpreter
    )
    try:
        predictor.start()
    except BaseException:
        predictor.close()
        raise
    if variant is None:
        runtime = f"onnxruntime {predictor.process.runtime['onnxruntime']}"
        predictor.subject = replace(predictor.subject, variant=", ".join(filter(None, (artifact.variant, runtime))))
    return predictor


def in_child(predictor: Predictor) -> SubprocessPredictor | None:
    """Return `predictor` if a child process of this package serves it, else None."""
    if predictor.transport != "own process":
        return None
    from pytest_modelserve.serving.subprocess_predictor import SubprocessPredictor

    return predictor if isinstance(predictor, SubprocessPredictor) else None


@contextmanager
def as_predictor(target: Servable) -> Iterator[Predictor]:
    """Yield a predictor as it is, or anything else served, which is closed afterwards."""
    if isinstance(target, Predictor):
        yield target
        return
    with serve(target) as predictor:
        yield predictor


@contextmanager
def open_models(*models: Servable, inputs: object, ready: bool = False) -> Iterator[tuple[Any, list[Predictor]]]:
    """Yield the inputs and the models of a gate as batches and predictors; close those that were opened here.

    Tensors, lists and frames become arrays; an iterable of batches stays one. With ready outputs among the models the
    inputs are row numbers, and a model beside them predicts those rows of `inputs`.

    Args:
        models: What `serve` takes, and predictors, which stay open.
        inputs: The gate's inputs; None where all models are ready outputs.
        ready: Whether the gate can take ready outputs.

    Raises:
        UsageError: The gate needs a model and got ready outputs, or `inputs` is missing.
        InputError: Ready outputs and inputs have different numbers of rows.
    """
    if isinstance(inputs, Predictor):
        raise UsageError(f"inputs is the predictor {inputs.subject}: pass the models first, then the inputs")
    with ExitStack() as stack:
        served = [stack.enter_context(as_predictor(each)) for each in models]
        outputs = [each for each in served if isinstance(each, ReadyOutputs)]
        if outputs and not ready:
            raise UsageError(f"this gate calls the model, and {outputs[0].subject} holds ready outputs: pass the model")
        if inputs is None and len(outputs) < len(served):
            raise UsageError("inputs is missing: it can be left out only where all models are ready outputs")
        signatures = [each.signature for each in served if each.signature is not None]
        saw_names(spec.name for each in signatures for spec in each.inputs)
        signature = next(iter(signatures), None)
        if not outputs:
            batch = as_batch(inputs, signature) if is_one_batch(inputs) else inputs
            saw_names(batch if isinstance(batch, Mapping) else ["input"])
            if isinstance(batch, Frame) and all(each.signature is not None for each in served):
                assert signature is not None
                batch = checked_feed(batch, signature)  # once, and not in each of many calls
            yield batch, _substituted(batch, served)
            return
        roles = ("candidate ", "reference ") if len(served) == 2 else ("",) * len(served)
        named = zip(roles, served, strict=True)
        rows = [f"{role}{each.subject} {each.n:,}" for role, each in named if isinstance(each, ReadyOutputs)]
        counts = {each.n for each in outputs}
        if inputs is not None:
            if not is_one_batch(inputs):
                raise UsageError("inputs must be one batch where ready outputs are compared: concatenate the batches")
            batch = as_batch(inputs, signature)
            counts.add(count_rows(batch))
            rows.append(f"inputs {count_rows(batch):,}")
            served = [each if isinstance(each, ReadyOutputs) else RowPredictor(each, batch) for each in served]
        if len(counts) > 1:
            raise InputError(f"ready outputs and inputs have different numbers of rows: {', '.join(rows)}")
        check_same_order(served)
        numbers = np.arange(outputs[0].n)
        yield numbers, _substituted(numbers, served)


def _substituted(inputs: object, served: list[Predictor]) -> list[Predictor]:
    substitution = active()
    return served if substitution is None else substitution.models(inputs, served)


def _is_endpoint(target: object) -> bool:
    """Return True for an Endpoint, and for the URL of one."""
    module = sys.modules.get("pytest_modelserve.serving.endpoint")
    return is_url(target) or (module is not None and isinstance(target, module.Endpoint))


def _is_model_file(target: object) -> TypeGuard[Artifact | str | os.PathLike[str]]:
    is_file = isinstance(target, (Artifact, str, os.PathLike))
    return is_file and not is_ready(target)


def _is_session(target: object) -> bool:
    runtime = sys.modules.get("onnxruntime")
    return runtime is not None and isinstance(target, runtime.InferenceSession)


def _check_settings(target: object, providers: Sequence[str], threads: int) -> None:
    if tuple(providers) != _CPU:
        raise UsageError(f"providers={providers!r} apply to ONNX files only: remove them for {_describe(target)}")
    if threads != 1:
        raise UsageError(f"threads={threads} does not apply to {_describe(target)}, which sets its own: remove it")


def is_torch_module(target: object) -> TypeGuard[nn.Module]:
    """Return True for a module of torch, which is not imported here."""
    # Whoever holds a module has imported torch; nobody else should wait for that import.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(target, torch.nn.Module)


def _renamed(subject: Subject, name: str | None, variant: str | None) -> Subject:
    return replace(
        subject,
        name=subject.name if name is None else name,
        variant=subject.variant if variant is None else variant,
    )


def _describe(target: object) -> str:
    return getattr(target, "__name__", None) or f"an object of type {type(target).__name__}"
