"""What every quantizing recipe refuses beforehand, and what it tells of its result."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_modelserve._onnx.graph import all_nodes, format_node_counts, node_counts, weight_arrays, weight_dtypes
from pytest_modelserve.artifacts import copy_without_weights, restore_weights, tensor_bytes
from pytest_modelserve.compression.recipe import Recipe, RecipeContext, RecipeResult
from pytest_modelserve.errors import MissingDependencyError, RecipeError

if TYPE_CHECKING:
    import onnx


# Operators that quantized graphs consist of; and those named QLinear...
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
# Operators with weights worth quantizing, whether a recipe can (MatMul) or cannot (GRU) or will not (Conv). Those named
# Fused... are what onnxruntime's optimizer makes of them, and no quantizer takes them.
_WEIGHTY = ("Conv", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "GRU", "Gemm", "LSTM", "MatMul", "RNN")


def check_quantizable(model: onnx.ModelProto, *, form: str) -> None:
    """RecipeError for a model that is quantized already, one in float16, and NaN among the weights."""
    counts = node_counts(model)
    found = [f"{op} ×{n}" for op, n in counts.items() if op in _QUANTISED or op.startswith("QLinear")]
    if found:
        raise RecipeError(
            f"the model is quantized already ({', '.join(found)}): quantize the one that it was made from"
        )
    dtypes = set(weight_dtypes(model).values())
    if "float16" in dtypes and "float32" not in dtypes:
        # The quantizers take float16 weights and write a graph that no runtime loads.
        raise RecipeError("the weights are float16 and quantization takes float32: quantize the fp32 model")
    for name, array in weight_arrays(model):
        if array.size and np.isnan(array.min()):  # which passes a NaN on, and needs no memory
            raise RecipeError(f"initializer {name!r} holds {int(np.isnan(array).sum())} NaN, so it has no {form} form")


@contextmanager
def quiet_quantizer() -> Iterator[None]:
    """Keep the quantizers' warnings, their talk, and their advice to pre-process every model, to themselves.

    Pre-processing is onnxruntime's graph optimization; whoever wants it asks for the recipe `simplify` first.
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


def quantizer_error(error: Exception) -> RecipeError:
    """What to raise for what onnxruntime's quantizers raise: bare ValueErrors, RuntimeErrors and AssertionErrors."""
    return RecipeError(f"onnxruntime's quantizer failed: {error}")


def matmul_names(layers: tuple[str, ...]) -> list[str]:
    """The names of `layers` and those that a Gemm among them has once onnxruntime made a MatMul and an Add of it."""
    return [name for layer in layers for name in (layer, f"{layer}_MatMul")]


def float_layer_notes(model: onnx.ModelProto) -> Iterator[str]:
    """One note for each operator of which nodes still have floating weights."""
    weights = weight_dtypes(model)
    left = [
        node
        for node in all_nodes(model.graph)
        if node.op_type in _WEIGHTY and not weights.keys().isdisjoint(node.input)
    ]
    for op in _WEIGHTY:
        names = [node.name for node in left if node.op_type == op]
        if names:
            yield f"left in float: {op} ×{len(names)} ({', '.join(names)})"


def size_note(model: onnx.ModelProto, quantized: onnx.ModelProto) -> Iterator[str]:
    """A note if the initializers of `quantized` take no less room than those of `model`."""
    before, after = (sum(map(tensor_bytes, each.graph.initializer)) for each in (model, quantized))
    if after >= before:
        yield f"initializers did not shrink: {before} bytes before, {after} after"


def nothing_to_quantize(operators: str, model: onnx.ModelProto, exclude: tuple[str, ...]) -> RecipeError:
    """The error for a model in which a recipe for `operators` found nothing to do."""
    if exclude:
        named = ", ".join(map(repr, exclude))
        return RecipeError(f"there is nothing left to quantize: exclude= keeps {named} in float")
    return RecipeError(
        f"there is nothing to quantize: no {operators} with constant float32 weights among {format_node_counts(model)}"
    )


# `int8-dynamic`: weights in 8 bits, activations quantized while the model runs, by onnxruntime.


# onnxruntime 1.32 runs ConvInteger without its fast kernels: a small convolutional network became 8 times slower.
_LEFT = ("Conv",)


def _apply(model: onnx.ModelProto, context: RecipeContext) -> RecipeResult:
    check_quantizable(model, form="int8")
    floats = weight_dtypes(model).keys()
    quantized = _quantized(model, context)
    _refuse_unchanged(model, quantized, context.exclude)
    for name, array in weight_arrays(quantized, weight_dtypes(quantized).keys() - floats):
        if not np.isfinite(array).all():
            raise RecipeError(f"{name!r} came out NaN or infinite: the weights behind it are infinite or too large")
    return RecipeResult(
        quantized, (*float_layer_notes(quantized), *size_note(model, quantized), *_batch_mates(quantized))
    )


