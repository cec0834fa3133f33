"""`int8-static`: weights and the values between layers in 8 bits, with ranges measured on calibration data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from pytest_modelserve.compression.census import float_arrays, nodes_of
from pytest_modelserve.compression.quantising import (
    STANDARD,
    calm,
    growth,
    left_in_float,
    refuse_unfit,
    told_counts,
    write_large,
)
from pytest_modelserve.compression.ranges import Reader, endless_ranges
from pytest_modelserve.compression.recipe import Applied, Material, Recipe
from pytest_modelserve.errors import RecipeError

if TYPE_CHECKING:
    import onnx


def _apply(model: onnx.ModelProto, material: Material) -> Applied:
    refuse_unfit(model, form="int8")
    _refuse_own_operators(model)
    quantised = _quantised(model, material)
    _refuse_unchanged(model, quantised)
    floats = {name for name, _ in float_arrays(model)}
    endless = [name.removesuffix("_scale") for name in _infinite(quantised) if name not in floats]
    if endless:
        # The scale of a bias is made of two others.
        raise _endless([name for name in endless if not name.endswith("_quantized")] or endless)
    return Applied(quantised, (*left_in_float(quantised), *growth(model, quantised)))


def _refuse_own_operators(model: onnx.ModelProto) -> None:
    """The quantizer infers no type behind an operator that onnx does not know, and skips in silence what has none."""
    own = sorted({node.op_type for node in nodes_of(model.graph) if node.domain not in STANDARD})
    if own:
        raise RecipeError(
            f"the model holds operators outside the ONNX standard ({', '.join(own)}), behind which no range can be "
            "measured: quantise first, and use 'optimize' afterwards"
        )


def _quantised(model: onnx.ModelProto, material: Material) -> onnx.ModelProto:
    """QDQ with a scale for each channel of a weight, and min-max ranges: onnxruntime's default but for the channels."""
    import onnx
    from onnxruntime.quantization import quantize_static

    before, after = material.folder / "before.onnx", material.folder / "after.onnx"
    is_large = write_large(model, before)
    try:
        with calm():
            quantize_static(
                before,
                after,
                Reader(material.batches()),
                per_channel=True,
                nodes_to_quantize=list(material.only),
                use_external_data_format=is_large,
            )
    except Exception as error:  # the quantizer raises bare ValueErrors, RuntimeErrors and AssertionErrors
        # It does not say which scale it stumbled over.
        found = [*_infinite(model), *endless_ranges(before, material.batches())]
        if found:
            raise _endless(found) from error
        raise RecipeError(f"onnxruntime's quantizer failed: {error}") from error
    return onnx.load(after)


def _infinite(model: onnx.ModelProto) -> Iterator[str]:
    return (name for name, array in float_arrays(model) if not np.isfinite(array).all())


def _endless(names: list[str]) -> RecipeError:
    return RecipeError(
        f"no int8 scale for {', '.join(map(repr, names))}: NaN or infinite on the calibration data, as behind a mask "
        "of -inf; 'int8-dynamic' leaves masks in float"
    )


def _refuse_unchanged(model: onnx.ModelProto, quantised: onnx.ModelProto) -> None:
    stored = {tensor.name for tensor in quantised.graph.initializer}
    if not any(node.op_type == "DequantizeLinear" and node.input[0] in stored for node in quantised.graph.node):
        raise RecipeError(
            f"there is nothing to quantise: no operator with constant float32 weights among {told_counts(model)}"
        )


INT8_STATIC = Recipe(
    "int8-static",
    _apply,
    packages=("onnxruntime", "onnx"),
    is_exact=False,
    calibrates=True,
    layers=("Conv", "ConvTranspose", "Gemm", "MatMul"),
)
