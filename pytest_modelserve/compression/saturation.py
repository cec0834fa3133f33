"""Saturation of int8 products on x86 processors without VNNI, emulated on any processor.

Such processors multiply unsigned activations by signed weights and add each pair of products in 16 bits
(VPMADDUBSW): 255 · 127 + 255 · 127 saturates at 32,767. Processors with VNNI, and others than x86, add in 32 bits.
Weights within ±64 (`reduce_range=True`) cannot saturate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._onnx.serialization import copy_without_weights, large_arrays
from pytest_modelserve.errors import ArtifactError, InputError

if TYPE_CHECKING:
    import onnx

    from pytest_modelserve.compression.recipe import Inputs

_LOW, _HIGH = -(1 << 15), (1 << 15) - 1
# Rows of a product, or patches of a convolution, that are emulated, and weights: of larger ones every second column, or
# every third and so on.
_ROWS = 64
_WEIGHTS = 1 << 22
# Rounding to 8 bits leaves 30 to 45 dB: an error below 60 dB would not be seen.
_NEGLIGIBLE_DB = 60.0
_LISTED = 3


def saturation_note(quantized: onnx.ModelProto, inputs: Inputs) -> Iterator[str]:
    """Yield a note if products of `quantized` saturate on `inputs` where the processor has no VNNI."""
    found = [each for each in node_saturation(quantized, inputs) if each.sqnr_db < _NEGLIGIBLE_DB]
    if not found:
        return
    found.sort(key=lambda each: each.sqnr_db)
    listed = ", ".join(f"{each.node!r} (SQNR {each.sqnr_db:.1f} dB by itself)" for each in found[:_LISTED])
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    yield (
        "outputs depend on the processor: x86 processors without VNNI add pairs of products in 16 bits, which "
        f"saturates in {listed}{more}; reduce_range=True avoids it"
    )


@dataclass(frozen=True, slots=True)
class NodeSaturation:
    """A node, by its name before quantization, and the SQNR of its output with saturated sums."""

    node: str
    sqnr_db: float


@dataclass(frozen=True, slots=True, eq=False)
class _Product:
    """A node that multiplies a quantized value by stored int8 weights `(K, N)`, each column with its scale."""

    node: onnx.NodeProto
    value: str
    zero_point: str | int
    weights: NDArray[Any]
    scales: NDArray[np.float64]


def node_saturation(quantized: onnx.ModelProto, inputs: Inputs) -> Iterator[NodeSaturation]:
    """Yield every product of the main graph whose sums saturate on `inputs`; recurrent layers are left out."""
    products = [each for each in _products(quantized) if _may_saturate(each.weights).any()]
    if not products:
        return
    values = _values(quantized, products, inputs)
    for each in products:
        value = values.get(each.value)
        if value is None or not value.size:
            continue
        zero_point = values[each.zero_point] if isinstance(each.zero_point, str) else np.asarray(each.zero_point)
        # onnxruntime moves signed activations by 128 on x86.
        moved = 128 if value.dtype == np.int8 else 0
        rows = _rows(each.node, value.astype(np.int32) + moved, each.weights)
        if rows is None:
            continue
        signal = ((rows - (int(zero_point) + moved)).astype(np.float64) @ each.weights) * each.scales
        error = saturation_error(rows, each.weights) * each.scales
        noise = float((error**2).sum())
        if noise > 0:
            sqnr_db = 10 * np.log10(max(float((signal**2).sum()), np.finfo(float).tiny) / noise)
            yield NodeSaturation(each.node.name.removesuffix("_quant").removesuffix("_MatMul"), float(sqnr_db))


def saturation_error(rows: NDArray[np.int32], weights: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return what saturation of each pair of products adds to `rows @ weights`.

    Args:
        rows: Unsigned 8-bit values of shape (M, K).
        weights: Signed 8-bit values of shape (K, N).
    """
    if rows.shape[1] % 2:
        rows, weights = np.pad(rows, ((0, 0), (0, 1))), np.pad(weights, ((0, 1), (0, 0)))
    error = np.zeros((len(rows), weights.shape[1]))
    may = _may_saturate(weights)
    for pair in np.flatnonzero(may.any(axis=1)):
        columns = np.flatnonzero(may[pair])
        both = slice(2 * pair, 2 * pair + 2)
        sums = rows[:, both] @ weights[both][:, columns]
        error[:, columns] += np.clip(sums, _LOW, _HIGH) - sums
    return error


