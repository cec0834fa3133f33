"""A model of which one node is quantised and all others are as they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pytest_modelserve.artifacts import Artifact
from pytest_modelserve.compression.calibration import Calibration
from pytest_modelserve.compression.census import float_dtypes
from pytest_modelserve.compression.files import loaded
from pytest_modelserve.compression.int8_static import INT8_STATIC, opened
from pytest_modelserve.compression.naming import name_nodes
from pytest_modelserve.compression.quantising import calm, quantizer_failed
from pytest_modelserve.compression.ranges import measured_ranges
from pytest_modelserve.compression.ranging import Ranging
from pytest_modelserve.compression.recipe import Material, Recipe
from pytest_modelserve.errors import RecipeError

if TYPE_CHECKING:
    import onnx

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
