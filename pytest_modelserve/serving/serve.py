"""Serve a file, a module or a callable as a predictor."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from pytest_modelserve.artifacts import Artifact
from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.serving.predictor import CallablePredictor, Predictor
from pytest_modelserve.serving.torch_predictor import TorchPredictor

if TYPE_CHECKING:
    from torch import nn

    from pytest_modelserve.training import TrainedModel

_CPU = ("CPUExecutionProvider",)


Servable: TypeAlias = "Artifact | str | os.PathLike[str] | TrainedModel | Callable[..., Any]"


def serve(
    target: Servable,
    *,
    providers: Sequence[str] = _CPU,
    threads: int = 1,
    name: str | None = None,
    variant: str | None = None,
) -> Predictor:
    """Serve a model as a predictor; close it, or use it as a context manager.

    Args:
        target: An Artifact or the path of an ONNX file, which onnxruntime runs; or a torch module, a TrainedModel or
            any other callable as a reference, which runs itself on the CPU.
        providers: Execution providers of onnxruntime, in order of preference.
        threads: Number of threads of onnxruntime or torch.
        name: Name of the model in evidence and reports (default: its own).
        variant: Variant of the model in evidence and reports (default: its own).

    Returns:
        The predictor; `predict` takes one array, or a mapping from input names to arrays.

    Raises:
        UsageError: `target` cannot be served; or `providers` or `threads` do not apply to it.
        ArtifactError: The file cannot be opened, or onnxruntime rejects it.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> with ms.serve(lambda x: {"doubled": 2 * x}, name="double") as predictor:
        ...     predictor.predict(np.array([[1.0, 2.0]]))["doubled"].tolist()
        [[2.0, 4.0]]
    """
    if isinstance(target, str) and target.lower().startswith(("http://", "https://")):
        raise UsageError(
            f"target {target!r} is an endpoint, which this release does not support: serve the model's file, or a "
            "callable that sends the request"
        )
    if isinstance(target, (Artifact, str, os.PathLike)):
        from pytest_modelserve.serving.onnx_predictor import OnnxPredictor

        return OnnxPredictor(target, providers=providers, threads=threads, name=name, variant=variant)
    if tuple(providers) != _CPU:
        raise UsageError(
            f"providers={providers!r} apply to ONNX files only: remove them, as {_describe(target)} runs on the CPU"
        )
    if _is_torch_module(target):
        subject = Subject(type(target).__name__, "torch")
        return TorchPredictor(target, subject=_renamed(subject, name, variant), threads=threads)
    if isinstance(target, type):
        raise UsageError(f"target {target.__name__} is a class: serve an instance of it")
    if hasattr(target, "module") and hasattr(target, "subject"):
        return TorchPredictor(target.module(), subject=_renamed(target.subject, name, variant), threads=threads)
    if callable(target):
        if threads != 1:
            raise UsageError(f"threads={threads} does not apply to {_describe(target)}: it sets its own")
        return CallablePredictor(target, name=name, variant=variant or "")
    raise UsageError(
        f"{_describe(target)} cannot be served: pass an Artifact, the path of an ONNX file, a torch module, a "
        "TrainedModel or a callable"
    )


def _is_torch_module(target: object) -> TypeGuard[nn.Module]:
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