def _may_saturate(weights: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return for each pair of weights whether products with activations up to 255 can exceed 16 bits."""
    if len(weights) % 2:
        weights = np.pad(weights, ((0, 1), (0, 0)))
    largest = 255 * (weights[0::2].clip(min=0) + weights[1::2].clip(min=0))
    least = 255 * (weights[0::2].clip(max=0) + weights[1::2].clip(max=0))
    may: NDArray[np.bool_] = (largest > _HIGH) | (least < _LOW)
    return may


def _products(quantized: onnx.ModelProto) -> Iterator[_Product]:
    import onnx

    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    writers = {name: node for node in quantized.graph.node for name in node.output}

    def array(name: str) -> NDArray[Any]:
        return np.asarray(onnx.numpy_helper.to_array(stored[name]))

    def is_int8(name: str) -> bool:
        return name in stored and stored[name].data_type == onnx.TensorProto.INT8

    for node in quantized.graph.node:
        if node.op_type == "MatMulInteger" and is_int8(node.input[1]):
            weights = _matrix(node, array(node.input[1]))
            if weights is not None:
                yield _sampled(_Product(node, node.input[0], node.input[2], weights, np.ones(weights.shape[1])))
        elif node.op_type in ("MatMul", "Gemm", "Conv"):
            value, weight = (writers.get(name) for name in node.input[:2])
            if value is None or weight is None or {value.op_type, weight.op_type} != {"DequantizeLinear"}:
                continue
            weights = _matrix(node, array(weight.input[0])) if is_int8(weight.input[0]) else None
            if weights is not None and value.input[0] not in stored:
                zero_point = int(array(value.input[2])) if len(value.input) > 2 else 0
                scales = np.broadcast_to(array(weight.input[1]).astype(np.float64).reshape(-1), weights.shape[1])
                yield _sampled(_Product(node, value.input[0], zero_point, weights, scales))


def _sampled(product: _Product) -> _Product:
    step = max(1, -(-product.weights.size // _WEIGHTS))
    weights = product.weights[:, ::step].astype(np.int32)
    return replace(product, weights=weights, scales=product.scales[::step])


def _matrix(node: onnx.NodeProto, weights: NDArray[Any]) -> NDArray[Any] | None:
    """Return weights as (K, N), channels last as onnxruntime computes convolutions, or None for another layout."""
    attributes = {item.name: item for item in node.attribute}
    if node.op_type == "Conv":
        if "group" in attributes and attributes["group"].i != 1:
            return None
        weights = np.moveaxis(weights, 1, -1).reshape(len(weights), -1).T
    elif weights.ndim != 2 or ("transA" in attributes and attributes["transA"].i):
        return None
    elif "transB" in attributes and attributes["transB"].i:
        weights = weights.T
    return weights


def _rows(node: onnx.NodeProto, value: NDArray[np.int32], weights: NDArray[np.int32]) -> NDArray[np.int32] | None:
    """Return up to 64 rows of the product, evenly spaced; patches without padding for a convolution."""
    if node.op_type != "Conv":
        rows = value.reshape(-1, value.shape[-1])
        return rows[:: -(-len(rows) // _ROWS)]
    attributes = {item.name: list(item.ints) for item in node.attribute}
    spatial = value.ndim - 2
    strides, dilations = (attributes.get(name) or [1] * spatial for name in ("strides", "dilations"))
    shape = attributes.get("kernel_shape") or [1] * spatial
    spans = [gap * (size - 1) + 1 for gap, size in zip(dilations, shape, strict=True)]
    counts = [(size - span) // step + 1 for size, span, step in zip(value.shape[2:], spans, strides, strict=True)]
    if min(counts, default=0) < 1 or value.shape[1] * int(np.prod(shape)) != len(weights):
        return None
    total = len(value) * int(np.prod(counts))
    patches = []
    for place in range(0, total, -(-total // _ROWS)):
        row, *position = np.unravel_index(place, (len(value), *counts))
        begins = [int(at) * step for at, step in zip(position, strides, strict=True)]
        window = tuple(slice(at, at + span, gap) for at, span, gap in zip(begins, spans, dilations, strict=True))
        patches.append(np.moveaxis(value[int(row)][(slice(None), *window)], 0, -1).reshape(-1))
    return np.stack(patches)


def _values(quantized: onnx.ModelProto, products: list[_Product], inputs: Inputs) -> dict[str, NDArray[Any]]:
    """Return the quantized values that the products read, empty where onnxruntime does not show them."""
    import onnx

    from pytest_modelserve._onnx.sessions import open_graph_session, run_session

    names = {each.value: None for each in products}
    names.update((each.zero_point, None) for each in products if isinstance(each.zero_point, str))
    shown = copy_without_weights(quantized)
    del shown.graph.output[:]
    dynamic = {each.value for each in products if isinstance(each.zero_point, str)} | {
        each.zero_point for each in products if isinstance(each.zero_point, str)
    }
    for name in names:
        elem_type = onnx.TensorProto.UINT8 if name in dynamic else onnx.TensorProto.INT8
        shown.graph.output.append(onnx.helper.make_tensor_value_info(name, elem_type, None))
    try:
        return run_session(open_graph_session(shown, large_arrays(shown, quantized)), inputs, list(names))
    except (ArtifactError, InputError):
        return {}
