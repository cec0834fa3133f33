"""Serve a file, a module or a callable as a predictor."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from pytest_modelserve.artifacts import Artifact
from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.serving.predictor import CallablePredictor, Predictor
from pytest_modelserve.serving.torch_predictor import TorchPredictor

if TYPE_CHECKING:
    from torch import nn


_CPU = ("CPUExecutionProvider",)


class HasModule(Protocol):
    """A trained model as `training` gives it; this room does not know that one."""

    @property
    def subject(self) -> Subject:
        """What evidence calls the model."""

    def module(self) -> nn.Module:
        """The torch module in eval mode."""


Servable = Artifact | str | os.PathLike[str] | HasModule | Callable[..., Any]


def serve(
    target: Servable,
    *,
    providers: Sequence[str] = _CPU,
    threads: int = 1,
    name: str | None = None,
    variant: str | None = None,
) -> Predictor:
    """A predictor of `target`, to be closed by the caller or used as a context manager.

    An Artifact or the path of an ONNX file is answered by onnxruntime on `providers`; a torch module, a TrainedModel
    and any other callable are answered by themselves, as references. `threads` is the number of threads of onnxruntime
    or torch. `name` and `variant` override what evidence calls the model.

    Raises UsageError for anything else, for providers that the target has no use for, and for threads beside a
    callable, which has its own; ArtifactError for a file that cannot be served.
    """
    if isinstance(target, str) and target.lower().startswith(("http://", "https://")):
        raise UsageError(
            f"endpoints are not supported by this release: {target!r}; serve the model's file, or a callable that "
            "sends the request"
        )
    if isinstance(target, (Artifact, str, os.PathLike)):
        from pytest_modelserve.serving.onnx_predictor import OnnxPredictor

        return OnnxPredictor(target, providers=providers, threads=threads, name=name, variant=variant)
    if tuple(providers) != _CPU:
        raise UsageError(
            f"providers={providers!r} are onnxruntime's: {_told(target)} is answered by itself, on the CPU"
        )
    if _is_torch_module(target):
        subject = Subject(type(target).__name__, "torch")
        return TorchPredictor(target, subject=_renamed(subject, name, variant), threads=threads)
    if isinstance(target, type):
        raise UsageError(f"{target.__name__} is a class: serve an instance of it")
    if hasattr(target, "module") and hasattr(target, "subject"):
        return TorchPredictor(target.module(), subject=_renamed(target.subject, name, variant), threads=threads)
    if callable(target):
        if threads != 1:
            raise UsageError(f"threads={threads} has no meaning for {_told(target)}: it sets its own")
        return CallablePredictor(target, name=name, variant=variant or "")
    raise UsageError(
        f"{_told(target)} cannot be served: give an Artifact, the path of an ONNX file, a torch module, a TrainedModel "
        "or a callable"
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


def _told(target: object) -> str:
    return getattr(target, "__name__", None) or f"an object of type {type(target).__name__}"
