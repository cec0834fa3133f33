"""What a QuantizeLinear or DequantizeLinear node can hold of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pytest_modelserve.parity.locating.graph import Graph


def quantiser(graph: Graph, nodes: Sequence[onnx.NodeProto]) -> tuple[onnx.NodeProto, tuple[str, ...]]:
    """The first node of `nodes` that quantises, or the last one of all, and the range that its scale spans."""
    node = next((node for node in nodes if node.op_type == "QuantizeLinear"), nodes[-1])
    scale = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
    zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
    if scale is None or zero is None or scale.size != 1 or zero.dtype.kind not in "iu":
        return node, ()
    limits, step = np.iinfo(zero.dtype), float(scale.item())
    low, high = (step * (end - int(zero.item())) for end in (limits.min, limits.max))
    return node, (f"scale {node.input[1]!r} of {step:.4g} spans {low:.4g} to {high:.4g}",)


def spanned(values: NDArray[Any]) -> str:
    """A sentence with the range of the reference's finite values."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "the reference has no finite value there"
    return f"the reference's values span {float(finite.min()):.4g} to {float(finite.max()):.4g}"
