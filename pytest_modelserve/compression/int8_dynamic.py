"""`int8-dynamic`: weights in 8 bits, activations quantised while the model runs, by onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from pytest_modelserve.compression.census import float_arrays, node_counts
from pytest_modelserve.compression.quantising import (
    as_products,
    calm,
    growth,
    left_in_float,
    nothing_to_quantise,
    refuse_unfit,
    write_large,
)
from pytest_modelserve.compression.recipe import Applied, Material, Recipe
from pytest_modelserve.errors import RecipeError

if TYPE_CHECKING:
    import onnx

# onnxruntime 1.32 runs ConvInteger without its fast kernels: a small convolutional network became 8 times slower.
_LEFT = ("Conv",)


def _apply(model: onnx.ModelProto, material: Material) -> Applied:
    refuse_unfit(model, form="int8")
    floats = {name for name, _ in float_arrays(model)}
    quantised = _quantised(model, material)
    _refuse_unchanged(model, quantised, material.exclude)
    for name, array in float_arrays(quantised):
        if name not in floats and not np.isfinite(array).all():
            raise RecipeError(f"{name!r} came out NaN or infinite: the weights behind it are infinite or too large")
    return Applied(quantised, (*left_in_float(quantised), *growth(model, quantised), *_batch_mates(quantised)))


def _quantised(model: onnx.ModelProto, material: Material) -> onnx.ModelProto:
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    before, after = material.folder / "before.onnx", material.folder / "after.onnx"
    is_large = write_large(model, before)
    try:
        with calm():
            quantize_dynamic(
                before,
                after,
                op_types_to_quantize=_operators(),
                use_external_data_format=is_large,
                nodes_to_quantize=as_products(material.only),
                nodes_to_exclude=as_products(material.exclude),
                # Of values behind an operator that onnx does not know (FusedGemm), where inference finds none.
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )
    except Exception as error:  # the quantizer raises bare ValueErrors, RuntimeErrors and AssertionErrors
        raise RecipeError(f"onnxruntime's quantizer failed: {error}") from error
    return onnx.load(after)


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
