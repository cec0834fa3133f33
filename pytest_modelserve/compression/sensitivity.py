"""Which layers a model can least afford to have quantised."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Artifact, save_artifact
from pytest_modelserve.compression.calibration import Batch, Calibration, calibration_of
from pytest_modelserve.compression.census import float_arrays
from pytest_modelserve.compression.compress import RECIPES, loaded
from pytest_modelserve.compression.naming import name_nodes
from pytest_modelserve.compression.recipe import Material, Recipe
from pytest_modelserve.errors import RecipeError, UsageError, unknown_choice
from pytest_modelserve.numerics import signal_to_quantization_noise_db
from pytest_modelserve.progress import progress
from pytest_modelserve.serving import serve

if TYPE_CHECKING:
    import onnx

LAYERED = tuple(name for name, each in RECIPES.items() if each.layers)
"""The recipes that can treat one layer alone."""


@dataclass(frozen=True, slots=True)
class LayerDamage:
    """What quantising one layer alone does to the outputs: `sqnr_db` is that of the worst output, in decibels."""

    node: str
    operator: str
    sqnr_db: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """`damages`, the worst first, of the `tried` layers among all `layers` that the recipe treats."""

    damages: tuple[LayerDamage, ...]
    tried: int
    layers: int


def sensitivity(artifact: Artifact, recipe: str, inputs: Batch) -> tuple[LayerDamage, ...]:
    """The layers of `artifact` by the damage that `recipe` does by each of them alone, the most damaging first.

    For every MatMul, Gemm, Conv, ConvTranspose and LSTM of the main graph with constant weights that the recipe treats
    ("int8-dynamic", "int8-static" or "int4-weights"), the model is quantised in that layer only and answers `inputs`,
    one array or a mapping from input names to arrays; "int8-static" takes its ranges from them, too. The damage is the
    signal-to-quantization-noise ratio of the floating outputs against those of `artifact`: inf for none at all, -inf
    where an output became NaN or infinite. A layer that cannot be quantised alone is left out. One run of the recipe
    and of the model for each layer; nothing is stored.

    UsageError for another recipe, RecipeError for inputs that do not fit and where no layer can be quantised.
    """
    return rank_layers(artifact, recipe, inputs).damages


def rank_layers(artifact: Artifact, recipe: str, inputs: Batch, *, time_limit_s: float = math.inf) -> Ranking:
    """What `sensitivity` returns, and of how many layers: none is begun after `time_limit_s`, but one always is."""
    if recipe not in LAYERED:
        raise UsageError(unknown_choice("recipe of single layers", recipe, LAYERED))
    deadline = time.monotonic() + time_limit_s
    source = loaded(artifact)
    layers = _layers(source, RECIPES[recipe])
    name_nodes(layers)
    with calibration_of(inputs, artifact.signature) as rows, serve(artifact) as reference:
        expected = reference.predict(inputs)
        found: list[LayerDamage] = []
        problem, tried = None, 0
        for layer in progress(layers, f"{recipe} of {artifact.subject}, layer by layer", total=len(layers)):
            if tried and time.monotonic() > deadline:
                break
            tried += 1
            try:
                answers = _answers(source, RECIPES[recipe], layer.name, inputs, rows)
            except RecipeError as error:
                problem = error
            else:
                found.append(LayerDamage(layer.name, layer.op_type, _worst(answers, expected)))
    if not found:
        raise RecipeError(f"no layer of {artifact.subject} can be quantised by {recipe!r}: {problem or 'it has none'}")
    return Ranking(tuple(sorted(found, key=lambda damage: damage.sqnr_db)), tried, len(layers))


def _layers(model: onnx.ModelProto, recipe: Recipe) -> list[onnx.NodeProto]:
    weights = {name for name, _ in float_arrays(model)}
    return [node for node in model.graph.node if node.op_type in recipe.layers and weights.intersection(node.input)]


def _answers(
    source: onnx.ModelProto, recipe: Recipe, layer: str, inputs: Batch, rows: Calibration
) -> Mapping[str, NDArray[Any]]:
    copy = type(source)()
    copy.CopyFrom(source)
    with TemporaryDirectory() as work:
        material = Material(next(rows.batches()), Path(work), rows.batches, only=(layer,))
        quantised = recipe.apply(copy, material).model
        result = save_artifact(quantised, Path(work) / "layer.onnx", name=layer, variant=recipe.name, lineage=())
        with serve(result) as candidate:
            return candidate.predict(inputs)


def _worst(answers: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> float:
    return min(_ratios(answers, expected), default=np.inf)


def _ratios(answers: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> Iterator[float]:
    for name, reference in expected.items():
        if reference.dtype.kind == "f":
            finite = np.isfinite(answers[name]).all() or not np.isfinite(reference).all()
            yield signal_to_quantization_noise_db(answers[name], reference) if finite else -np.inf
