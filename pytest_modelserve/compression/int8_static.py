"""`int8-static`: weights and the values between layers in 8 bits, with ranges measured on calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pytest_modelserve.compression.activations import Activations, quantised_operators
from pytest_modelserve.compression.census import float_arrays, nodes_of
from pytest_modelserve.compression.quantising import (
    STANDARD,
    calm,
    growth,
    left_in_float,
    nothing_to_quantise,
    refuse_unfit,
    write_large,
)
from pytest_modelserve.compression.ranges import Range, measured_ranges
from pytest_modelserve.compression.recipe import Applied, Material, Recipe
from pytest_modelserve.errors import RecipeError

if TYPE_CHECKING:
    import onnx
    from onnxruntime.quantization.calibrate import TensorsData


def _apply(model: onnx.ModelProto, material: Material) -> Applied:
    refuse_unfit(model, form="int8")
    _refuse_own_operators(model)
    quantised = _quantised(model, material)
    _refuse_unchanged(model, quantised, material.exclude)
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
    path = material.folder / "before.onnx"
    is_large = write_large(model, path)
    ranges: dict[str, Range] = {}
    try:
        with calm():
            ranges = measured_ranges(Activations(path, is_large=is_large), material.batches, material.ranging)
            return _with_ranges(path, ranges, material)
    except RecipeError:
        raise
    except Exception as error:  # the quantizer raises bare ValueErrors, RuntimeErrors and AssertionErrors
        # It does not say which scale it stumbled over.
        found = [*_infinite(model), *(name for name, range_ in ranges.items() if not range_.is_finite)]
        if found:
            raise _endless(found) from error
        raise RecipeError(f"onnxruntime's quantizer failed: {error}") from error


def _with_ranges(path: Path, ranges: Mapping[str, Range], material: Material) -> onnx.ModelProto:
    """QDQ with a scale for each channel of a weight: what onnxruntime's `quantize_static` does once it has ranges.

    It measures them itself, keeping what it sees of every batch until the last; only its latest versions can be given
    some instead.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    quantizer = QDQQuantizer(
        load_model_with_shape_infer(path),
        True,  # a scale for each channel
        False,  # weights in all 8 bits
        QuantType.QInt8,
        QuantType.QInt8,
        _tensors_data(ranges),
        list(material.only),
        list(material.exclude),
        quantised_operators(),
        {},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantised: onnx.ModelProto = quantizer.model.model
    return quantised


def _tensors_data(ranges: Mapping[str, Range]) -> TensorsData:
    """`ranges` for the quantizer; one with NaN as endless, so that its scale shows whether the value is used at all."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

    endless = Range(np.float32(-np.inf), np.float32(np.inf))
    usable = {name: found if found.is_finite else endless for name, found in ranges.items()}
    told = {name: TensorData(lowest=found.low, highest=found.high) for name, found in usable.items()}
    return TensorsData(CalibrationMethod.MinMax, told)


def _infinite(model: onnx.ModelProto) -> Iterator[str]:
    return (name for name, array in float_arrays(model) if not np.isfinite(array).all())


def _endless(names: list[str]) -> RecipeError:
    return RecipeError(
        f"no int8 scale for {', '.join(map(repr, names))}: NaN or infinite on the calibration data, as behind a mask "
        "of -inf: name the nodes that give or read it in exclude=, or use 'int8-dynamic', which leaves masks in float"
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
    layers=("Conv", "ConvTranspose", "Gemm", "MatMul"),
    excludable=_excludable,
)
