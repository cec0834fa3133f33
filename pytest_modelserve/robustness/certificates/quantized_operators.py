"""QuantizeLinear and DequantizeLinear, as onnxruntime serves them.

onnxruntime rewrites a QDQ graph when it opens it. It sums products of 8-bit values in integers and rounds them once to
the scale of the output, where the file says that they are rounded to float32 and then to that scale. Both round the
same real number up to some units of float32: they differ by one step near a tie at most, which `TIE` covers. Measured
over ten operators, served values are at most 0.5001 steps from the real number (benchmarks/quantized_rounding.py).

Four of its rewritings change more, and are refused or allowed for by name in `check_quantized`:
- Gemm, Conv and ConvTranspose between DequantizeLinear and QuantizeLinear: float weights are quantized (refused), and a
  float bias is rounded to a multiple of the product of both scales (part of the error radius; so is the constant that
  is added after a MatMul).
- Two pairs in a row get one scale (refused).
- MatMul by quantized weights alone becomes MatMulNBits, which also quantizes the other operand (refused).
- x86 processors without VNNI add pairs of products in 16 bits (refused where weights are beyond ±64).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.robustness.certificates.base import Lines, Node, Operator, Relaxation, refusal
from pytest_modelserve.robustness.certificates.interval_arithmetic import Array, Box, down, own_error, up
from pytest_modelserve.robustness.certificates.linear_operators import Factor

if TYPE_CHECKING:
    import onnx

TIE = {8: 2.0**-10, 16: 2.0**-3}
"""By bits: within so many steps of a tie either neighbor may be the result. Float32 errors are 256 · 2^-24 of a step in
8 bits, and 65536 · 2^-24 in 16, times a few roundings."""

_BITS = {"int8": 8, "uint8": 8, "int16": 16, "uint16": 16}
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm")
_SAFE_WEIGHT = 64
"""Two products of an unsigned byte by weights up to this fit into 16 bits."""


class Quantize(Operator):
    """QuantizeLinear: clip(round(x / scale) + zero point), half to even, within `TIE` of a tie either way."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        node.only_variable(0)
        self.scale, self.zero = _parameters(node)
        info = np.iinfo(node.dtype)
        self.least, self.most = float(info.min), float(info.max)
        self._tie = TIE[_BITS[node.dtype]]

    @property
    def kinks(self) -> tuple[Array, Array]:
        """The inputs below and above which the result saturates."""
        return (self.least - self.zero) * self.scale, (self.most - self.zero) * self.scale

    def interval(self, boxes: Sequence[Box]) -> Box:
        """Return whole numbers: rounding keeps the order."""
        low, high = boxes[0].lower / self.scale - self._tie, boxes[0].upper / self.scale + self._tie
        return Box(
            np.clip(np.rint(low) + self.zero, self.least, self.most),
            np.clip(np.rint(high) + self.zero, self.least, self.most),
        )

    def undecided(self, boxes: Sequence[Box]) -> Sequence[NDArray[np.bool_] | None]:
        """Return where the input may saturate or not, and where few steps are possible."""
        below, above = self.kinks
        found = self.interval(boxes)
        steps = found.upper - found.lower
        box = boxes[0]
        crossing = ((box.lower < below) & (box.upper > below)) | ((box.lower < above) & (box.upper > above))
        return [(crossing & (steps > 0)) | ((steps > 0) & (steps <= 2))]

    def relax(self, boxes: Sequence[Box], slopes: Array | None = None) -> Relaxation:
        """Return lines half a step from the real number, or whole numbers where few are possible."""
        box, whole = boxes[0], self.interval(boxes)
        width = (box.upper - box.lower) / self.scale
        below, above = self.kinks
        flat = (whole.upper <= whole.lower) | ((whole.upper - whole.lower <= 1) & (width <= 1)) | ~np.isfinite(width)
        rate = np.broadcast_to(1 / self.scale, box.lower.shape)
        under, over = box.lower < below, box.upper > above
        # The clipped real number at both ends, and the chord between them.
        low, high = np.clip(box.lower, below, above), np.clip(box.upper, below, above)
        chord = np.where(width > 0, (high - low) / np.where(width > 0, box.upper - box.lower, 1.0), 1.0) * rate
        half = 0.5 + 2 * self._tie
        shift = np.broadcast_to(self.zero, box.lower.shape)
        # Clipping is convex at the lower kink and concave at the upper one.
        steep_low = (box.upper - below) > (below - box.lower)
        steep_high = (above - box.lower) > (box.upper - above)
        lower_slope = np.select([over & ~under, under & ~over & steep_low, ~under & ~over], [chord, rate, rate], 0.0)
        upper_slope = np.select([under & ~over, over & ~under & steep_high, ~under & ~over], [chord, rate, rate], 0.0)
        lower_offset = np.select(
            [over & ~under, under & ~over & ~steep_low, ~over],
            [low * rate - chord * box.lower + shift - half, np.full_like(rate, self.least), shift - half],
            self.least,
        )
        upper_offset = np.select(
            [under & ~over, over & ~under & ~steep_high, ~under],
            [low * rate - chord * box.lower + shift + half, np.full_like(rate, self.most), shift + half],
            self.most,
        )
        return Lines(
            np.where(flat, 0.0, lower_slope),
            down(np.where(flat, whole.lower, lower_offset)),
            np.where(flat, 0.0, upper_slope),
            up(np.where(flat, whole.upper, upper_offset)),
        )

    def error(self, boxes: Sequence[Box]) -> Array | float:
        """Return our own error: `TIE` holds that of the runtime."""
        return own_error(np.abs(boxes[0].magnitude / self.scale) + np.abs(self.zero), self.node.size)


