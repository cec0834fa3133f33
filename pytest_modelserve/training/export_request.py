"""Export requests: checked arguments, traced inputs, and the store key."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import LineageStep, digest_of, package_hash
from pytest_modelserve.errors import ExportError, InputError, UsageError, unknown_choice
from pytest_modelserve.evidence import package_versions
from pytest_modelserve.metrics.comparison import check_tolerances
from pytest_modelserve.serving.inputs import check_positive
from pytest_modelserve.serving.torch_predictor import Call, Forward
from pytest_modelserve.training.derived_model import DerivedModel
from pytest_modelserve.training.module_digest import module_digest, weights_digest
from pytest_modelserve.training.train import Examples, TrainedModel, as_examples, check_name
from pytest_modelserve.training.train_spec import TrainSpec

if TYPE_CHECKING:
    from torch import nn


def check_exportable(module: nn.Module) -> None:
    """Raise ExportError for a module that is scripted, training, quantized, pruned with masks, or not on the CPU."""
    from torch import jit

    for path, each in module.named_modules():
        part = f"its part {path!r}" if path else "the module"
        if isinstance(each, jit.ScriptModule):
            raise ExportError(f"{part} is scripted already: export the nn.Module that it was made from")
        if each.training:
            raise ExportError(f"{part} is in training mode: call .eval() first")
        _check_masks(part, path, each)
        _check_quantized(part, each)
    for path, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.device.type != "cpu":
            raise ExportError(f"{path!r} is on {tensor.device}: call .cpu() first, as exports are verified on the CPU")


# Modules with int8 kernels of torch, and tensors of torchao, which ONNX has no operators for.
_QUANTIZED = re.compile(r"torch\.(ao\.)?nn\.(intrinsic\.)?quantized\.|torchao\.")


def _check_quantized(part: str, module: nn.Module) -> None:
    for value in (module, *module._parameters.values(), *module._buffers.values()):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if _QUANTIZED.match(kind):
            raise ExportError(
                f"{part} is quantized by torch ({kind}), which cannot be exported: export the float module, then "
                "quantize the artifact with ms.compress(artifact, 'int8-static', calibration=rows) or 'int8-dynamic'"
            )


def _check_masks(part: str, path: str, module: nn.Module) -> None:
    """Reject masks: the exporter folds only small ones into the weights; large ones nearly double the file."""
    from torch.nn.utils import prune

    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            name = getattr(hook, "_tensor_name", "weight")
            holder = f"module.get_submodule({path!r})" if path else "module"
            raise ExportError(
                f"{part} has a pruning mask on {name!r}, and mask and unpruned values would both be exported: "
                f"call torch.nn.utils.prune.remove({holder}, {name!r}) first"
            )


Dynamic = Sequence[str] | Mapping[str, Mapping[int, str] | Sequence[int] | None]

# The edge-case rows that an export is checked on, by their names in `check_rows`.
ROW_CHECKS = ("padding", "zeros", "extremes")

# One row does not trace a batch: squeeze, broadcasting and `if len(x) == 1` depend on the traced size.
_SMALLEST_FREE_SIZE = 2


@dataclass(frozen=True, slots=True, eq=False)
class Tracing:
    """The arrays to trace, by input name in the model's order, and the names of free axes.

    `axes[input][axis]` is the name of a free axis; axes of one name have the same size in every input. `call` maps the
    arrays to arguments of `forward`; None for a subject that is not a torch module.
    """

    inputs: Mapping[str, NDArray[Any]]
    axes: Mapping[str, Mapping[int, str]]
    call: Call | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Traced size of every free axis, by name."""
        return {name: self.inputs[key].shape[axis] for key, axis, name in _free_axes(self.axes)}


def plan_tracing(module: nn.Module, examples: Examples, dynamic: Dynamic) -> Tracing:
    """Return how to trace `module` so that the axes in `dynamic` stay free.

    A sequence names the leading axes of every input: `("batch",)`, or `("batch", "time")`. A mapping names them input
    by input: `{"ids": {0: "batch", 1: "time"}}`. A list of axes has torch's form, `{"ids": [0, 1]}`: axis 0 is called
    "batch" and any other after its input, "ids_axis_1". An example of one row is repeated to two. Nested examples have
    the names of `Forward.call_of`, also in `dynamic`.

    InputError for examples that `forward` does not accept, or whose axes of one name differ in size; UsageError for
    axes that the inputs do not have.
    """
    call, inputs = Forward.of(module).call_of(as_examples(examples, "example_inputs"))
    axes = _axes(dynamic, {name: array.ndim for name, array in inputs.items()})
    _check_sizes(inputs, axes)
    return Tracing({name: _with_two_rows(array, axes[name]) for name, array in inputs.items()}, axes, call)


