"""The table of operators that certificates cover, and products of two values. Everything else is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.robustness.certificates.activations import Piecewise, Power, Relu, Smooth
from pytest_modelserve.robustness.certificates.base import Node, Operator, Relaxation, dot_rows, refusal, unbroadcast
from pytest_modelserve.robustness.certificates.convolutions import AveragePool, Convolution, MaxPool
from pytest_modelserve.robustness.certificates.interval_arithmetic import (
    Array,
    Box,
    own_error,
    smallest_normal,
    unit_roundoff,
)
from pytest_modelserve.robustness.certificates.linear_operators import (
    Concat,
    Factor,
    Matrix,
    Moved,
    Reduction,
    Sum,
)
from pytest_modelserve.robustness.certificates.quantized_operators import Dequantize, Quantize

_MOVES = (
    "Identity", "Dropout", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Pad",
    "Expand", "Tile", "Split", "DepthToSpace", "SpaceToDepth",
)  # fmt: skip

OPERATORS: dict[str, Callable[[Node], Operator]] = {
    "Gemm": Matrix,
    "MatMul": Matrix,
    "Add": Sum,
    "Sub": Sum,
    "Sum": Sum,
    "Mul": lambda node: Product(node) if len(node.positions) == 2 else Factor(node),
    "Div": Factor,
    "Neg": Factor,
    "ai.onnx.ml.Scaler": Factor,
    "Concat": Concat,
    "Conv": Convolution,
    "AveragePool": AveragePool,
    "GlobalAveragePool": AveragePool,
    "MaxPool": MaxPool,
    "GlobalMaxPool": MaxPool,
    "BatchNormalization": Factor,
    "ReduceMean": Reduction,
    "ReduceSum": Reduction,
    "Cast": Factor,
    **dict.fromkeys(_MOVES, Moved),
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu"), Relu),
    **dict.fromkeys(
        ("Sigmoid", "Tanh", "Erf", "Gelu", "Silu", "HardSwish", "Softplus", "Softsign", "Elu", "Selu", "Celu"), Smooth
    ),
    "Pow": Power,
    **dict.fromkeys(("Clip", "Abs", "HardSigmoid", "Max", "Min"), Piecewise),
    "QuantizeLinear": Quantize,
    "DequantizeLinear": Dequantize,
}  # fmt: skip
"""Operator by name; of other domains "domain.Name"."""

_EXACT = (*_MOVES, "Concat", "MaxPool", "GlobalMaxPool", "Relu", "QuantizeLinear")
"""Operators that compute whole numbers as they compute floats: none wraps around or rounds."""


_AT_THE_END = "it is covered only where it is the last operator before the output or the labels"


def operator_of(node: Node) -> Operator:
    """Return the bounds of a node; ArtifactError with its name for an operator that is not in the table."""
    if node.op not in OPERATORS:
        raise refusal(node.op, node.name, _AT_THE_END if node.op in ("Softmax", "LogSoftmax", "ArgMax") else "")
    if node.output_index and node.op != "Split":
        raise node.refused(f"its output {node.output!r} is not its first one")
    if not node.dtype.startswith(("float", "bfloat")) and node.op not in (*_EXACT, "Cast"):
        raise node.refused(f"it computes in {node.dtype}: convert its input to float32 before")
    return OPERATORS[node.op](node)


class Product(Operator):
    """Mul of two variable inputs, which may be the same.

    Planes of McCormick 1976, Mathematical Programming 10:147-175; the one that is better at the middle of the box.
    """

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        if len(node.positions) != 2 or any(len(shape) != len(node.shape) for shape in node.shapes):
            raise node.refused("its inputs have another number of axes than its output")

    def interval(self, boxes: Sequence[Box]) -> Box:
        """Return the least and the largest product of the ends."""
        x, y = boxes
        ends = np.stack(
            [x.lower * y.lower, x.lower * y.upper, x.upper * y.lower, x.upper * y.upper],
        )
        found = Box(ends.min(axis=0), ends.max(axis=0))
        if self.node.sources[0] == self.node.sources[1]:
            both = (x.lower < 0) & (x.upper > 0)
            ends = np.stack([x.lower**2, x.upper**2])
            return Box(np.where(both, 0.0, ends.min(axis=0)), ends.max(axis=0))
        return found

    def undecided(self, boxes: Sequence[Box]) -> Sequence[NDArray[np.bool_] | None]:
        """Return where the boxes are wide enough to matter."""
        return [box.upper - box.lower > 1e-6 for box in boxes]

    def relax(self, boxes: Sequence[Box], slopes: Array | None = None) -> Relaxation:
        """Return one plane below and one above."""
        shape = (len(boxes[0].lower), *self.node.shape)
        xl, xu, yl, yu = (np.broadcast_to(each, shape) for box in boxes for each in (box.lower, box.upper))
        mx, my = 0.5 * (xl + xu), 0.5 * (yl + yu)

        def best(first: tuple[Array, Array], second: tuple[Array, Array], sign: float) -> tuple[Array, Array, Array]:
            # A plane a x + b y - a b touches the product where y = a or x = b.
            (a, b), (c, d) = first, second
            better = sign * (a * mx + b * my - a * b) >= sign * (c * mx + d * my - c * d)
            slope_x, slope_y = np.where(better, a, c), np.where(better, b, d)
            return slope_x, slope_y, -slope_x * slope_y

        below, above = best((yl, xl), (yu, xu), 1.0), best((yu, xl), (yl, xu), -1.0)
        margin = own_error(8 * (1 + boxes[0].magnitude) * (1 + boxes[1].magnitude))
        return _Planes(self.node, below, above, margin)

    def error(self, boxes: Sequence[Box]) -> Array | float:
        """Return one rounding of the product."""
        magnitude = boxes[0].magnitude * boxes[1].magnitude
        unit = 2 * unit_roundoff(self.node.dtype)
        return np.asarray(unit * magnitude + smallest_normal(self.node.dtype) + own_error(magnitude, self.node.size))


@dataclass(frozen=True, slots=True, eq=False)
class _Planes(Relaxation):
    """Slopes of x and y and an offset, below and above; `margin` widens both for rounding."""

    node: Node
    below: tuple[Array, Array, Array]
    above: tuple[Array, Array, Array]
    margin: Array

    def backward(self, coefficients: Array) -> tuple[list[Array], Array | float]:
        """Take the plane below for positive coefficients and that above for negative ones."""
        negative = np.minimum(coefficients, 0.0)
        positive = coefficients - negative
        constant = dot_rows(positive, self.below[2] - self.margin) + dot_rows(negative, self.above[2] + self.margin)
        parts = [
            unbroadcast(positive * self.below[at][:, None] + negative * self.above[at][:, None], shape)
            for at, shape in enumerate(self.node.shapes)
        ]
        return parts, constant