class Dequantize(Factor):
    """DequantizeLinear: (q - zero point) · scale."""

    def __init__(self, node: Node) -> None:
        Operator.__init__(self, node)
        node.only_variable(0)
        if node.dtypes[0] not in _BITS:
            raise node.refused(f"it reads {node.dtypes[0]}, and certificates cover 8 and 16 bits")
        self.factor, zero = _parameters(node)
        self.bias = -zero * self.factor


def _parameters(node: Node) -> tuple[Array, Array]:
    """Return scale and zero point, which broadcast to the shape of one row."""
    if node.attributes.get("block_size", 0):
        raise node.refused("it has a scale for each block of values (block_size)")
    scale, zero = np.asarray(node.required(1), np.float64), node.constant(2)
    zero = np.zeros_like(scale) if zero is None else np.asarray(zero, np.float64)
    if not (scale > 0).all():
        raise node.refused("its scale is not positive")
    if scale.size == 1:
        return scale.reshape(()), zero.reshape(())
    rank = len(node.shape) + 1
    axis = int(node.attributes.get("axis", 1)) % rank
    if axis == 0 or scale.ndim != 1:
        raise node.refused("it has a scale for each row")
    shape = [1] * (rank - 1)
    shape[axis - 1] = scale.size
    return scale.reshape(shape), zero.reshape(shape)


def check_quantized(model: onnx.ModelProto) -> dict[str, Array]:
    """Return what onnxruntime adds to the biases of a QDQ graph, and refuse a graph that it changes more.

    Args:
        model: A model with its weights.

    Returns:
        By the name of a Gemm's or Conv's output, the largest change of each element of its bias, (1,) or (channels,).

    Raises:
        ArtifactError: What is served would not be what the file says; the node is named.
    """
    graph = model.graph
    for node in graph.node:
        if node.op_type in _REFUSED:
            raise refusal(
                node.op_type, node.name or node.output[0], _REFUSED[node.op_type], "use the recipe int8-static"
            )
    if not any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node):
        return {}
    writers = {name: node for node in graph.node for name in node.output if name}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    stored |= {
        node.output[0]: each.t
        for node in graph.node
        if node.op_type == "Constant"
        for each in node.attribute
        if each.name == "value"
    }
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            _refuse_type(node, stored)
            _refuse_double(node, writers)
    found = dict(_bias_errors(graph, writers, readers, outputs, stored))
    _refuse_rewritten(model, len(found))
    if saturates():
        _refuse_wide_weights(graph, stored)
    return found


