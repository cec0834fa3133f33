"""`int8-static`: weights and the values between layers in 8 bits, with ranges measured on calibration data."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pytest_modelserve.compression.activations import Activations, quantised_operators
from pytest_modelserve.compression.census import STANDARD, float_arrays, float_dtypes, nodes_of
from pytest_modelserve.compression.exclusion import nodes_around
from pytest_modelserve.compression.files import write_large
from pytest_modelserve.compression.naming import name_nodes
from pytest_modelserve.compression.qdq import Quantizer
from pytest_modelserve.compression.quantising import (
    calm,
    growth,
    left_in_float,
    nothing_to_quantise,
    quantizer_failed,
    refuse_unfit,
)
from pytest_modelserve.compression.ranges import Range, narrowed_ranges, seen_ranges
from pytest_modelserve.compression.recipe import Applied, Material, Recipe
from pytest_modelserve.compression.surviving import Measured, refuse_broken
from pytest_modelserve.errors import RecipeError

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A model that int8 may take: `treated` are its nodes that have an int8 form, each with a name."""

    activations: Activations
    quantizer: Quantizer
    treated: tuple[onnx.NodeProto, ...]


def opened(model: onnx.ModelProto, folder: Path) -> Opened:
    """`model` made ready to be quantised, as often as wanted; it is written to `folder`. RecipeError if it is unfit."""
    refuse_unfit(model, form="int8")
    _refuse_own_operators(model)
    treated = tuple(_excludable(model))
    name_nodes(treated)
    path = folder / "before.onnx"
    is_large = write_large(model, path)
    try:
        with calm():
            return Opened(Activations(path, is_large=is_large), Quantizer(path), treated)
    except Exception as error:
        raise quantizer_failed(error) from error


def _apply(model: onnx.ModelProto, material: Material) -> Applied:
    ready = opened(model, material.folder)
    ranges = _ranges(model, ready, material)
    quantised = _quantised(model, ready, ranges, material)
    refuse_broken(quantised, Measured(ready.activations, ranges, ready.treated), material)
    return Applied(quantised, (*left_in_float(quantised), *growth(model, quantised)))


def _ranges(model: onnx.ModelProto, ready: Opened, material: Material) -> dict[str, Range]:
    seen = seen_ranges(ready.activations, material.batches, material.ranging)
    if material.ranging.method == "entropy" and not all(range_.is_finite for range_ in seen.values()):
        _quantised(model, ready, seen, material)  # what is refused for them is refused before the search for others
    return narrowed_ranges(seen, ready.activations, material.batches, material.ranging)


def _refuse_own_operators(model: onnx.ModelProto) -> None:
    """The quantizer infers no type behind an operator that onnx does not know, and skips in silence what has none."""
    own = sorted({node.op_type for node in nodes_of(model.graph) if node.domain not in STANDARD})
    if own:
        raise RecipeError(
            f"the model holds operators outside the ONNX standard ({', '.join(own)}), behind which no range can be "
            "measured: quantise first, and use 'optimize' afterwards"
        )


def _quantised(
    model: onnx.ModelProto, ready: Opened, ranges: Mapping[str, Range], material: Material
) -> onnx.ModelProto:
    """RecipeError where nothing was quantised, and where a scale is infinite."""
    try:
        with calm():
            quantised = ready.quantizer.quantised(ranges, exclude=material.exclude)
    except Exception as error:
        # It does not say which scale it stumbled over.
        found = [*_infinite(model), *(name for name, range_ in ranges.items() if not range_.is_finite)]
        raise (_endless(found, ready.treated, material.exclude) if found else quantizer_failed(error)) from error
    _refuse_unchanged(model, quantised, material.exclude)
    made = float_dtypes(quantised).keys() - float_dtypes(model).keys()
    endless = [name.removesuffix("_scale") for name in _infinite(quantised, made)]
    if endless:
        # The scale of a bias is made of two others.
        values = [name for name in endless if not name.endswith("_quantized")] or endless
        raise _endless(values, ready.treated, material.exclude)
    return quantised


def _infinite(model: onnx.ModelProto, names: Container[str] | None = None) -> Iterator[str]:
    return (name for name, array in float_arrays(model, names) if not np.isfinite(array).all())


def _endless(names: list[str], treated: Iterable[onnx.NodeProto], excluded: Iterable[str]) -> RecipeError:
    nodes = tuple(sorted({*excluded, *nodes_around(names, treated)}))
    return RecipeError(
        f"no int8 scale for {', '.join(map(repr, names))}: NaN or infinite on the calibration data, as behind a mask "
        f"of -inf; exclude={nodes!r} leaves the nodes that give or read such values in float; a mask of -30 has a "
        "scale; 'int8-dynamic' rounds no mask"
    )


def _refuse_unchanged(model: onnx.ModelProto, quantised: onnx.ModelProto, exclude: tuple[str, ...]) -> None:
    stored = {tensor.name for tensor in quantised.graph.initializer}
    if not any(node.op_type == "DequantizeLinear" and node.input[0] in stored for node in quantised.graph.node):
        raise nothing_to_quantise("operator", model, exclude)


def _excludable(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    operators = set(quantised_operators())
    return [node for node in model.graph.node if node.op_type in operators]


INT8_STATIC = Recipe(
    "int8-static",
    _apply,
    packages=("onnxruntime", "onnx"),
    is_exact=False,
    calibrates=True,
    excludable=_excludable,
)
