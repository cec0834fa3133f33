"""One export as it was asked for: checked, and with the key that it is stored under."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_modelserve.artifacts import LineageStep, digest_of, own_code
from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import package_versions
from pytest_modelserve.training.exportable import check_exportable
from pytest_modelserve.training.identity import module_digest, weights_digest
from pytest_modelserve.training.source import Examples, check_name
from pytest_modelserve.training.tracing import Dynamic, Tracing, plan_tracing
from pytest_modelserve.training.trained import TrainedModel

if TYPE_CHECKING:
    from torch import nn

PACKAGES = ("torch", "onnx", "onnxscript", "numpy", "pytest-modelserve")


@dataclass(frozen=True, slots=True, eq=False)
class ExportRequest:
    """`training` is the lineage so far: one step for a TrainedModel, none for a bare module."""

    name: str
    module: nn.Module
    weights_sha256: str
    training: tuple[LineageStep, ...]
    tracing: Tracing
    opset: int | None
    external_data: bool
    time_limit_s: float

    @property
    def key(self) -> str:
        """The digest of all that the artifact depends on; of the examples only dtypes and shapes do."""
        return digest_of(
            {
                "stage": "export",
                "name": self.name,
                "module": module_digest(self.module),
                "training": [step.settings for step in self.training],
                "inputs": [(name, str(array.dtype), array.shape) for name, array in self.tracing.inputs.items()],
                "axes": self.tracing.axes,
                "call": (self.tracing.call.args, self.tracing.call.kwargs) if self.tracing.call else None,
                "opset": self.opset,
                "external_data": self.external_data,
                "python": sys.version_info[:2],
                "versions": package_versions(PACKAGES),
                "own_code": own_code(),
            }
        )


def request_for(
    model: TrainedModel | nn.Module,
    example_inputs: Examples | None,
    *,
    dynamic: Dynamic,
    opset: int | None,
    external_data: bool = False,
    time_limit_s: float,
    name: str | None,
) -> ExportRequest:
    """The request that the arguments of `export` make; raises what `export` says of bad ones."""
    if opset is not None and (isinstance(opset, bool) or not isinstance(opset, int) or opset < 1):
        raise UsageError(f"opset is a whole number from 1, not {opset!r}")
    if not (math.isfinite(time_limit_s) and time_limit_s > 0):
        raise UsageError(f"time_limit_s is a number of seconds above 0, not {time_limit_s}")
    module, examples = _taken_apart(model, example_inputs)
    check_exportable(module)
    return ExportRequest(
        name=_name(model, name),
        module=module,
        weights_sha256=weights_digest(module),
        training=(_training_step(model),) if isinstance(model, TrainedModel) else (),
        tracing=plan_tracing(module, examples, dynamic),
        opset=opset,
        external_data=external_data,
        time_limit_s=time_limit_s,
    )


def _taken_apart(model: TrainedModel | nn.Module, examples: Examples | None) -> tuple[nn.Module, Examples]:
    from torch import nn

    if isinstance(model, TrainedModel):
        return model.module(), model.source.example_inputs if examples is None else examples
    if not isinstance(model, nn.Module):
        raise UsageError(f"export takes a TrainedModel or a torch module, not {type(model).__name__}")
    if examples is None:
        raise InputError(
            "export of a torch module needs example_inputs: one array, a tuple by position, or a mapping by parameter "
            "names"
        )
    return model, examples


def _training_step(model: TrainedModel) -> LineageStep:
    return LineageStep(
        "training",
        {"source": model.source.name, "seed": model.seed, "weights_sha256": model.sha256},
        None,
        package_versions(("torch", "numpy")),
    )


def _name(model: TrainedModel | nn.Module, name: str | None) -> str:
    default = model.source.name if isinstance(model, TrainedModel) else type(model).__name__
    chosen = default if name is None else name
    check_name(chosen)
    return chosen