def _axes(dynamic: Dynamic, ranks: Mapping[str, int]) -> dict[str, dict[int, str]]:
    if isinstance(dynamic, str):
        raise UsageError(f"dynamic must be a tuple of names or a mapping; got {dynamic!r}: pass ({dynamic!r},)")
    if isinstance(dynamic, Mapping):
        axes = {name: dict[int, str]() for name in ranks}
        for name, named in dynamic.items():
            if name not in ranks:
                raise UsageError(f"dynamic: {unknown_choice('input', name, ranks)}")
            labels = _labels(name, named, ranks[name])
            axes[name] = {_axis(axis, ranks[name], name): label for axis, label in labels.items()}
    elif not isinstance(dynamic, Sequence):
        raise UsageError(f"dynamic must be a tuple of names or a mapping; got {dynamic!r}: pass () for no free axis")
    else:
        axes = {name: dict(enumerate(dynamic[:rank])) for name, rank in ranks.items()}
        unused = [label for axis, label in enumerate(dynamic) if axis >= max(ranks.values())]
        if unused:
            raise UsageError(f"dynamic: no input has an axis {len(dynamic) - 1}, which {unused[-1]!r} names")
    for name, named in axes.items():
        _check_labels(name, list(named.values()))
    return axes


def _labels(name: str, named: object, rank: int) -> Mapping[int, str]:
    """Return the names of the axes of an input; UsageError for neither a mapping nor a list of axes."""
    if named is None:
        return {}
    if isinstance(named, Mapping):
        return named
    if isinstance(named, (list, tuple, set)):
        places = sorted({_axis(axis, rank, name) for axis in named})
        return {axis: f"{_identifier(name)}_axis_{axis}" if axis else "batch" for axis in places}
    raise UsageError(f"dynamic: input {name!r} has {named!r}; pass its axes, such as {{{name!r}: {{0: 'batch'}}}}")


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _axis(axis: int, rank: int, name: str) -> int:
    if isinstance(axis, bool) or not isinstance(axis, int) or not -rank <= axis < rank:
        raise UsageError(f"dynamic: input {name!r} has {rank} axes, so {axis!r} is out of range")
    return axis % rank


def _check_labels(name: str, labels: list[Any]) -> None:
    for label in labels:
        if not isinstance(label, str) or not label.isidentifier():
            raise UsageError(
                f"dynamic: an axis name must be an identifier such as 'batch'; input {name!r} has {label!r}"
            )
        if labels.count(label) > 1:
            raise UsageError(f"dynamic: input {name!r} has two axes called {label!r}")


def _check_sizes(inputs: Mapping[str, NDArray[Any]], axes: Mapping[str, Mapping[int, str]]) -> None:
    first: dict[str, tuple[str, int]] = {}
    for key, axis, label in _free_axes(axes):
        size = inputs[key].shape[axis]
        other, expected = first.setdefault(label, (key, size))
        if size != expected:
            raise InputError(
                f"example_inputs: axis {label!r} has size {expected} in {other!r} and size {size} in {key!r}; "
                "axes of one name must have one size"
            )


def _with_two_rows(array: NDArray[Any], named: Mapping[int, str]) -> NDArray[Any]:
    repeats = [_SMALLEST_FREE_SIZE if axis in named and size == 1 else 1 for axis, size in enumerate(array.shape)]
    return np.tile(array, repeats) if repeats else array


def _free_axes(axes: Mapping[str, Mapping[int, str]]) -> Iterator[tuple[str, int, str]]:
    return ((key, axis, label) for key, named in axes.items() for axis, label in named.items())


@dataclass(frozen=True, slots=True, eq=False)
class ExportJob:
    """All that one call of the exporter needs; `path` is the file to write."""

    module: nn.Module
    tracing: Tracing
    outputs: Sequence[str]
    opset: int | None
    external_data: bool
    path: Path


PACKAGES = ("torch", "onnx", "onnxscript", "numpy", "pytest-modelserve")


