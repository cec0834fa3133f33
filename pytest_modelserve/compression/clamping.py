"""Constants that float16 cannot hold, and the nodes that have to stay in float32 because of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.compression.census import nodes_of

if TYPE_CHECKING:
    import onnx

# IEEE 754 binary16: the largest finite number, and the smallest positive one (2**-24), which onnxruntime's converter
# writes as 5.96e-08.
LARGEST, SMALLEST = 65504.0, 5.96e-08
# float16 rounds a number by up to 2**-11 of itself.
_ROUNDING = 2.0**-11
# Operators that add up products with their weights: what a sum loses by a tiny weight is nothing beside what the
# rounding of its large ones costs.
_SUMMING = ("Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN")
# Operators whose output is as large or as small as the constant: whoever reads it has to read it in float32, too.
_CARRYING = (
    "Add", "Cast", "Concat", "ConstantOfShape", "Expand", "Gather", "Identity", "Max", "Min", "Mul", "Reshape",
    "Slice", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Clamped:
    """A constant, why float16 cannot hold it, and whether it has to be kept for that reason."""

    name: str
    reason: str
    is_kept: bool


def clamped_constants(model: onnx.ModelProto) -> tuple[Clamped, ...]:
    """The float32 initializers of the main graph, and the values of ConstantOfShape there, that float16 would change.

    Beyond rounding, that is: finite numbers past 65504, which would become 65504, and numbers other than 0 below 6e-8,
    which would become 6e-8. Infinities and NaN stay what they are.
    """
    summed = _only_summed(model.graph)
    found = (_clamped(name, array, is_summed=name in summed) for name, array in _constants(model.graph))
    return tuple(clamped for clamped in found if clamped)


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, NDArray[Any]]]:
    import onnx

    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            yield tensor.name, np.asarray(onnx.numpy_helper.to_array(tensor))
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            for attribute in node.attribute:
                if attribute.t.data_type == onnx.TensorProto.FLOAT:
                    yield node.output[0], np.asarray(onnx.numpy_helper.to_array(attribute.t))


def _clamped(name: str, array: NDArray[Any], *, is_summed: bool) -> Clamped | None:
    sizes = np.abs(array[np.isfinite(array)])
    largest = float(sizes.max(initial=0.0))
    if largest > LARGEST:
        return Clamped(name, f"{name!r} holds {largest:g}, beyond the largest fp16, {LARGEST:g}", True)
    tiny = sizes[(sizes > 0) & (sizes < SMALLEST)]
    if not tiny.size:
        return None
    if is_summed and largest * _ROUNDING > SMALLEST:
        return Clamped(name, f"{tiny.size} of the {array.size} values of {name!r} became ±{SMALLEST:g}", False)
    return Clamped(name, f"{name!r} holds {float(tiny.min()):g}, below the smallest fp16, {SMALLEST:g}", True)


def _only_summed(graph: onnx.GraphProto) -> set[str]:
    """The values that summing operators alone read."""
    summed, elsewhere = set[str](), set[str]()
    for node in nodes_of(graph):
        (summed if node.op_type in _SUMMING else elsewhere).update(node.input)
    return summed - elsewhere


def kept_nodes(model: onnx.ModelProto, constants: set[str]) -> list[onnx.NodeProto]:
    """The nodes of the main graph that read `constants`, make them, or read what carries their size on, in order."""
    beyond = set(constants)
    kept: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if beyond.intersection(node.input) or beyond.intersection(node.output):
            kept.append(node)
            if node.op_type in _CARRYING:
                beyond.update(node.output)
    return kept
