"""`int4-weights`: the weights of matrix products in 4 bits, with a scale for every 32 of them; all else in float."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_modelserve.compression.census import float_arrays, float_dtypes, nodes_of
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
from pytest_modelserve.errors import MissingDependencyError, RecipeError

if TYPE_CHECKING:
    import onnx

# Weights that share a scale. 32 is what llama.cpp's Q4_0 has; onnxruntime's default, 128, fills up layers with fewer
# inputs and loses more.
_BLOCK = 32
_LAYERS = ("Gemm", "MatMul")


def _apply(model: onnx.ModelProto, material: Material) -> Applied:
    refuse_unfit(model, form="int4")
    _refuse_double(model)
    quantised = type(model)()
    quantised.CopyFrom(model)
    quantised = _quantised(quantised, material)
    if not any(node.op_type == "MatMulNBits" for node in nodes_of(quantised.graph)):
        raise nothing_to_quantise("MatMul or Gemm", model, material.exclude)
    scales = {name for name in float_dtypes(quantised) if name.endswith("_scales")}
    for name, array in float_arrays(quantised, scales):
        if not np.isfinite(array).all():
            raise RecipeError(
                f"no int4 scale for {name.removesuffix('_scales')!r}: it holds infinite values, or ones too large"
            )
    return Applied(quantised, (*left_in_float(quantised), *growth(model, quantised)))


def _refuse_double(model: onnx.ModelProto) -> None:
    """The quantizer takes float64 weights and writes a graph that no runtime loads."""
    weights = {name for name, dtype in float_dtypes(model).items() if dtype == "float64"}
    for node in nodes_of(model.graph):
        if node.op_type in _LAYERS and weights.intersection(node.input):
            raise RecipeError(f"the weights of {node.op_type} {node.name!r} are float64: export the model in float32")


def _quantised(model: onnx.ModelProto, material: Material) -> onnx.ModelProto:
    from onnxruntime.quantization.onnx_model import ONNXModel

    try:
        with calm():
            # The quantizer knows MatMul only, and of a model made of Gemm it would quantise nothing and report success.
            ONNXModel(model).replace_gemm_with_matmul()
            wanted = as_products(material.only)
            others = [node.name for node in nodes_of(model.graph) if wanted and node.name not in wanted]
            others += as_products(material.exclude)
            quantizer = _quantizer_class()(model, bits=4, block_size=_BLOCK, nodes_to_exclude=others)
            quantizer.process()
    except MissingDependencyError:
        raise
    except Exception as error:
        raise quantizer_failed(error) from error
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


def _excludable(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in _LAYERS]


INT4_WEIGHTS = Recipe(
    "int4-weights",
    _apply,
    packages=("onnxruntime", "onnx"),
    is_exact=False,
    layers=_LAYERS,
    excludable=_excludable,
)
