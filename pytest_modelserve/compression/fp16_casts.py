"""The graph around the casts that onnxruntime's float16 converter adds: constants before, order and detours after."""

from __future__ import annotations

from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

import numpy as np

from pytest_modelserve.compression.census import nodes_inside, nodes_of

if TYPE_CHECKING:
    import onnx


def constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Turn the Constant nodes of `graph` that hold float32 into initializers.

    The converter overlooks `value_float`, so that the result does not load, and casts a constant that is to stay in
    float32 to float16 and back.
    """
    import onnx

    for node in [node for node in graph.node if node.op_type == "Constant"]:
        attribute = node.attribute[0]
        if attribute.name in ("value_float", "value_floats"):
            value = np.array(onnx.helper.get_attribute_value(attribute), np.float32)
            tensor = onnx.numpy_helper.from_array(value, node.output[0])
        elif attribute.name == "value" and attribute.t.data_type == onnx.TensorProto.FLOAT:
            tensor = attribute.t
            tensor.name = node.output[0]
        else:
            continue
        graph.initializer.append(tensor)
        graph.node.remove(node)


def straighten(graph: onnx.GraphProto) -> None:
    """Let nodes in float32 read each other directly, drop the casts that nobody reads then, and put nodes in order.

    Between two neighbours that stay in float32 the converter goes by way of float16, where 1e9 becomes infinite. And
    it appends its casts at the end of the graph, which ONNX does not allow.
    """
    import onnx

    half = _casts(graph, onnx.TensorProto.FLOAT16)
    detours = {given: half[taken] for given, taken in _casts(graph, onnx.TensorProto.FLOAT).items() if taken in half}
    for node in nodes_of(graph):
        for place, name in enumerate(node.input):
            node.input[place] = detours.get(name, name)
    for node in graph.node:
        if node.output[0] in detours and node.op_type == "Cast":
            _pass_on(node, detours[node.output[0]])
    _drop_unread_casts(graph)
    _put_in_order(graph)


def _casts(graph: onnx.GraphProto, kind: int) -> dict[str, str]:
    """What each Cast to `kind` gives, with what it takes."""
    return {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Cast" and any(item.name == "to" and item.i == kind for item in node.attribute)
    }


def _pass_on(cast: onnx.NodeProto, value: str) -> None:
    """Make a cast there and back an Identity: it may be what gives an output of the graph."""
    cast.op_type = "Identity"
    cast.input[0] = value
    del cast.attribute[:]


def _drop_unread_casts(graph: onnx.GraphProto) -> None:
    outputs = {value.name for value in graph.output}
    unread: list[onnx.NodeProto] | None = None
    while unread is None or unread:
        read = outputs.union(*(node.input for node in nodes_of(graph)))
        unread = [
            node for node in graph.node if node.op_type in ("Cast", "Identity") and not read.intersection(node.output)
        ]
        for node in unread:
            graph.node.remove(node)


def _put_in_order(graph: onnx.GraphProto) -> None:
    nodes = list(graph.node)
    makers = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    needed = {number: _needs(node, makers) - {number} for number, node in enumerate(nodes)}
    order = list(TopologicalSorter(needed).static_order())
    del graph.node[:]
    graph.node.extend(nodes[number] for number in order)


def _needs(node: onnx.NodeProto, makers: dict[str, int]) -> set[int]:
    """The numbers of the nodes that make what `node` reads, also inside its branches and bodies."""
    return {makers[name] for reader in (node, *nodes_inside(node)) for name in reader.input if name in makers}