def _bias_errors(
    graph: onnx.GraphProto,
    writers: Mapping[str, onnx.NodeProto],
    readers: Mapping[str, Sequence[onnx.NodeProto]],
    outputs: set[str],
    stored: Mapping[str, onnx.TensorProto],
) -> Iterator[tuple[str, Array]]:
    from onnx import numpy_helper

    def parameter(name: str) -> NDArray[Any] | None:
        return np.asarray(numpy_helper.to_array(stored[name]), np.float64) if name in stored else None

    for node in graph.node:
        if node.op_type not in (*_WEIGHTED, "MatMul") or not _is_dequantized(node.input[0], writers):
            continue
        last, bias = node, node.input[2] if len(node.input) > 2 else ""
        if node.op_type == "MatMul":
            # onnxruntime makes it Gemm with the constant that is added next.
            if not _is_dequantized(node.input[1], writers) or len(readers.get(node.output[0], ())) != 1:
                continue
            (last,) = readers[node.output[0]]
            constants = [name for name in last.input if name in stored]
            if last.op_type != "Add" or not constants:
                continue
            (bias,) = constants
        if not _leads_to_quantize(last, readers, outputs):
            continue
        if not _is_dequantized(node.input[1], writers):
            raise refusal(node.op_type, node.name or node.output[0], _FLOAT_WEIGHTS, "quantize the weights in the file")
        if not bias or _is_dequantized(bias, writers):
            continue
        scales = [parameter(writers[name].input[1]) for name in node.input[:2]]
        if scales[0] is None or scales[1] is None:
            raise refusal(node.op_type, node.name or node.output[0], "the scales of its inputs are not constant")
        beta = max([1.0, *(abs(each.f) for each in node.attribute if each.name == "beta")])
        half = 0.5 * beta * (scales[0].reshape(-1).max() * scales[1].reshape(-1)) * (1 + 1e-6)
        yield last.output[0], half.reshape(-1)


def _is_dequantized(name: str, writers: Mapping[str, onnx.NodeProto]) -> bool:
    return name in writers and writers[name].op_type == "DequantizeLinear"


def _leads_to_quantize(
    node: onnx.NodeProto, readers: Mapping[str, Sequence[onnx.NodeProto]], outputs: set[str]
) -> bool:
    """Return whether the only path from the node leads to QuantizeLinear, over Relu and Clip at most."""
    while node.output[0] not in outputs and len(readers.get(node.output[0], ())) == 1:
        (node,) = readers[node.output[0]]
        if node.op_type == "QuantizeLinear":
            return True
        if node.op_type not in ("Relu", "Clip"):
            return False
    return False


