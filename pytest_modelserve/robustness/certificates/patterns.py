"""Groups of nodes that compute one function of each value: GELU by Erf, SiLU, and the replacement of NaN."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pytest_modelserve.robustness.certificates.base import Node

_CLOSE = 2.0**-22
"""Relative distance of a constant from its value: a rounding of float32, which the error radius of GELU covers."""


def fused(nodes: Sequence[Node], output: str) -> tuple[Node, ...]:
    """Return the nodes with each such group as one node, in the place of its last one."""
    writers = {node.output: node for node in nodes}
    reads = Counter(name for node in nodes for name in node.sources)
    found: dict[str, Node] = {}
    for node in nodes:
        if node.op in ("Mul", "Div"):
            fusion = _gelu_or_silu(node, writers)
            if fusion is not None:
                found[node.output] = fusion
        elif node.op == "Where" and (source := _imputed(node, writers)):
            found[node.output] = _identity(node, source)
    kept: list[Node] = []
    wanted = {output}
    for node in reversed(nodes):
        chosen = found.get(node.output, node)
        # A value that another node reads, too, stays as it is.
        if node.output in wanted or reads[node.output] == 0:
            kept.append(chosen)
            wanted.update(chosen.sources)
    return tuple(reversed(kept))


def _imputed(node: Node, writers: Mapping[str, Node]) -> str:
    """Return x of Where(IsNaN(x), constant, x), which is x: no bound holds of values that may be NaN."""
    condition, source = writers.get(node.inputs[0]), node.inputs[2]
    is_imputed = condition is not None and condition.op == "IsNaN" and condition.sources == (source,)
    return source if is_imputed and 1 in node.constants and node.shapes[-1] == node.shape else ""


def _identity(node: Node, source: str) -> Node:
    from onnx import helper

    proto = helper.make_node("Identity", [source], [node.output], name=node.name)
    return replace(
        node,
        op="Identity",
        inputs=(source,),
        constants={},
        shapes=(node.shape,),
        dtypes=(node.dtype,),
        proto=(proto, node.proto[1]),
    )


def _gelu_or_silu(node: Node, writers: Mapping[str, Node]) -> Node | None:
    constant, factors = _factors(node.output, writers)
    if len(factors) != 2:
        return None
    for x, other in (factors, factors[::-1]):
        gate = writers.get(other)
        if gate is None:
            continue
        if gate.op == "Sigmoid" and gate.sources == (x,) and constant == 1.0:
            return _of(node, "Silu", x, gate)
        if gate.op == "Add" and _is_close(constant * 2.0, 1.0) and _only_constant(gate) == 1.0:
            inner = writers.get(gate.sources[0])
            if inner is None or inner.op != "Erf":
                continue
            scale, arguments = _factors(inner.sources[0], writers)
            if arguments == [x] and _is_close(scale * math.sqrt(2.0), 1.0):
                return _of(node, "Gelu", x, gate)
    return None


def _of(node: Node, op: str, source: str, gate: Node) -> Node:
    return replace(
        node,
        op=op,
        inputs=(source,),
        attributes={},
        constants={},
        shapes=(gate.shape,),
        dtypes=(node.dtype,),
    )


def _factors(name: str, writers: Mapping[str, Node]) -> tuple[float, list[str]]:
    """Return a value as the product of a number and other values."""
    node = writers.get(name)
    if node is None or node.op not in ("Mul", "Div"):
        return 1.0, [name]
    if node.constants:
        number = _only_constant(node)
        if number is None or (node.op == "Div" and (number == 0.0 or 0 in node.constants)):
            return 1.0, [name]
        constant, factors = _factors(node.sources[0], writers)
        return (constant / number if node.op == "Div" else constant * number), factors
    if node.op == "Div":
        return 1.0, [name]
    parts = [_factors(each, writers) for each in node.sources]
    return math.prod(part[0] for part in parts), [each for part in parts for each in part[1]]


def _only_constant(node: Node) -> float | None:
    """Return the constant of a node with one, if it is one number."""
    if len(node.constants) != 1:
        return None
    (value,) = node.constants.values()
    return float(np.reshape(value, ())) if np.size(value) == 1 else None


def _is_close(value: float, expected: float) -> bool:
    return abs(value - expected) <= _CLOSE * expected
