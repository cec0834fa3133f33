"""Values inside a graph: onnxruntime without its optimisations, asked for tensors that the model keeps to itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from pytest_modelserve.errors import ArtifactError, InputError
from pytest_modelserve.parity.locating.graph import Graph

Values = dict[str, NDArray[Any]]

# What onnxruntime hands out as a numpy array of the tensor's own type, by ONNX's element type.
ELEMENT_TYPES = {
    "tensor(float16)": onnx.TensorProto.FLOAT16,
    "tensor(float)": onnx.TensorProto.FLOAT,
    "tensor(double)": onnx.TensorProto.DOUBLE,
    "tensor(bool)": onnx.TensorProto.BOOL,
    "tensor(string)": onnx.TensorProto.STRING,
    **{
        f"tensor({sign}int{bits})": onnx.TensorProto.DataType.Value(f"{sign}int{bits}".upper())
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}


def session_of(
    model: onnx.ModelProto, weights: Mapping[str, NDArray[Any]], *, optimised: bool = False
) -> onnxruntime.InferenceSession:
    """A session of `model` on one thread of the CPU; of `weights` it reads those that `model` says lie elsewhere.

    ArtifactError where onnxruntime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what it warns of (an initializer that nobody uses) is no news here
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        # A session runs once or twice here, and weights that nobody packs are shared, not copied.
        options.add_session_config_entry("session.disable_prepacking", "1")
    elsewhere = [each.name for each in model.graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL]
    try:
        shared = [onnxruntime.OrtValue.ortvalue_from_numpy(weights[name]) for name in elsewhere]
        options.add_external_initializers(elsewhere, shared)
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions share no base class
        raise ArtifactError(f"onnxruntime does not take the graph: {error}") from error


def marked_session(graph: Graph, tensors: Iterable[str]) -> onnxruntime.InferenceSession:
    """A session of `graph`, unoptimised, that can also be asked for `tensors`."""
    outputs = graph.model.graph.output
    before = len(outputs)
    known = {value.name for value in outputs}
    outputs.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
    try:
        return session_of(graph.model, graph.constants)
    finally:
        del outputs[before:]


def element_types(session: onnxruntime.InferenceSession) -> dict[str, int]:
    """ONNX's element type of every output that is a tensor of a type that numpy has."""
    return {each.name: ELEMENT_TYPES[each.type] for each in session.get_outputs() if each.type in ELEMENT_TYPES}


def answers(session: onnxruntime.InferenceSession, feed: Mapping[str, Any], names: Sequence[str]) -> Values:
    """The values of `names`. InputError where onnxruntime fails on `feed`."""
    if not names:
        return {}
    try:
        return dict(zip(names, session.run(list(names), dict(feed)), strict=True))
    except Exception as error:  # the runtime's exceptions share no base class
        raise InputError(f"onnxruntime could not run the graph on these inputs: {error}") from error


def sizes(graph: Graph, tensors: Sequence[str], feed: Mapping[str, Any]) -> dict[str, int]:
    """The bytes of each of `tensors`, four an element, found in a run that keeps none of them.

    Every tensor gets a Shape node, and only those are outputs: onnxruntime frees a tensor after its last reader.
    """
    nodes, outputs = graph.model.graph.node, graph.model.graph.output
    before = len(nodes), len(outputs)
    shapes = [f"{name}::shape" for name in tensors]
    nodes.extend(onnx.helper.make_node("Shape", [n], [s]) for n, s in zip(tensors, shapes, strict=True))
    outputs.extend(onnx.ValueInfoProto(name=name) for name in shapes)
    try:
        session = session_of(graph.model, graph.constants)
    finally:
        del nodes[before[0] :]
        del outputs[before[1] :]
    found = answers(session, feed, shapes)
    return {name: 4 * int(np.prod(found[shape])) for name, shape in zip(tensors, shapes, strict=True)}