def _refuse_type(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> None:
    import onnx

    kinds = [each.i for each in node.attribute if each.name == "output_dtype" and each.i]
    kinds += [stored[name].data_type for name in node.input[2:3] if name in stored]
    for kind in kinds:
        name = onnx.TensorProto.DataType.Name(kind).lower()
        if name not in _BITS:
            raise refusal(
                node.op_type, node.name or node.output[0], f"it writes {name}, and certificates cover 8 and 16 bits"
            )


def _refuse_double(node: onnx.NodeProto, writers: Mapping[str, onnx.NodeProto]) -> None:
    before = writers.get(node.input[0])
    if before is None or before.op_type != "DequantizeLinear":
        return
    if list(before.input[1:]) != list(node.input[1:]) and before.input[0] in writers:
        raise refusal(
            node.op_type,
            node.name or node.output[0],
            "it follows DequantizeLinear of another scale, and onnxruntime may give both pairs one scale",
            "remove one of the two pairs",
        )


_FLOAT_WEIGHTS = "onnxruntime quantizes its float weights when it opens the file"
_WHOLE_BATCH = "its scale depends on all rows of the batch"
_REFUSED = {
    "MatMulNBits": "onnxruntime also quantizes the values that its weights multiply",
    "DynamicQuantizeLinear": _WHOLE_BATCH,
    "DynamicQuantizeMatMul": _WHOLE_BATCH,
}
"""Operators of a file, or of what onnxruntime makes of it."""


def _refuse_rewritten(model: onnx.ModelProto, biases: int) -> None:
    """Refuse a graph for what onnxruntime makes of it at its default level of optimization.

    `biases` is the number of biases that are known to be rounded. What else it rounds shows in names of new tensors.
    """
    graph = _optimized(model).graph
    for node in graph.node:
        if node.op_type in _REFUSED:
            why = f"onnxruntime makes it {node.op_type}: {_REFUSED[node.op_type]}"
            raise refusal("MatMul", node.name or node.output[0], why, "quantize the values in the file, too")
    before = {tensor.name for tensor in model.graph.initializer}
    added = [tensor.name for tensor in graph.initializer if tensor.name not in before]
    for name in added:
        if name.startswith("DoubleQDQRemoved_"):
            name = name.removeprefix("DoubleQDQRemoved_")
            why = "onnxruntime gives it and a second pair one scale"
            raise refusal("QuantizeLinear", name, why, "remove one of the two pairs")
        if name.endswith(("_weight_q", "_weight_scale")):
            raise refusal("Conv or Gemm", name, _FLOAT_WEIGHTS, "quantize the weights in the file")
    rounded = [name for name in added if name.endswith("_bias_int32")]
    if len(rounded) > biases:
        why = "onnxruntime rounds its float bias when it opens the file"
        raise refusal("Add or Gemm", rounded[-1], why, "quantize the bias in the file")


def _optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph that onnxruntime serves, without weights in other files."""
    import onnx
    import onnxruntime

    with TemporaryDirectory(prefix="modelserve-") as folder:
        source, target = Path(folder, "model.onnx"), Path(folder, "optimized.onnx")
        if model.ByteSize() > 1 << 30:  # the copy loses its weights to a file
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            onnx.save(copy, str(source), save_as_external_data=True)
        else:
            onnx.save(model, str(source))
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        return onnx.load(str(target), load_external_data=False)


def _refuse_wide_weights(graph: onnx.GraphProto, stored: Mapping[str, onnx.TensorProto]) -> None:
    from onnx import numpy_helper

    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            weight = numpy_helper.to_array(stored[node.input[0]])
            if (
                weight.dtype.name in ("int8", "uint8")
                and weight.ndim > 1
                and (np.abs(weight.astype(int)) > _SAFE_WEIGHT).any()
            ):
                raise refusal(
                    node.op_type,
                    node.name or node.output[0],
                    "this processor adds products of 8-bit values in 16 bits, which may saturate",
                    "compress with reduce_range=True, or certify on a processor with VNNI",
                )


@functools.cache
def saturates() -> bool:
    """Return whether onnxruntime's products of 8-bit values saturate on this processor: one is computed."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from pytest_modelserve._onnx.sessions import open_graph_session, run_session

    count = 64
    stored = {
        "scale": np.float32(1.0),
        "zero": np.uint8(0),
        "weight": np.full((count, 16), 127, np.int8),
        "weight_zero": np.int8(0),
        "out": np.float32(count * 255),
    }
    node = helper.make_node(
        "QLinearMatMul", ["x", "scale", "zero", "weight", "scale", "weight_zero", "out", "zero"], ["y"]
    )
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [16, count])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    assert isinstance(model, onnx.ModelProto)
    values = run_session(open_graph_session(model, {}), {"x": np.full((16, count), 255, np.uint8)}, ["y"])
    return not bool((values["y"] == 127).all())