@dataclass(frozen=True, slots=True, eq=False)
class ExportRequest:
    """Checked arguments of `export`; `training` is the lineage so far, empty for a bare module."""

    name: str
    module: nn.Module
    weights_sha256: str
    training: tuple[LineageStep, ...]
    tracing: Tracing
    opset: int | None
    external_data: bool
    time_limit_s: float
    rtol: float | None = None
    atol: float | None = None
    check_rows: tuple[str, ...] = ROW_CHECKS

    @property
    def key(self) -> str:
        """Digest of everything that the artifact depends on; of the examples only dtypes and shapes."""
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
                "tolerance": (self.rtol, self.atol),
                "check_rows": self.check_rows,
                "python": sys.version_info[:2],
                "versions": package_versions(PACKAGES),
                "own_code": package_hash(),
            }
        )


def make_request(
    model: TrainedModel | DerivedModel | nn.Module,
    example_inputs: Examples | None,
    *,
    dynamic: Dynamic,
    opset: int | None,
    external_data: bool = False,
    time_limit_s: float,
    rtol: float | None = None,
    atol: float | None = None,
    check_rows: Sequence[str] = ROW_CHECKS,
    name: str | None,
) -> ExportRequest:
    """Check the arguments of `export`; raises what `export` documents."""
    if opset is not None and (isinstance(opset, bool) or not isinstance(opset, int) or opset < 1):
        raise UsageError(f"opset must be an integer of at least 1; got {opset!r}")
    check_positive("time_limit_s", time_limit_s, "seconds")
    if (rtol is None) != (atol is None):
        raise UsageError("rtol and atol require each other: give both, or neither to take them from the module")
    if rtol is not None and atol is not None:
        check_tolerances(rtol, atol)
    module, examples = _module_and_examples(model, example_inputs)
    check_exportable(module)
    return ExportRequest(
        name=_name(model, name),
        module=module,
        weights_sha256=weights_digest(module),
        training=_lineage(model),
        tracing=plan_tracing(module, examples, dynamic),
        opset=opset,
        external_data=external_data,
        time_limit_s=time_limit_s,
        rtol=rtol,
        atol=atol,
        check_rows=_row_checks(check_rows),
    )


def _row_checks(given: Sequence[str]) -> tuple[str, ...]:
    """Return the names in `check_rows` in their usual order; UsageError for an unknown one."""
    if isinstance(given, str):
        raise UsageError(f"check_rows must be a tuple of names; got {given!r}: pass ({given!r},)")
    for name in given:
        if name not in ROW_CHECKS:
            raise UsageError(f"check_rows: {unknown_choice('kind of row', name, ROW_CHECKS)}")
    return tuple(name for name in ROW_CHECKS if name in given)


def _module_and_examples(
    model: TrainedModel | DerivedModel | nn.Module, examples: Examples | None
) -> tuple[nn.Module, Examples]:
    from torch import nn

    if isinstance(model, (TrainedModel, DerivedModel)):
        own = model.source.example_inputs if isinstance(model, TrainedModel) else model.example_inputs
        return model.module(), own if examples is None else examples
    if not isinstance(model, nn.Module):
        raise UsageError(f"model must be a TrainedModel or a torch module; got {type(model).__name__}")
    if type(examples).__name__ == "DataLoader":
        raise InputError(
            "example_inputs is a DataLoader: pass some rows of its inputs, such as rows[:2] of "
            "rows, labels = next(iter(loader))"
        )
    if examples is None:
        raise InputError(
            "example_inputs is required for a torch module: one array, a tuple by position, or a mapping by parameter "
            "names"
        )
    return model, examples


def _lineage(model: object) -> tuple[LineageStep, ...]:
    if isinstance(model, DerivedModel):
        return model.lineage
    return (training_step(model),) if isinstance(model, TrainedModel) else ()


def training_step(model: TrainedModel) -> LineageStep:
    """Return the first step in the lineage of a trained model."""
    settings: dict[str, Any] = {"source": model.source.name, "seed": model.seed, "weights_sha256": model.sha256}
    if isinstance(model.source.fit, TrainSpec) and model.metrics is not None:
        # Without the seconds, which would give the same training another file each time.
        left_out = {"seconds"}
        if model.metrics.privacy is not None:  # of training rows, without noise
            left_out |= {"losses", "held_out_losses"}
        measured = {key: value for key, value in asdict(model.metrics).items() if key not in left_out}
        settings |= {"spec": model.source.fit.describe(), "metrics": measured}
    return LineageStep(
        "training",
        settings,
        None,
        package_versions(("torch", "numpy")),
    )


def _name(model: TrainedModel | DerivedModel | nn.Module, name: str | None) -> str:
    default = model.subject.name if isinstance(model, (TrainedModel, DerivedModel)) else type(model).__name__
    chosen = default if name is None else name
    check_name(chosen)
    return chosen
