"""A reference's answers once more, computed another way: as far as they differ, its own digits are rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import ModelServeError, UsageError
from pytest_modelserve.serving.predictor import Inputs, Predictor
from pytest_modelserve.serving.torch_predictor import TorchPredictor

if TYPE_CHECKING:
    from pytest_modelserve.serving.onnx_predictor import OnnxPredictor

Answers = dict[str, NDArray[Any]]
Rerun = Callable[[Inputs], Answers | None]
"""The outputs of a second run, or None where the model cannot be run that way."""


def reruns_of(reference: Predictor) -> dict[str, Rerun]:
    """The ways to run `reference` once more, by what they are called.

    A torch module: a copy of it "in float64", with float inputs cast. An ONNX file: "in float64" by onnx's reference
    evaluator; "without graph optimisations"; and "row by row", which takes other kernels, sums in another order, and
    shows whether rows influence each other. UsageError for what cannot be run another way.
    """
    if isinstance(reference, TorchPredictor):
        return {"in float64": lambda inputs: _in_float64(reference, inputs)}
    if reference.transport == "in-process" and reference.artifact is not None:
        from pytest_modelserve.serving.onnx_predictor import OnnxPredictor

        if isinstance(reference, OnnxPredictor):
            onnx_reference = reference
            return {
                "in float64": lambda inputs: _evaluated(onnx_reference, inputs),
                "without graph optimisations": lambda inputs: _unoptimised(onnx_reference, inputs),
                "row by row": lambda inputs: _row_by_row(onnx_reference, inputs),
            }
    raise UsageError(
        f"{reference.describe()} cannot be run another way to learn how far its own rounding reaches: give both rtol "
        "and atol"
    )


def _in_float64(reference: TorchPredictor, inputs: Inputs) -> Answers:
    try:
        return reference.in_float64().predict(_as_float64(inputs))
    except Exception as error:  # the module's own code
        raise UsageError(
            f"{reference.subject} does not run in float64, which would tell how far its own rounding reaches "
            f"({type(error).__name__}: {error}): give both rtol and atol"
        ) from error


def _as_float64(inputs: Inputs) -> Inputs:
    if isinstance(inputs, Mapping):
        return {name: _widened(array) for name, array in inputs.items()}
    return _widened(inputs)


def _widened(array: NDArray[Any]) -> NDArray[Any]:
    is_float = isinstance(array, np.ndarray) and array.dtype.kind == "f"
    return array.astype(np.float64) if is_float else array


def _evaluated(reference: OnnxPredictor, inputs: Inputs) -> Answers | None:
    from pytest_modelserve.serving.float64 import float64_answers

    signature = reference.artifact.signature
    if not all(spec.is_tensor for spec in (*signature.inputs, *signature.outputs)):
        return None
    feed = inputs if isinstance(inputs, Mapping) else {signature.inputs[0].name: inputs}
    return float64_answers(reference.artifact, feed)


def _unoptimised(reference: OnnxPredictor, inputs: Inputs) -> Answers:
    with reference.unoptimised() as plain:
        return plain.predict(inputs)


def _row_by_row(reference: OnnxPredictor, inputs: Inputs) -> Answers | None:
    """The answers to single rows put together; None for a model of a fixed batch, or whose outputs have no row axis."""
    rows = len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)
    try:
        each = [reference.predict(_row(inputs, row)) for row in range(rows)]
    except ModelServeError:
        return None
    if any(array.shape[:1] != (1,) for answer in each for array in answer.values()):
        return None
    return {name: np.concatenate([answer[name] for answer in each]) for name in each[0]}


def _row(inputs: Inputs, row: int) -> Inputs:
    if isinstance(inputs, Mapping):
        return {name: array[row : row + 1] for name, array in inputs.items()}
    return inputs[row : row + 1]
