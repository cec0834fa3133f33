"""Which nodes a model can least afford to have quantised."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from pytest_modelserve._onnx.graph import float_dtypes, name_nodes
from pytest_modelserve.artifacts import Artifact, save_artifact
from pytest_modelserve.artifacts.artifact import loaded
from pytest_modelserve.compression.calibration import (
    MIN_MAX,
    Batch,
    Calibration,
    CalibrationMethod,
    Ranging,
    calibration_of,
    measured_ranges,
    ranging_of,
)
from pytest_modelserve.compression.compress import RECIPES
from pytest_modelserve.compression.quantization import calm, quantizer_failed
from pytest_modelserve.compression.recipe import Material, Recipe
from pytest_modelserve.compression.static_quantization import INT8_STATIC, opened
from pytest_modelserve.errors import RecipeError, UsageError, unknown_choice
from pytest_modelserve.metrics.signal_quality import worst_sqnr_db
from pytest_modelserve.progress import progress
from pytest_modelserve.serving import serve

if TYPE_CHECKING:
    import onnx


# A model of which one node is quantised and all others are as they were.


Nodes = Sequence["onnx.NodeProto"]
QuantisedAlone = Callable[[str], "onnx.ModelProto"]


def can_treat_alone(recipe: Recipe) -> bool:
    """Whether `alone` takes `recipe`."""
    return bool(recipe.layers) or recipe is INT8_STATIC


def alone(
    artifact: Artifact, recipe: Recipe, rows: Calibration, ranging: Ranging, folder: Path
) -> tuple[Nodes, QuantisedAlone]:
    """The nodes that `recipe` may treat, and what gives the model with the one of a name quantised.

    That one raises RecipeError for a node that cannot be treated alone, or stays as it is. `folder` holds files
    meanwhile.
    """
    source = loaded(artifact)
    return _static(source, rows, ranging, folder) if recipe is INT8_STATIC else _weights(source, recipe, rows, folder)


def _static(source: onnx.ModelProto, rows: Calibration, ranging: Ranging, folder: Path) -> tuple[Nodes, QuantisedAlone]:
    """Ranges do not depend on which nodes are quantised: they are measured once."""
    ready = opened(source, folder)
    ranges = measured_ranges(ready.activations, rows.batches, ranging)

    def quantised(name: str) -> onnx.ModelProto:
        try:
            with calm():
                model = ready.quantizer.quantised(ranges, only=(name,))
        except Exception as error:
            raise quantizer_failed(error) from error
        if not any(node.op_type == "DequantizeLinear" for node in model.graph.node):
            raise RecipeError(f"{name!r} alone stays in float")
        return model

    return ready.treated, quantised


def _weights(source: onnx.ModelProto, recipe: Recipe, rows: Calibration, folder: Path) -> tuple[Nodes, QuantisedAlone]:
    weights = float_dtypes(source).keys()
    nodes = [n for n in source.graph.node if n.op_type in recipe.layers and not weights.isdisjoint(n.input)]
    name_nodes(nodes)
    inputs = next(rows.batches())

    def quantised(name: str) -> onnx.ModelProto:
        copy = type(source)()
        copy.CopyFrom(source)
        with TemporaryDirectory(dir=folder) as work:
            return recipe.apply(copy, Material(inputs, Path(work), rows.batches, only=(name,))).model

    return nodes, quantised


LAYERED = tuple(name for name, each in RECIPES.items() if can_treat_alone(each))
"""The recipes that can treat one node alone."""


@dataclass(frozen=True, slots=True)
class LayerDamage:
    """What quantising one node alone does to the outputs: `sqnr_db` is that of the worst output, in decibels."""

    node: str
    operator: str
    sqnr_db: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """`damages`, the worst first, of the `tried` nodes among all `layers` that the recipe may treat."""

    damages: tuple[LayerDamage, ...]
    tried: int
    layers: int


def sensitivity(
    artifact: Artifact,
    recipe: str,
    inputs: Batch,
    *,
    calibration_method: CalibrationMethod = "min-max",
    percentile: float | None = None,
) -> tuple[LayerDamage, ...]:
    """The nodes of `artifact` by the damage that `recipe` does by each of them alone, the most damaging first.

    For each node of the main graph that the recipe treats, the model is quantised in that node only and answers
    `inputs`, one array or a mapping from input names to arrays. "int8-dynamic" and "int4-weights" treat what has
    constant weights: MatMul, Gemm, LSTM. "int8-static" also treats what has none, as Add and Softmax, which is where it
    goes wrong most; its ranges are measured once, on `inputs`, as `calibration_method` and `percentile` say (see
    `compress`). The damage is the signal-to-quantization-noise ratio of the floating outputs against those of
    `artifact`: inf for none at all, -inf where an output became NaN or infinite. A node that alone stays as it is, as a
    Reshape, is left out. One run of the recipe and of the model for each node; nothing is stored.

    Two nodes that round the same value each do its damage: neither is to be excluded without the other.

    UsageError for another recipe and for a calibration method that it does not take, RecipeError for inputs that do not
    fit and where no node can be quantised.
    """
    ranking = rank_layers(artifact, recipe, inputs, calibration_method=calibration_method, percentile=percentile)
    return ranking.damages


def rank_layers(
    artifact: Artifact,
    recipe: str,
    inputs: Batch,
    *,
    calibration_method: CalibrationMethod = "min-max",
    percentile: float | None = None,
    time_limit_s: float = math.inf,
) -> Ranking:
    """What `sensitivity` returns, and of how many nodes: none is begun after `time_limit_s`, but one always is."""
    if recipe not in LAYERED:
        raise UsageError(unknown_choice("recipe of single layers", recipe, LAYERED))
    ranging = ranging_of(calibration_method, percentile)
    if ranging != MIN_MAX and not RECIPES[recipe].calibrates:
        raise UsageError(f"calibration_method={ranging.method!r} is given, and {recipe!r} takes none: leave it out")
    deadline = time.monotonic() + time_limit_s
    problem, tried = None, 0
    found: list[LayerDamage] = []
    with (
        calibration_of(inputs, artifact.signature, what="inputs=") as rows,
        serve(artifact) as reference,
        TemporaryDirectory() as work,
    ):
        expected = reference.predict(inputs)
        nodes, quantised_alone = alone(artifact, RECIPES[recipe], rows, ranging, Path(work))
        for node in progress(nodes, f"{recipe} of {artifact.subject}, node by node", total=len(nodes)):
            if tried and time.monotonic() > deadline:
                break
            tried += 1
            try:
                answers = _answers(quantised_alone(node.name), inputs, Path(work) / "alone.onnx")
            except RecipeError as error:
                problem = error
            else:
                found.append(LayerDamage(node.name, node.op_type, worst_sqnr_db(answers, expected)))
    if not found:
        raise RecipeError(f"no layer of {artifact.subject} can be quantised by {recipe!r}: {problem or 'it has none'}")
    return Ranking(tuple(sorted(found, key=lambda damage: damage.sqnr_db)), tried, len(nodes))


def _answers(quantised: onnx.ModelProto, inputs: Batch, path: Path) -> Mapping[str, NDArray[Any]]:
    result = save_artifact(quantised, path, name="alone", variant="", lineage=())
    with serve(result) as candidate:
        return candidate.predict(inputs)
