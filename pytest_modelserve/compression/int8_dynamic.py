"""`int8-dynamic`: weights in 8 bits, activations quantised while the model runs, by onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_modelserve.artifacts import fill, light_copy
from pytest_modelserve.compression.census import float_arrays, float_dtypes, node_counts
from pytest_modelserve.compression.quantising import (
    as_products,
    calm,
    growth,
    left_in_float,
    nothing_to_quantise,
    quantizer_failed,
    refuse_unfit,
)
from pytest_modelserve.compression.recipe import Applied, Material, Recipe
from pytest_modelserve.errors import RecipeError

if TYPE_CHECKING:
    import onnx

# onnxruntime 1.32 runs ConvInteger without its fast kernels: a small convolutional network became 8 times slower.
_LEFT = ("Conv",)


def _apply(model: onnx.ModelProto, material: Material) -> Applied:
    refuse_unfit(model, form="int8")
    floats = float_dtypes(model).keys()
    quantised = _quantised(model, material)
    _refuse_unchanged(model, quantised, material.exclude)
    for name, array in float_arrays(quantised, float_dtypes(quantised).keys() - floats):
        if not np.isfinite(array).all():
            raise RecipeError(f"{name!r} came out NaN or infinite: the weights behind it are infinite or too large")
    return Applied(quantised, (*left_in_float(quantised), *growth(model, quantised), *_batch_mates(quantised)))


def _quantised(model: onnx.ModelProto, material: Material) -> onnx.ModelProto:
    try:
        with calm():
            quantizer = _quantizer(model, material)
            quantizer.quantize_model()
            quantizer.model.topological_sort()
    except Exception as error:
        raise quantizer_failed(error) from error
    result: onnx.ModelProto = quantizer.model.model
    return result


def _quantizer(model: onnx.ModelProto, material: Material) -> Any:
    """The quantizer as onnxruntime's `quantize_dynamic` calls it between two files, which take longer than itself."""
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.quant_utils import QuantizationMode, add_infer_metadata, update_opset_version

    inferred = onnx.shape_inference.infer_shapes(light_copy(model))
    fill(inferred, model)
    add_infer_metadata(inferred)
    return ONNXQuantizer(
        update_opset_version(inferred, QuantType.QInt8),
        False,  # one scale for a whole weight
        False,  # weights in all 8 bits
        QuantizationMode.IntegerOps,
        False,  # no ranges beforehand
        QuantType.QInt8,
        QuantType.QUInt8,
        None,
        as_products(material.only),
        as_products(material.exclude),
        _operators(),
        # The type is that of values behind an operator that onnx does not know (FusedGemm), where inference finds none.
        {"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True},
    )


def _refuse_unchanged(model: onnx.ModelProto, quantised: onnx.ModelProto, exclude: tuple[str, ...]) -> None:
    """The quantizer splits every Gemm in two even where it then quantises nothing, so nodes do not tell."""
    import onnx

    eight_bits = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    earlier = {tensor.name for tensor in model.graph.initializer}
    if not any(t.data_type in eight_bits and t.name not in earlier for t in quantised.graph.initializer):
        raise nothing_to_quantise("MatMul, Gemm, LSTM or Gather", model, exclude)


def _batch_mates(quantised: onnx.ModelProto) -> Iterator[str]:
    """What no accuracy on a whole test set shows, and what makes a request irreproducible beside others."""
    if any(op.startswith("DynamicQuantize") for op in node_counts(quantised)):
        yield (
            "values between layers are rounded by the range of the whole batch: the answer to a row depends, within "
            "that rounding, on the rows that come with it"
        )


def _operators() -> list[str]:
    from onnxruntime.quantization.registry import IntegerOpsRegistry

    return [op for op in IntegerOpsRegistry if op not in _LEFT]


def _excludable(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    operators = {"Gemm", *_operators()}
    return [node for node in model.graph.node if node.op_type in operators]


INT8_DYNAMIC = Recipe(
    "int8-dynamic",
    _apply,
    packages=("onnxruntime", "onnx"),
    is_exact=False,
    layers=("Gemm", "LSTM", "MatMul"),
    excludable=_excludable,
)
