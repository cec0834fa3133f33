"""Recipes that quantize weights only, `int8-dynamic` and `int4-weights`, and checks for all quantizing recipes."""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pytest_modelserve._onnx.graph import (
    all_initializers,
    all_nodes,
    format_node_counts,
    name_nodes,
    node_counts,
    tensor_bytes,
    weight_arrays,
    weight_dtypes,
)
from pytest_modelserve._onnx.serialization import copy_without_weights, restore_weights
from pytest_modelserve.compression.recipe import Recipe, RecipeContext, RecipeResult, SingleNodes
from pytest_modelserve.compression.saturation import saturation_note
from pytest_modelserve.errors import MissingDependencyError, RecipeError

if TYPE_CHECKING:
    import onnx

# Operators of quantized graphs; those named QLinear... are others.
_QUANTIZED = (
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
# Operators with weights worth quantizing, whether or not a recipe converts them. Those named Fused... come from
# onnxruntime's optimizer; no quantizer converts them.
_WITH_WEIGHTS = (
    "Conv", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "GRU", "Gemm", "LSTM", "MatMul", "RNN",
)  # fmt: skip
# onnxruntime 1.32 runs ConvInteger without its fast kernels: a small convolutional network became 8 times slower.
_NOT_DYNAMIC = ("Conv",)
# Weights that share a scale. llama.cpp's Q4_0 has 32; onnxruntime's default, 128, pads layers with fewer inputs and
# loses more accuracy.
_BLOCK = 32


class WeightQuantization(Recipe):
    """A recipe that quantizes constant weights of `layers`, one node independently of the others."""

    can_exclude = True
    has_sensitivity = True
    layers: ClassVar[tuple[str, ...]]
    """Operators of which one node can be quantized alone."""

    def single_nodes(self, model: onnx.ModelProto, context: RecipeContext) -> SingleNodes:
        """Return the nodes with constant weights, and a function that quantizes one of them by name."""
        weights = weight_dtypes(model).keys()
        nodes = [n for n in all_nodes(model.graph) if n.op_type in self.layers and not weights.isdisjoint(n.input)]
        name_nodes(nodes)

        def quantize(name: str) -> onnx.ModelProto:
            copy = type(model)()
            copy.CopyFrom(model)
            with TemporaryDirectory(dir=context.folder) as work:
                return self.apply(copy, replace(context, folder=Path(work), only=(name,))).model

        return nodes, quantize

    @abstractmethod
    def excludable(self, model: onnx.ModelProto) -> list[onnx.NodeProto]:
        """Return the nodes that the recipe may quantize."""


class Int8Dynamic(WeightQuantization):
    """Weights in 8 bits; activations are quantized at each call by the range of the batch."""

    name = "int8-dynamic"
    can_reduce_range = True
    layers = ("Gemm", "LSTM", "MatMul")

    def apply(self, model: onnx.ModelProto, context: RecipeContext) -> RecipeResult:
        """Return the quantized model."""
        check_quantizable(model, form="int8")
        floats = weight_dtypes(model).keys()
        quantized = self._quantize(model, context)
        # The quantizer splits every Gemm in two even where it quantizes nothing, so nodes do not show it.
        earlier = {tensor.name for tensor in all_initializers(model.graph)}
        if not any(_is_8_bit(tensor) and tensor.name not in earlier for tensor in all_initializers(quantized.graph)):
            raise nothing_to_quantize("MatMul, Gemm, LSTM or Gather", model, context.exclude)
        for name, array in weight_arrays(quantized, weight_dtypes(quantized).keys() - floats):
            if not np.isfinite(array).all():
                raise RecipeError(f"{name!r} became NaN or infinite: the weights behind it are infinite or too large")
        notes = [*float_layer_notes(quantized), *size_note(model, quantized)]
        if any(op.startswith("DynamicQuantize") for op in node_counts(quantized)):
            notes.append(
                "activations are rounded by the range of the whole batch: the output of a row depends, within that "
                "rounding, on the other rows of its batch"
            )
        if not context.only:
            notes.extend(saturation_note(quantized, context.inputs))
        return RecipeResult(quantized, tuple(notes))

    def excludable(self, model: onnx.ModelProto) -> list[onnx.NodeProto]:
        """Return the nodes that the quantizer knows, in branches and loops, too."""
        operators = {"Gemm", *self._operators()}
        return [node for node in all_nodes(model.graph) if node.op_type in operators]

    def _quantize(self, model: onnx.ModelProto, context: RecipeContext) -> onnx.ModelProto:
        """Return what `quantize_dynamic` of onnxruntime would write, without its two files, which take longer."""
        import onnx
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
        from onnxruntime.quantization.quant_utils import QuantizationMode, add_infer_metadata, update_opset_version

        try:
            with quiet_quantizer():
                inferred = onnx.shape_inference.infer_shapes(copy_without_weights(model))
                restore_weights(inferred, model)
                add_infer_metadata(inferred)
                quantizer = ONNXQuantizer(
                    update_opset_version(inferred, QuantType.QInt8),
                    per_channel=False,
                    reduce_range=context.reduce_range,
                    mode=QuantizationMode.IntegerOps,
                    static=False,
                    weight_qType=QuantType.QInt8,
                    activation_qType=QuantType.QUInt8,
                    tensors_range=None,
                    nodes_to_quantize=matmul_names(context.only),
                    nodes_to_exclude=matmul_names(context.exclude),
                    op_types_to_quantize=self._operators(),
                    extra_options={
                        # The type of values behind an operator that onnx does not know (FusedGemm).
                        "DefaultTensorType": onnx.TensorProto.FLOAT,
                        "MatMulConstBOnly": True,
                        "EnableSubgraph": True,
                    },
                )
                quantizer.quantize_model()
                quantizer.model.topological_sort()
        except Exception as error:
            raise quantizer_error(error) from error
        result: onnx.ModelProto = quantizer.model.model
        return result

    @staticmethod
    def _operators() -> list[str]:
        from onnxruntime.quantization.registry import IntegerOpsRegistry

        return [op for op in IntegerOpsRegistry if op not in _NOT_DYNAMIC]


class Int4Weights(WeightQuantization):
    """Weights of matrix products in 4 bits, with a scale for each 32 of them; activations stay in float."""

    name = "int4-weights"
    layers = ("Gemm", "MatMul")

    def apply(self, model: onnx.ModelProto, context: RecipeContext) -> RecipeResult:
        """Return the quantized model."""
        check_quantizable(model, form="int4")
        self._check_float32(model)
        quantized = type(model)()
        quantized.CopyFrom(model)
        quantized = self._quantize(quantized, context)
        if not any(node.op_type == "MatMulNBits" for node in all_nodes(quantized.graph)):
            raise nothing_to_quantize("MatMul or Gemm", model, context.exclude)
        scales = {name for name in weight_dtypes(quantized) if name.endswith("_scales")}
        for name, array in weight_arrays(quantized, scales):
            if not np.isfinite(array).all():
                weight = name.removesuffix("_scales")
                raise RecipeError(f"no int4 scale for {weight!r}: it holds infinite values, or ones too large")
        return RecipeResult(quantized, (*float_layer_notes(quantized), *size_note(model, quantized)))

    def excludable(self, model: onnx.ModelProto) -> list[onnx.NodeProto]:
        """Return the matrix products, in branches and loops, too."""
        return [node for node in all_nodes(model.graph) if node.op_type in self.layers]

    def _check_float32(self, model: onnx.ModelProto) -> None:
        """Raise RecipeError for float64 weights, of which the quantizer makes a graph that no runtime loads."""
        weights = {name for name, dtype in weight_dtypes(model).items() if dtype == "float64"}
        for node in all_nodes(model.graph):
            if node.op_type in self.layers and weights.intersection(node.input):
                raise RecipeError(
                    f"the weights of {node.op_type} {node.name!r} are float64: export the model in float32"
                )

    def _quantize(self, model: onnx.ModelProto, context: RecipeContext) -> onnx.ModelProto:
        from onnxruntime.quantization.onnx_model import ONNXModel

        try:
            with quiet_quantizer():
                # The quantizer converts MatMul only; of a model made of Gemm it would report success.
                ONNXModel(model).replace_gemm_with_matmul()
                wanted = matmul_names(context.only)
                others = [node.name for node in all_nodes(model.graph) if wanted and node.name not in wanted]
                others += matmul_names(context.exclude)
                quantizer = _int4_quantizer()(model, bits=4, block_size=_BLOCK, nodes_to_exclude=others)
                quantizer.process()
        except MissingDependencyError:
            raise
        except Exception as error:
            raise quantizer_error(error) from error
        result: onnx.ModelProto = quantizer.model.model
        return result


def check_quantizable(model: onnx.ModelProto, *, form: str) -> None:
    """Raise RecipeError for a model that is quantized already, is in float16, or has NaN among its weights."""
    counts = node_counts(model)
    found = [f"{op} ×{n}" for op, n in counts.items() if op in _QUANTIZED or op.startswith("QLinear")]
    if found:
        raise RecipeError(f"the model is quantized already ({', '.join(found)}): quantize its source")
    dtypes = set(weight_dtypes(model).values())
    if "float16" in dtypes and "float32" not in dtypes:
        # The quantizers accept float16 weights and write a graph that no runtime loads.
        raise RecipeError("the weights are float16 and quantization needs float32: quantize the fp32 model")
    for name, array in weight_arrays(model):
        if array.size and np.isnan(array.min()):  # min() propagates NaN and needs no memory
            raise RecipeError(f"initializer {name!r} holds {int(np.isnan(array).sum())} NaN, so it has no {form} form")


@contextmanager
def quiet_quantizer() -> Iterator[None]:
    """Suppress the quantizers' warnings, progress logs, and their advice to pre-process every model.

    Pre-processing is onnxruntime's graph optimization; the recipe "simplify" does the same.
    """
    root = logging.getLogger()
    progress_log = logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer")
    level = progress_log.level
    handler = logging.NullHandler()  # without any handler, logging.warning() would configure one permanently

    def is_other(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    root.addHandler(handler)
    root.addFilter(is_other)
    progress_log.setLevel(logging.WARNING)  # it logs every node at INFO
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about infinite weights, which are reported afterwards
            yield
    finally:
        progress_log.setLevel(level)
        root.removeFilter(is_other)
        root.removeHandler(handler)


def quantizer_error(error: Exception) -> RecipeError:
    """Return a RecipeError for what onnxruntime's quantizers raise: ValueError, RuntimeError and AssertionError."""
    return RecipeError(f"onnxruntime's quantizer failed: {error}")


def nothing_to_quantize(
    operators: str, model: onnx.ModelProto, exclude: tuple[str, ...], hint: str = ""
) -> RecipeError:
    """Return the error for a model in which a recipe for `operators` quantized nothing."""
    if exclude:
        names = ", ".join(map(repr, exclude))
        return RecipeError(f"there is nothing left to quantize: exclude= leaves {names} in float")
    return RecipeError(
        f"there is nothing to quantize: no {operators} with constant float32 weights among {format_node_counts(model)}"
        f"{hint or _other_way(operators, model)}"
    )


def _other_way(operators: str, model: onnx.ModelProto) -> str:
    """Return what to do about weights that the recipe does not quantize."""
    if "float64" in weight_dtypes(model).values():
        return "; its weights are float64: export the model in float32"
    if "Conv" in node_counts(model) and "MatMul" in operators:
        return "; 'int8-static' quantizes convolutions"
    return ""


def matmul_names(layers: tuple[str, ...]) -> list[str]:
    """Return `layers` and the names that Gemm nodes among them get when onnxruntime splits them into MatMul and Add."""
    return [name for layer in layers for name in (layer, f"{layer}_MatMul")]


def float_layer_notes(model: onnx.ModelProto) -> Iterator[str]:
    """Yield one note for each operator of which nodes still have floating weights."""
    weights = weight_dtypes(model)
    left = [
        node
        for node in all_nodes(model.graph)
        if node.op_type in _WITH_WEIGHTS and not weights.keys().isdisjoint(node.input)
    ]
    for op in _WITH_WEIGHTS:
        names = [node.name for node in left if node.op_type == op]
        if names:
            yield f"left in float: {op} ×{len(names)} ({', '.join(names)})"


def size_note(model: onnx.ModelProto, quantized: onnx.ModelProto) -> Iterator[str]:
    """Yield a note if the initializers of `quantized` are no smaller than those of `model`."""
    before, after = (sum(map(tensor_bytes, all_initializers(each.graph))) for each in (model, quantized))
    if after >= before:
        yield f"initializers did not shrink: {before} bytes before, {after} after"


def _is_8_bit(tensor: onnx.TensorProto) -> bool:
    import onnx

    return tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


def _int4_quantizer() -> Any:
    try:
        # Importing it adds a permanent handler to the root logger, unless that has one: `quiet_quantizer` adds one.
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    except ModuleNotFoundError as error:
        if error.name != "onnx_ir":
            raise
        raise MissingDependencyError(
            "the recipe 'int4-weights' needs onnx-ir, which is not installed: pip install 'pytest-modelserve[compress]'"
        ) from error
    return MatMulNBitsQuantizer
