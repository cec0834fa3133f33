"""Alternative runs of a reference: the differences between its outputs show its rounding error."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from pytest_modelserve._onnx.graph import subgraphs
from pytest_modelserve.artifacts import Artifact, load_model
from pytest_modelserve.errors import ModelServeError, UsageError
from pytest_modelserve.serving.predictor import Inputs, Predictor
from pytest_modelserve.serving.torch_predictor import TorchPredictor

if TYPE_CHECKING:
    from pytest_modelserve.serving.onnx_predictor import OnnxPredictor


Outputs = dict[str, NDArray[Any]]
AlternativeRun = Callable[[Inputs], Outputs | None]
"""Function that returns the outputs of a second run, or None if the model cannot be run that way."""


def alternative_runs(reference: Predictor) -> dict[str, AlternativeRun]:
    """Return the alternative runs of `reference` by name.

    A torch module runs "in float64", as a copy with float inputs cast. An ONNX file runs "in float64" in onnx's
    reference evaluator, "without graph optimizations", and "row by row": with other kernels, another order of sums, and
    without influence between rows. UsageError for a predictor that has no alternative run.
    """
    if isinstance(reference, TorchPredictor):
        return {"in float64": lambda inputs: _in_float64(reference, inputs)}
    if reference.transport == "in-process" and reference.artifact is not None:
        from pytest_modelserve.serving.onnx_predictor import OnnxPredictor

        if isinstance(reference, OnnxPredictor):
            onnx_reference = reference
            return {
                "in float64": lambda inputs: _evaluated(onnx_reference, inputs),
                "without graph optimizations": lambda inputs: _unoptimized(onnx_reference, inputs),
                "row by row": lambda inputs: _row_by_row(onnx_reference, inputs),
            }
    raise UsageError(
        f"{reference.describe()}, cannot be run another way to estimate its rounding error: pass both rtol and atol, "
        "such as rtol=1e-4, atol=1e-5 for a candidate that computes in float32"
    )


def _in_float64(reference: TorchPredictor, inputs: Inputs) -> Outputs:
    try:
        return reference.in_float64().predict(_as_float64(inputs))
    except Exception as error:  # the module's own code
        raise UsageError(
            f"{reference.subject} does not run in float64, which estimates its rounding error "
            f"({type(error).__name__}: {error}): pass both rtol and atol"
        ) from error


def _as_float64(inputs: Inputs) -> Inputs:
    if isinstance(inputs, Mapping):
        return {name: _widened(array) for name, array in inputs.items()}
    return _widened(inputs)


def _widened(array: NDArray[Any]) -> NDArray[Any]:
    is_float = isinstance(array, np.ndarray) and array.dtype.kind == "f"
    return array.astype(np.float64) if is_float else array


def _evaluated(reference: OnnxPredictor, inputs: Inputs) -> Outputs | None:
    signature = reference.artifact.signature
    if not all(spec.is_tensor for spec in (*signature.inputs, *signature.outputs)):
        return None
    feed = inputs if isinstance(inputs, Mapping) else {signature.inputs[0].name: inputs}
    return run_in_float64(reference.artifact, feed)


def _unoptimized(reference: OnnxPredictor, inputs: Inputs) -> Outputs:
    with reference.unoptimized() as plain:
        return plain.predict(inputs)


def _row_by_row(reference: OnnxPredictor, inputs: Inputs) -> Outputs | None:
    """Return the outputs of single rows, concatenated; None for a fixed batch size, or outputs without a row axis."""
    rows = len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)
    try:
        each = [reference.predict(_row(inputs, row)) for row in range(rows)]
    except ModelServeError:
        return None
    if any(array.shape[:1] != (1,) for outputs in each for array in outputs.values()):
        return None
    return {name: np.concatenate([outputs[name] for outputs in each]) for name in each[0]}


def _row(inputs: Inputs, row: int) -> Inputs:
    if isinstance(inputs, Mapping):
        return {name: array[row : row + 1] for name, array in inputs.items()}
    return inputs[row : row + 1]


# The evaluator is numpy and Python: a convolution over a large image takes minutes, and so does widening a large model.
# Larger models and inputs are calibrated without it.
_MAX_WEIGHTS = 64 * 2**20
_MAX_INPUT_ELEMENTS = 10**6


def run_in_float64(artifact: Artifact, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]] | None:
    """Return the outputs of `artifact` with every float32 of the graph, weights and inputs included, as float64.

    None if the evaluator does not support it: operators of another domain, values that are not tensors, weights in
    other files or above 64 MiB, inputs of more than a million elements.
    """
    if artifact.external or artifact.initializer_bytes > _MAX_WEIGHTS:
        return None
    if sum(array.size for array in feed.values()) > _MAX_INPUT_ELEMENTS:
        return None
    from onnx.reference import ReferenceEvaluator

    # Outside the `try`: a changed file, or a bug of this package, must not look like an unsupported operator.
    model = convert_to_float64(load_model(artifact))
    wide = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in feed.items()}
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            outputs = ReferenceEvaluator(model).run(None, wide)
    except Exception:  # whatever the Python code of an operator raises
        return None
    names = [spec.name for spec in artifact.signature.outputs]
    return {name: np.asarray(value) for name, value in zip(names, outputs, strict=True)}


def convert_to_float64(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `model` with float32 replaced by float64 in tensors, declarations, casts and subgraphs."""
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
        for graph in subgraphs(node):
            _widen_graph(graph)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
