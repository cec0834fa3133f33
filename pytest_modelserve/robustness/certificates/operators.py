"""The table of operators that certificates cover. Everything else is refused by name."""

from __future__ import annotations

from collections.abc import Callable

from pytest_modelserve.robustness.certificates.activations import Piecewise, Power, Relu, Smooth
from pytest_modelserve.robustness.certificates.base import Node, Operator, refusal
from pytest_modelserve.robustness.certificates.convolutions import AveragePool, Convolution, MaxPool
from pytest_modelserve.robustness.certificates.linear_operators import (
    Cast,
    Concat,
    Factor,
    Matrix,
    Moved,
    Reduction,
    Sum,
)
from pytest_modelserve.robustness.certificates.products import Product
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
    "Cast": Cast,
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
