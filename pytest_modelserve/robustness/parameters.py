"""Inputs that an operator takes as parameters: axes, shapes, indices, counts. Read from the graph of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import is_left_out

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]

_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_SAME = ("Identity", "Cast", "CastLike")
"""Operators behind which a parameter is still the same one."""


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """One node, and what it is given: `inputs` are names of the model's inputs, of constants, or of something computed
    (""); `weights` are the shapes of constants, `constants` their values where those are small; `outputs` are the
    shapes that the model declares for the node's outputs, None where it does not, or not all of it."""

    op: str
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    weights: Mapping[str, Shape]
    constants: Mapping[str, NDArray[Any]]
    outputs: tuple[Shape | None, ...]

    def name(self, slot: int) -> str:
        """What feeds a slot; empty where nothing does, or something that the model computes."""
        return self.inputs[slot] if slot < len(self.inputs) else ""


def uses_of(model: onnx.ModelProto) -> tuple[Use, ...]:
    """The nodes of the main graph that take an input of the model, as it is or cast, in the order of the file.

    Nodes in branches and loops, and in functions of the model's own, are not looked at.
    """
    import onnx

    graph = model.graph
    kept = {tensor.name: tensor for tensor in graph.initializer}
    alias = {value.name: value.name for value in graph.input if value.name not in kept}
    constants: dict[str, NDArray[Any]] = {}
    for name, tensor in kept.items():
        if tensor.data_location != onnx.TensorProto.EXTERNAL and not is_left_out(tensor) and np.prod(tensor.dims) < 64:
            constants[name] = np.asarray(onnx.numpy_helper.to_array(tensor))
    weights: dict[str, Shape] = {name: tuple(tensor.dims) for name, tensor in kept.items()}
    shapes = dict(_declared(graph))
    found = []
    for node in graph.node:
        if node.op_type == "Constant":
            for tensor in (item.t for item in node.attribute if item.HasField("t")):
                constants[node.output[0]] = np.asarray(onnx.numpy_helper.to_array(tensor))
                weights[node.output[0]] = tuple(tensor.dims)
        names = tuple(alias.get(name, name if name in weights else "") for name in node.input)
        if node.op_type in _SAME and names and names[0] in alias:
            alias[node.output[0]] = names[0]
        elif node.domain in _DOMAINS and any(name in alias.values() for name in names):
            attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute if _plain(item)}
            outputs = tuple(shapes.get(name) for name in node.output)
            found.append(Use(node.op_type, attributes, names, weights, constants, outputs))
    return tuple(found)


def _declared(graph: onnx.GraphProto) -> Iterator[tuple[str, Shape]]:
    """The shapes that the file says in full."""
    for value in (*graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.WhichOneof("value") == "dim_value" for dim in kind.shape.dim):
            yield value.name, tuple(dim.dim_value for dim in kind.shape.dim)


def _plain(item: onnx.AttributeProto) -> bool:
    return not item.ref_attr_name and item.type in (item.INT, item.INTS, item.FLOAT, item.FLOATS, item.STRING)
