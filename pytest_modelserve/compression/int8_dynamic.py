"""`int8-dynamic`: weights in 8 bits, activations quantised while the model runs, by onnxruntime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pytest_modelserve.compression.census import float_arrays, node_counts, nodes_of, stored_bytes
from pytest_modelserve.compression.recipe import Applied, Inputs, Recipe
from pytest_modelserve.errors import RecipeError

if TYPE_CHECKING:
    import onnx

# Operators that quantised graphs consist of; and those named QLinear...
_QUANTISED = (
    "ConvInteger",
    "DequantizeLinear",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "QAttention",
    "QEmbedLayerNormalization",
    "QGemm",
    "QMoE",
    "QuantizeLinear",
)
# Operators with weights worth quantising, whether this recipe can (MatMul) or cannot (GRU) or will not (Conv).
_WEIGHTY = ("Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN")
# onnxruntime 1.32 runs ConvInteger without its fast kernels: a small convolutional network became 8 times slower.
_LEFT = ("Conv",)
# A protobuf message ends at 2 GiB.
_INLINE_LIMIT_BYTES = 1 << 30


def _apply(model: onnx.ModelProto, inputs: Inputs, folder: Path) -> Applied:  # noqa: ARG001 (a recipe's signature)
    _refuse_quantised(model)
    _refuse_half(model)
    for name, array in float_arrays(model):
        if np.isnan(array).any():
            raise RecipeError(f"initializer {name!r} holds {int(np.isnan(array).sum())} NaN, so it has no int8 form")
    floats = {name for name, _ in float_arrays(model)}
    quantised = _quantised(model, folder)
    _refuse_unchanged(model, quantised)
    for name, array in float_arrays(quantised):
        if name not in floats and not np.isfinite(array).all():
            raise RecipeError(f"{name!r} came out NaN or infinite: the weights behind it are infinite or too large")
    return Applied(quantised, (*_left_in_float(quantised), *_growth(model, quantised)))


def _refuse_quantised(model: onnx.ModelProto) -> None:
    counts = node_counts(model)
    found = [f"{op} ×{n}" for op, n in counts.items() if op in _QUANTISED or op.startswith("QLinear")]
    if found:
        raise RecipeError(
            f"the model is quantised already ({', '.join(found)}): quantise the one that it was made from"
        )


def _refuse_half(model: onnx.ModelProto) -> None:
    """The quantizer takes float16 weights and writes a graph that no runtime loads."""
    found = {array.dtype.name for _, array in float_arrays(model)}
    if "float16" in found and "float32" not in found:
        raise RecipeError("the weights are float16 and dynamic quantisation takes float32: quantise the fp32 model")


def _quantised(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    import onnx
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.registry import IntegerOpsRegistry

    before, after = folder / "before.onnx", folder / "after.onnx"
    is_large = model.ByteSize() > _INLINE_LIMIT_BYTES
    onnx.save(model, before, save_as_external_data=is_large)
    try:
        with _without_advice(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of infinite weights, which are told afterwards
            quantize_dynamic(
                before,
                after,
                op_types_to_quantize=[op for op in IntegerOpsRegistry if op not in _LEFT],
                use_external_data_format=is_large,
            )
    except Exception as error:  # the quantizer raises bare ValueErrors, RuntimeErrors and AssertionErrors
        raise RecipeError(f"onnxruntime's quantizer failed: {error}") from error
    return onnx.load(after)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep the quantizer's advice to pre-process every model, which it logs on the root logger, to itself.

    Pre-processing is onnxruntime's graph optimisation; whoever wants it asks for the recipe `simplify` first.
    """
    root = logging.getLogger()
    handler = logging.NullHandler()  # without any handler, logging.warning() would configure one for good

    def is_other(record: logging.LogRecord) -> bool:
        return "run pre-processing before quantization" not in record.getMessage()

    root.addHandler(handler)
    root.addFilter(is_other)
    try:
        yield
    finally:
        root.removeFilter(is_other)
        root.removeHandler(handler)


def _refuse_unchanged(model: onnx.ModelProto, quantised: onnx.ModelProto) -> None:
    """The quantizer splits every Gemm in two even where it then quantises nothing, so nodes do not tell."""
    import onnx

    eight_bits = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    earlier = {tensor.name for tensor in model.graph.initializer}
    if not any(t.data_type in eight_bits and t.name not in earlier for t in quantised.graph.initializer):
        raise RecipeError(
            "there is nothing to quantise: no MatMul, Gemm, LSTM or Gather with constant float32 weights among "
            + ", ".join(f"{op} ×{n}" for op, n in node_counts(model).items())
        )


def _left_in_float(model: onnx.ModelProto) -> Iterator[str]:
    weights = {name for name, _ in float_arrays(model)}
    left = [node for node in nodes_of(model.graph) if node.op_type in _WEIGHTY and weights.intersection(node.input)]
    for op in _WEIGHTY:
        names = [node.name for node in left if node.op_type == op]
        if names:
            yield f"left in float: {op} ×{len(names)} ({', '.join(names)})"


def _growth(model: onnx.ModelProto, quantised: onnx.ModelProto) -> Iterator[str]:
    before, after = stored_bytes(model), stored_bytes(quantised)
    if after >= before:
        yield f"initializers did not shrink: {before} bytes before, {after} after"


INT8_DYNAMIC = Recipe("int8-dynamic", _apply, packages=("onnxruntime", "onnx"), is_exact=False)
