"""What the exporter wrote, held against what was asked for, and its shapes put right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_modelserve.artifacts import opset_of, signature_of
from pytest_modelserve.errors import ArtifactError, BakedAxisError, ExportError, UnsupportedOperatorError
from pytest_modelserve.training.agreeing import Probe
from pytest_modelserve.training.failing import innermost_line
from pytest_modelserve.training.tracing import Tracing

if TYPE_CHECKING:
    import onnx

_NO_KERNEL = re.compile(r"Could not find an implementation for (\w+)\(\d+\)")
# Under this key the exporter keeps a node's way through the user's code.
_STACK = "pkg.torch.onnx.stack_trace"


def check_written(model: onnx.ModelProto, tracing: Tracing, outputs: Sequence[str], opset: int | None) -> None:
    """ExportError where the opset, an input or the outputs are not those that were asked for, BakedAxisError where a
    free axis is not."""
    written = opset_of(model)
    if opset is not None and written != opset:
        raise ExportError(
            f"opset {opset} was asked for and the exporter wrote opset {written}: ask for opset {written}, "
            "or leave the choice to the exporter"
        )
    signature = signature_of(model)
    specs = {spec.name: spec for spec in signature.inputs}
    for name, named in tracing.axes.items():
        if name not in specs:
            raise ExportError(f"input {name!r} is not in the exported model, as forward does not use it: leave it out")
        for axis, label in named.items():
            found = (specs[name].shape or ())[axis : axis + 1]
            if found != (label,):
                raise BakedAxisError(
                    f"axis {axis} of input {name!r} was to be free and called {label!r}, and the exporter fixed it as "
                    f"{found[0] if found else 'nothing'}"
                )
    if [spec.name for spec in signature.outputs] != list(outputs):
        told = ", ".join(repr(spec.name) for spec in signature.outputs)
        raise ExportError(f"the module's outputs are {', '.join(map(repr, outputs))}; the exported model's are {told}")


def forget_shapes(model: onnx.ModelProto) -> None:
    """Remove every shape that the exporter claims for a value inside the graph; runtimes infer their own.

    They are not to be relied on: with a free time axis, torch 2.13 writes the traced length after a recurrent layer,
    and onnxsim then bakes it into the graph.
    """
    del model.graph.value_info[:]


def refusal(error: ArtifactError, model: onnx.ModelProto) -> ExportError:
    """What to raise for `error`, with which onnxruntime refused the exported `model`."""
    told = str(error).rpartition("onnx: ")[2]
    missing = _NO_KERNEL.search(told)
    if missing is None:
        return ExportError(f"onnxruntime refuses what the exporter wrote: {told}")
    operator = missing[1]
    stacks = [e.value for n in model.graph.node if n.op_type == operator for e in n.metadata_props if e.key == _STACK]
    line = next(filter(None, map(innermost_line, stacks)), "")
    double = any(spec.dtype == "float64" for spec in signature_of(model).inputs)
    advice = "export in float32, with module.float() and rows of float32" if double else "write it with other operators"
    where = f", from {line}" if line else ""
    return UnsupportedOperatorError(f"onnxruntime cannot run the operator {operator}{where}: {advice} ({told})")


def correct_outputs(model: onnx.ModelProto, probes: Sequence[Probe]) -> tuple[str, ...]:
    """Give every dim of the outputs the name or size that the runs showed; what was wrong comes back as notes.

    A symbolic dim that is none of the free axes (a sum of two, a count that depends on the data) stays as it is.
    """
    notes = []
    labels = probes[0].sizes
    for value in model.graph.output:
        shapes = [probe.expected[value.name].shape for probe in probes]
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            claimed = getattr(dim, dim.WhichOneof("value") or "", None)
            if isinstance(claimed, str) and claimed not in labels:
                continue
            shown = _name_of(probes, [shape[axis] for shape in shapes])
            if shown == claimed:
                continue
            where = f"output {value.name!r}, axis {axis}"
            notes.append(f"{where}: the exporter wrote {_dim(claimed)}, runs showed {_dim(shown)}")
            dim.Clear()
            if isinstance(shown, int):
                dim.dim_value = shown
            elif shown is not None:
                dim.dim_param = shown
    return tuple(notes)


def _name_of(probes: Sequence[Probe], sizes: Sequence[int]) -> int | str | None:
    for label in probes[0].sizes:
        if all(size == probe.sizes[label] for size, probe in zip(sizes, probes, strict=True)):
            return label
    return sizes[0] if len(set(sizes)) == 1 else None


def _dim(dim: int | str | None) -> str:
    return "?" if dim is None else str(dim)
