"""An ONNX model computed in float64 by onnx's own reference evaluator: what its answers would be without rounding."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from pytest_modelserve.artifacts import Artifact, load_model

# The evaluator is numpy and Python: a convolution over a large image takes minutes, and so does holding a large model
# twice as wide. What is beyond these is calibrated without it.
_MAX_WEIGHTS = 64 * 2**20
_MAX_INPUT_ELEMENTS = 10**6


def float64_answers(artifact: Artifact, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]] | None:
    """The outputs of `artifact` with every float32 of the graph, weights and inputs included, as float64.

    None where the evaluator cannot: operators of another domain, values that are no tensors, weights in other files or
    above 64 MiB, inputs of more than a million elements.
    """
    if artifact.external or artifact.initializer_bytes > _MAX_WEIGHTS:
        return None
    if sum(array.size for array in feed.values()) > _MAX_INPUT_ELEMENTS:
        return None
    from onnx.reference import ReferenceEvaluator

    # Not inside the `try`: a file that has changed, and a fault of ours, are no operator that the evaluator lacks.
    model = widened(load_model(artifact))
    wide = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in feed.items()}
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            answers = ReferenceEvaluator(model).run(None, wide)
    except Exception:  # whatever an operator's Python raises: it is not the model's fault and not ours
        return None
    names = [spec.name for spec in artifact.signature.outputs]
    return {name: np.asarray(value) for name, value in zip(names, answers, strict=True)}


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in which float64 stands wherever float32 stood: tensors, declarations, casts, subgraphs."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    _widen_graph(wide.graph)
    for function in wide.functions:
        _widen_nodes(function.node)
    return wide


def _widen_graph(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    _widen_nodes(graph.node)


def _widen_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for item in node.attribute:
            if item.HasField("t"):
                _widen_tensor(item.t)
            if item.name in ("to", "dtype") and item.i == TensorProto.FLOAT:
                item.i = TensorProto.DOUBLE
            for graph in ([item.g] if item.HasField("g") else []) + list(item.graphs):
                _widen_graph(graph)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
