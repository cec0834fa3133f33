"""Which nodes a model can least afford to have quantized."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from pytest_modelserve._onnx.graph import name_nodes, weight_dtypes
from pytest_modelserve.artifacts import Artifact, save_artifact
from pytest_modelserve.artifacts.artifact import load_with_weights
from pytest_modelserve.compression.calibration import (
    MIN_MAX,
    Batch,
    Calibration,
    CalibrationMethod,
    RangeMethod,
    measure_ranges,
    open_calibration,
    range_method,
)
from pytest_modelserve.compression.compress import RECIPES
from pytest_modelserve.compression.quantization import quantizer_error, quiet_quantizer
from pytest_modelserve.compression.recipe import Recipe, RecipeContext
from pytest_modelserve.compression.static_quantization import INT8_STATIC, prepare_model
from pytest_modelserve.errors import RecipeError, UsageError, unknown_choice
from pytest_modelserve.metrics.signal_quality import worst_sqnr_db
from pytest_modelserve.progress import progress
from pytest_modelserve.serving import serve

if TYPE_CHECKING:
    import onnx


# A model of which one node is quantized and all others are as they were.


Nodes = Sequence["onnx.NodeProto"]
SingleNodeQuantizer = Callable[[str], "onnx.ModelProto"]


def can_treat_alone(recipe: Recipe) -> bool:
    """Whether `alone` takes `recipe`."""
    return bool(recipe.layers) or recipe is INT8_STATIC


def single_node_quantizer(
    artifact: Artifact, recipe: Recipe, rows: Calibration, ranging: RangeMethod, folder: Path
) -> tuple[Nodes, SingleNodeQuantizer]:
    """The nodes that `recipe` may treat, and what gives the model with the one of a name quantized.

    That one raises RecipeError for a node that cannot be treated alone, or stays as it is. `folder` holds files
    meanwhile.
    """
    source = load_with_weights(artifact)
    return _static(source, rows, ranging, folder) if recipe is INT8_STATIC else _weights(source, recipe, rows, folder)


def _static(
    source: onnx.ModelProto, rows: Calibration, ranging: RangeMethod, folder: Path
) -> tuple[Nodes, SingleNodeQuantizer]:
    """Ranges do not depend on which nodes are quantized: they are measured once."""
    ready = prepare_model(source, folder)
    ranges = measure_ranges(ready.activations, rows.batches, ranging)

    def quantized(name: str) -> onnx.ModelProto:
        try:
            with quiet_quantizer():
                model = ready.quantizer.quantized(ranges, only=(name,))
        except Exception as error:
            raise quantizer_error(error) from error
        if not any(node.op_type == "DequantizeLinear" for node in model.graph.node):
            raise RecipeError(f"{name!r} alone stays in float")
        return model

    return ready.treated, quantized


def _weights(
    source: onnx.ModelProto, recipe: Recipe, rows: Calibration, folder: Path
) -> tuple[Nodes, SingleNodeQuantizer]:
    weights = weight_dtypes(source).keys()
    nodes = [n for n in source.graph.node if n.op_type in recipe.layers and not weights.isdisjoint(n.input)]
    name_nodes(nodes)
    inputs = next(rows.batches())

    def quantized(name: str) -> onnx.ModelProto:
        copy = type(source)()
        copy.CopyFrom(source)
        with TemporaryDirectory(dir=folder) as work:
            return recipe.apply(copy, RecipeContext(inputs, Path(work), rows.batches, only=(name,))).model

    return nodes, quantized


SENSITIVITY_RECIPES = tuple(name for name, each in RECIPES.items() if can_treat_alone(each))
"""The recipes that can treat one node alone."""


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """What quantizing one node alone does to the outputs: `sqnr_db` is that of the worst output, in decibels."""

    node: str
    operator: str
    sqnr_db: float


@dataclass(frozen=True, slots=True)
class SensitivityRanking:
    """`damages`, the worst first, of the `tried` nodes among all `layers` that the recipe may treat."""

    ranked: tuple[LayerSensitivity, ...]
    evaluated: int
    total: int


def sensitivity(
    artifact: Artifact,
    recipe: str,
    inputs: Batch,
    *,
    calibration_method: CalibrationMethod = "min-max",
    percentile: float | None = None,
) -> tuple[LayerSensitivity, ...]:
    """The nodes of `artifact` by the damage that `recipe` does by each of them alone, the most damaging first.

    For each node of the main graph that the recipe treats, the model is quantized in that node only and answers
    `inputs`, one array or a mapping from input names to arrays. "int8-dynamic" and "int4-weights" treat what has
    constant weights: MatMul, Gemm, LSTM. "int8-static" also treats what has none, as Add and Softmax, which is where it
    goes wrong most; its ranges are measured once, on `inputs`, as `calibration_method` and `percentile` say (see
    `compress`). The damage is the signal-to-quantization-noise ratio of the floating outputs against those of
    `artifact`: inf for none at all, -inf where an output became NaN or infinite. A node that alone stays as it is, as a
    Reshape, is left out. One run of the recipe and of the model for each node; nothing is stored.

    Two nodes that round the same value each do its damage: neither is to be excluded without the other.

    UsageError for another recipe and for a calibration method that it does not take, RecipeError for inputs that do not
    fit and where no node can be quantized.
    """
    ranking = rank_layers(artifact, recipe, inputs, calibration_method=calibration_method, percentile=percentile)
    return ranking.ranked


def rank_layers(
    artifact: Artifact,
    recipe: str,
    inputs: Batch,
    *,
    calibration_method: CalibrationMethod = "min-max",
    percentile: float | None = None,
    time_limit_s: float = math.inf,
) -> SensitivityRanking:
    """What `sensitivity` returns, and of how many nodes: none is begun after `time_limit_s`, but one always is."""
    if recipe not in SENSITIVITY_RECIPES:
        raise UsageError(unknown_choice("recipe of single layers", recipe, SENSITIVITY_RECIPES))
    ranging = range_method(calibration_method, percentile)
    if ranging != MIN_MAX and not RECIPES[recipe].calibrates:
        raise UsageError(f"calibration_method={ranging.method!r} is given, and {recipe!r} takes none: leave it out")
    deadline = time.monotonic() + time_limit_s
    problem, evaluated = None, 0
    found: list[LayerSensitivity] = []
    with (
        open_calibration(inputs, artifact.signature, what="inputs=") as rows,
        serve(artifact) as reference,
        TemporaryDirectory() as work,
    ):
        expected = reference.predict(inputs)
        nodes, quantized_alone = single_node_quantizer(artifact, RECIPES[recipe], rows, ranging, Path(work))
        for node in progress(nodes, f"{recipe} of {artifact.subject}, node by node", total=len(nodes)):
            if evaluated and time.monotonic() > deadline:
                break
            evaluated += 1
            try:
                answers = _answers(quantized_alone(node.name), inputs, Path(work) / "alone.onnx")
            except RecipeError as error:
                problem = error
            else:
                found.append(LayerSensitivity(node.name, node.op_type, worst_sqnr_db(answers, expected)))
    if not found:
        raise RecipeError(f"no layer of {artifact.subject} can be quantized by {recipe!r}: {problem or 'it has none'}")
    return SensitivityRanking(tuple(sorted(found, key=lambda damage: damage.sqnr_db)), evaluated, len(nodes))


def _answers(quantized: onnx.ModelProto, inputs: Batch, path: Path) -> Mapping[str, NDArray[Any]]:
    result = save_artifact(quantized, path, name="alone", variant="", lineage=())
    with serve(result) as candidate:
        return candidate.predict(inputs)
