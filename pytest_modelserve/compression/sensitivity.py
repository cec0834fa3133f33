"""Sensitivity of a model's outputs to the quantization of single nodes."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from pytest_modelserve.artifacts import Artifact, as_artifact, load_with_weights, save_artifact
from pytest_modelserve.compression.calibration import (
    MIN_MAX,
    Batch,
    CalibrationMethod,
    open_calibration,
    parse_range_method,
)
from pytest_modelserve.compression.compress import RECIPES
from pytest_modelserve.compression.recipe import LayerSensitivity, RecipeContext
from pytest_modelserve.errors import RecipeError, UsageError, unknown_choice
from pytest_modelserve.metrics.output_quality import worst_sqnr_db
from pytest_modelserve.progress import progress
from pytest_modelserve.serving import serve

if TYPE_CHECKING:
    import onnx

SENSITIVITY_RECIPES = tuple(name for name, recipe in RECIPES.items() if recipe.has_sensitivity)
"""The recipes that can convert one node alone."""


def sensitivity(
    artifact: Artifact | str | os.PathLike[str],
    recipe: str,
    inputs: Batch,
    *,
    calibration_method: CalibrationMethod = "min-max",
    percentile: float | None = None,
) -> tuple[LayerSensitivity, ...]:
    """Rank the nodes of `artifact` by the effect of quantizing each alone, the worst first.

    For each convertible node of the main graph, the model is quantized in that node only and run on `inputs`.
    "int8-dynamic" and "int4-weights" convert nodes with constant weights: MatMul, Gemm, LSTM. "int8-static" also
    converts nodes without, such as Add and Softmax, which often cause most of the error. Nodes that stay in float, such
    as Reshape, are left out. Two nodes that round the same value both show its effect: exclude both or neither. Nothing
    is stored.

    Args:
        artifact: The unquantized model, or the path of its ONNX file.
        recipe: "int8-dynamic", "int8-static" or "int4-weights".
        inputs: Representative inputs: one array, or a mapping from input names to arrays. Also the calibration data of
            "int8-static".
        calibration_method: See `compress`.
        percentile: See `compress`.

    Returns:
        One `LayerSensitivity` a node. `sqnr_db` is the signal-to-quantization-noise ratio of the worst floating output
        in dB: inf for no change, -inf where an output became NaN or infinite.

    Raises:
        UsageError: Another recipe, or a calibration method that the recipe does not take.
        RecipeError: The inputs do not fit, or no node can be quantized.

    Example:
        >>> ranking = sensitivity(artifact, "int8-static", rows)  # doctest: +SKIP
        >>> compress(artifact, "int8-static", calibration=rows, exclude=ranking[:2], store=store)  # doctest: +SKIP
    """
    return rank_layers(
        as_artifact(artifact), recipe, inputs, calibration_method=calibration_method, percentile=percentile
    ).ranked


@dataclass(frozen=True, slots=True)
class SensitivityRanking:
    """Sensitivities, the worst first, of the first `evaluated` of all `total` convertible nodes."""

    ranked: tuple[LayerSensitivity, ...]
    evaluated: int
    total: int


def rank_layers(
    artifact: Artifact,
    recipe: str,
    inputs: Batch,
    *,
    calibration_method: CalibrationMethod = "min-max",
    percentile: float | None = None,
    time_limit_s: float = math.inf,
) -> SensitivityRanking:
    """Compute `sensitivity` within a time limit; at least one node is evaluated."""
    if recipe not in SENSITIVITY_RECIPES:
        raise UsageError(unknown_choice("recipe of single layers", recipe, SENSITIVITY_RECIPES))
    method = parse_range_method(calibration_method, percentile)
    if method != MIN_MAX and not RECIPES[recipe].calibrates:
        raise UsageError(f"calibration_method={method.method!r} does not apply to {recipe!r}: remove it")
    deadline = time.monotonic() + time_limit_s
    problem, evaluated = None, 0
    found: list[LayerSensitivity] = []
    with (
        open_calibration(inputs, artifact.signature, what="inputs=") as calibration,
        serve(artifact) as reference,
        TemporaryDirectory() as work,
    ):
        expected = reference.predict(inputs)
        folder = Path(work)
        context = RecipeContext(next(calibration.batches()), folder, calibration.batches, range_method=method)
        nodes, quantize = RECIPES[recipe].single_nodes(load_with_weights(artifact), context)
        for node in progress(nodes, f"{recipe} of {artifact.subject}, node by node", total=len(nodes)):
            if evaluated and time.monotonic() > deadline:
                break
            evaluated += 1
            try:
                outputs = _outputs(quantize(node.name), inputs, folder / "single.onnx")
            except RecipeError as error:
                problem = error
            else:
                found.append(LayerSensitivity(node.name, node.op_type, worst_sqnr_db(outputs, expected)))
    if not found:
        raise RecipeError(f"no layer of {artifact.subject} can be quantized by {recipe!r}: {problem or 'it has none'}")
    return SensitivityRanking(tuple(sorted(found, key=lambda layer: layer.sqnr_db)), evaluated, len(nodes))


def _outputs(quantized: onnx.ModelProto, inputs: Batch, path: Path) -> Mapping[str, NDArray[Any]]:
    result = save_artifact(quantized, path, name="single", variant="", lineage=())
    with serve(result) as candidate:
        return candidate.predict(inputs)