def _quantized(model: onnx.ModelProto, context: RecipeContext) -> onnx.ModelProto:
    try:
        with quiet_quantizer():
            quantizer = _quantizer(model, context)
            quantizer.quantize_model()
            quantizer.model.topological_sort()
    except Exception as error:
        raise quantizer_error(error) from error
    result: onnx.ModelProto = quantizer.model.model
    return result


def _quantizer(model: onnx.ModelProto, context: RecipeContext) -> Any:
    """The quantizer as onnxruntime's `quantize_dynamic` calls it between two files, which take longer than itself."""
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.quant_utils import QuantizationMode, add_infer_metadata, update_opset_version

    inferred = onnx.shape_inference.infer_shapes(copy_without_weights(model))
    restore_weights(inferred, model)
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
        matmul_names(context.only),
        matmul_names(context.exclude),
        _operators(),
        # The type is that of values behind an operator that onnx does not know (FusedGemm), where inference finds none.
        {"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True},
    )


def _refuse_unchanged(model: onnx.ModelProto, quantized: onnx.ModelProto, exclude: tuple[str, ...]) -> None:
    """The quantizer splits every Gemm in two even where it then quantizes nothing, so nodes do not tell."""
    import onnx

    eight_bits = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    earlier = {tensor.name for tensor in model.graph.initializer}
    if not any(t.data_type in eight_bits and t.name not in earlier for t in quantized.graph.initializer):
        raise nothing_to_quantize("MatMul, Gemm, LSTM or Gather", model, exclude)


def _batch_mates(quantized: onnx.ModelProto) -> Iterator[str]:
    """What no accuracy on a whole test set shows, and what makes a request irreproducible beside others."""
    if any(op.startswith("DynamicQuantize") for op in node_counts(quantized)):
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


# `int4-weights`: the weights of matrix products in 4 bits, with a scale for every 32 of them; all else in float.


# Weights that share a scale. 32 is what llama.cpp's Q4_0 has; onnxruntime's default, 128, fills up layers with fewer
# inputs and loses more.
_BLOCK = 32
_LAYERS = ("Gemm", "MatMul")


def _apply_int4_weights(model: onnx.ModelProto, context: RecipeContext) -> RecipeResult:
    check_quantizable(model, form="int4")
    _refuse_double(model)
    quantized = type(model)()
    quantized.CopyFrom(model)
    quantized = _quantized_int4_weights(quantized, context)
    if not any(node.op_type == "MatMulNBits" for node in all_nodes(quantized.graph)):
        raise nothing_to_quantize("MatMul or Gemm", model, context.exclude)
    scales = {name for name in weight_dtypes(quantized) if name.endswith("_scales")}
    for name, array in weight_arrays(quantized, scales):
        if not np.isfinite(array).all():
            raise RecipeError(
                f"no int4 scale for {name.removesuffix('_scales')!r}: it holds infinite values, or ones too large"
            )
    return RecipeResult(quantized, (*float_layer_notes(quantized), *size_note(model, quantized)))


def _refuse_double(model: onnx.ModelProto) -> None:
    """The quantizer takes float64 weights and writes a graph that no runtime loads."""
    weights = {name for name, dtype in weight_dtypes(model).items() if dtype == "float64"}
    for node in all_nodes(model.graph):
        if node.op_type in _LAYERS and weights.intersection(node.input):
            raise RecipeError(f"the weights of {node.op_type} {node.name!r} are float64: export the model in float32")


def _quantized_int4_weights(model: onnx.ModelProto, context: RecipeContext) -> onnx.ModelProto:
    from onnxruntime.quantization.onnx_model import ONNXModel

    try:
        with quiet_quantizer():
            # The quantizer knows MatMul only, and of a model made of Gemm it would quantize nothing and report success.
            ONNXModel(model).replace_gemm_with_matmul()
            wanted = matmul_names(context.only)
            others = [node.name for node in all_nodes(model.graph) if wanted and node.name not in wanted]
            others += matmul_names(context.exclude)
            quantizer = _quantizer_class()(model, bits=4, block_size=_BLOCK, nodes_to_exclude=others)
            quantizer.process()
    except MissingDependencyError:
        raise
    except Exception as error:
        raise quantizer_error(error) from error
    result: onnx.ModelProto = quantizer.model.model
    return result


def _quantizer_class() -> Any:
    try:
        # Importing it gives the root logger a handler for good, unless it has one: `calm` is around this.
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    except ModuleNotFoundError as error:
        if error.name != "onnx_ir":
            raise
        raise MissingDependencyError(
            "the recipe 'int4-weights' needs onnx-ir, which is not installed: pip install 'pytest-modelserve[compress]'"
        ) from error
    return MatMulNBitsQuantizer


def _excludable_int4_weights(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in _LAYERS]


INT4_WEIGHTS = Recipe(
    "int4-weights",
    _apply_int4_weights,
    packages=("onnxruntime", "onnx"),
    is_exact=False,
    layers=_LAYERS,
    excludable=_excludable_int4_weights,
)
