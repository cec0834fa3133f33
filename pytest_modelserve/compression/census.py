"""What a graph is made of: how many nodes of which operator, and which stored tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

# The domains of operators that onnx itself knows.
STANDARD = ("", "ai.onnx", "ai.onnx.ml")


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of `graph`, those in the branches and bodies inside it included."""
    for node in graph.node:
        yield node
        yield from nodes_inside(node)


def nodes_inside(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Every node in the branches and bodies of `node`."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from nodes_of(graph)


def node_counts(model: onnx.ModelProto) -> dict[str, int]:
    """The number of nodes by operator, the commonest first; nodes of local functions count too."""
    names = [node.op_type for node in nodes_of(model.graph)]
    names += [node.op_type for function in model.functions for node in function.node]
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def told_counts(model: onnx.ModelProto) -> str:
    """The operators of `model` with their numbers, as words."""
    return ", ".join(f"{op} ×{n}" for op, n in node_counts(model).items()) or "no nodes"


def make_up(model: onnx.ModelProto) -> tuple[dict[str, int], Counter[tuple[int, tuple[int, ...]]]]:
    """Node counts, and how many initializers there are of each dtype and shape: equal for models of the same make."""
    return node_counts(model), Counter((tensor.data_type, tuple(tensor.dims)) for tensor in model.graph.initializer)


def float_arrays(model: onnx.ModelProto, names: Container[str] | None = None) -> Iterator[tuple[str, NDArray[Any]]]:
    """The name and value of every initializer of a floating dtype that numpy itself has, or of those in `names`."""
    import onnx

    known = _numpy_floats()
    for tensor in model.graph.initializer:
        if tensor.data_type in known and (names is None or tensor.name in names):
            yield tensor.name, np.asarray(onnx.numpy_helper.to_array(tensor))


def float_dtypes(model: onnx.ModelProto) -> dict[str, str]:
    """The name and dtype of every initializer that `float_arrays` gives; no weights are touched."""
    known = _numpy_floats()
    return {tensor.name: known[tensor.data_type] for tensor in model.graph.initializer if tensor.data_type in known}


def _numpy_floats() -> dict[int, str]:
    import onnx

    return {
        onnx.TensorProto.FLOAT: "float32",
        onnx.TensorProto.DOUBLE: "float64",
        onnx.TensorProto.FLOAT16: "float16",
    }


def keep_node_metadata(model: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Give nodes that lost their metadata those of the node of the same name and operator in `source`.

    The exporter notes there which line of the torch module a node comes from; onnxsim drops it.
    """
    known = {(node.name, node.op_type): node for node in source.graph.node if node.name}
    for node in model.graph.node:
        origin = known.get((node.name, node.op_type))
        if origin is not None and not node.metadata_props:
            node.metadata_props.extend(origin.metadata_props)
