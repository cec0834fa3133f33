"""What every quantising recipe refuses beforehand, and what it tells of its result."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from pytest_modelserve.artifacts import tensor_bytes
from pytest_modelserve.compression.census import float_arrays, float_dtypes, node_counts, nodes_of, told_counts
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
# Operators with weights worth quantising, whether a recipe can (MatMul) or cannot (GRU) or will not (Conv). Those named
# Fused... are what onnxruntime's optimiser makes of them, and no quantizer takes them.
_WEIGHTY = ("Conv", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "GRU", "Gemm", "LSTM", "MatMul", "RNN")


def refuse_unfit(model: onnx.ModelProto, *, form: str) -> None:
    """RecipeError for a model that is quantised already, one in float16, and NaN among the weights."""
    counts = node_counts(model)
    found = [f"{op} ×{n}" for op, n in counts.items() if op in _QUANTISED or op.startswith("QLinear")]
    if found:
        raise RecipeError(
            f"the model is quantised already ({', '.join(found)}): quantise the one that it was made from"
        )
    dtypes = set(float_dtypes(model).values())
    if "float16" in dtypes and "float32" not in dtypes:
        # The quantizers take float16 weights and write a graph that no runtime loads.
        raise RecipeError("the weights are float16 and quantisation takes float32: quantise the fp32 model")
    for name, array in float_arrays(model):
        if array.size and np.isnan(array.min()):  # which passes a NaN on, and needs no memory
            raise RecipeError(f"initializer {name!r} holds {int(np.isnan(array).sum())} NaN, so it has no {form} form")


@contextmanager
def calm() -> Iterator[None]:
    """Keep the quantizers' warnings, their talk, and their advice to pre-process every model, to themselves.

    Pre-processing is onnxruntime's graph optimisation; whoever wants it asks for the recipe `simplify` first.
    """
    root = logging.getLogger()
    chatter = logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer")
    level = chatter.level
    handler = logging.NullHandler()  # without any handler, logging.warning() would configure one for good

    def is_other(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    root.addHandler(handler)
    root.addFilter(is_other)
    chatter.setLevel(logging.WARNING)  # it tells at INFO of every node
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of infinite weights, which are told afterwards
            yield
    finally:
        chatter.setLevel(level)
        root.removeFilter(is_other)
        root.removeHandler(handler)


def quantizer_failed(error: Exception) -> RecipeError:
    """What to raise for what onnxruntime's quantizers raise: bare ValueErrors, RuntimeErrors and AssertionErrors."""
    return RecipeError(f"onnxruntime's quantizer failed: {error}")


def as_products(layers: tuple[str, ...]) -> list[str]:
    """The names of `layers` and those that a Gemm among them has once onnxruntime made a MatMul and an Add of it."""
    return [name for layer in layers for name in (layer, f"{layer}_MatMul")]


def left_in_float(model: onnx.ModelProto) -> Iterator[str]:
    """One note for each operator of which nodes still have floating weights."""
    weights = float_dtypes(model)
    left = [
        node for node in nodes_of(model.graph) if node.op_type in _WEIGHTY and not weights.keys().isdisjoint(node.input)
    ]
    for op in _WEIGHTY:
        names = [node.name for node in left if node.op_type == op]
        if names:
            yield f"left in float: {op} ×{len(names)} ({', '.join(names)})"


def growth(model: onnx.ModelProto, quantised: onnx.ModelProto) -> Iterator[str]:
    """A note if the initializers of `quantised` take no less room than those of `model`."""
    before, after = (sum(map(tensor_bytes, each.graph.initializer)) for each in (model, quantised))
    if after >= before:
        yield f"initializers did not shrink: {before} bytes before, {after} after"


def nothing_to_quantise(operators: str, model: onnx.ModelProto, exclude: tuple[str, ...]) -> RecipeError:
    """The error for a model in which a recipe for `operators` found nothing to do."""
    if exclude:
        named = ", ".join(map(repr, exclude))
        return RecipeError(f"there is nothing left to quantise: exclude= keeps {named} in float")
    return RecipeError(
        f"there is nothing to quantise: no {operators} with constant float32 weights among {told_counts(model)}"
    )
