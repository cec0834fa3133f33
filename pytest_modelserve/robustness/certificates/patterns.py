"""Parts of a graph that certificates read as one: GELU by Erf, SiLU, replaced NaN, and the head after the scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.robustness.certificates.base import Node, refusal

if TYPE_CHECKING:
    import onnx

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


# Operators after the scores under which the class with the highest score stays the same, and those that pass on what
# these return.
_NORMALIZED = ("Softmax", "LogSoftmax")
_MONOTONE = (*_NORMALIZED, "ArgMax")
_PASSING = ("Identity", "Cast", "ZipMap")
_PASSING_INDICES = (*_PASSING, "Reshape", "Squeeze", "ArrayFeatureExtractor", "Gather")
_WIDE_FLOATS = (1, 11)  # TensorProto.FLOAT and DOUBLE: a narrower type may make scores equal


def head_of(
    name: str, writers: Mapping[str, onnx.NodeProto], dependent: set[str], start: str
) -> tuple[str, tuple[onnx.NodeProto, ...]]:
    """Return the value that holds the scores, and the operators between it and the output, the last one first."""
    nodes: list[onnx.NodeProto] = []
    value = name
    while value != start and writers[value].op_type in (*_MONOTONE, *_PASSING_INDICES):
        node = writers[value]
        variable = [each for each in node.input if each in dependent]
        if len(variable) != 1:
            break
        nodes.append(node)
        value = variable[0]
    first = next((at for at, node in enumerate(nodes) if node.op_type == "ArgMax"), -1)
    kept, normalized = 0, False
    for at, node in enumerate(nodes):
        if at > first and not _keeps_order(node):
            break
        if node.op_type in _NORMALIZED:
            if normalized:  # probabilities of many classes are so close that those after a second one are equal
                break
            normalized = True
        if node.op_type in (*_MONOTONE, "ZipMap"):
            kept = at + 1
    if not kept:
        return name, ()
    head = tuple(nodes[:kept])
    return next(each for each in head[-1].input if each in dependent), head


def _keeps_order(node: onnx.NodeProto) -> bool:
    """Return whether the class with the highest score stays the same under an operator on scores."""
    if node.op_type == "Cast":
        return any(each.name == "to" and each.i in _WIDE_FLOATS for each in node.attribute)
    return node.op_type in (*_MONOTONE, *_PASSING)


def tables_of(head: Sequence[onnx.NodeProto], dependent: set[str]) -> tuple[str, ...]:
    """Return the names of the constants that hold the label of each class, the last one first."""
    found = []
    for node in head:
        if node.op_type in ("ArrayFeatureExtractor", "Gather"):
            if node.input[1] not in dependent:
                raise refusal(node.op_type, title_of(node), "it chooses among the labels of the rows")
            found.append(node.input[0])
    return tuple(found)


def classes_of(tables: Sequence[NDArray[Any]]) -> NDArray[Any] | None:
    """Return the label of each column by tables that are applied one after another, the last one first."""
    labels: NDArray[Any] | None = None
    for table in reversed(tables):
        labels = table.reshape(-1) if labels is None else table.reshape(-1)[labels.astype(np.int64)]
    return labels


def check_axes(head: Sequence[onnx.NodeProto], rank: int) -> None:
    """Raise ArtifactError for operators after the scores that work along another axis than that of the classes."""
    for node in head:
        attributes = {each.name: each.i for each in node.attribute}
        axis = attributes.get("axis", 0 if node.op_type == "ArgMax" else -1)
        if node.op_type in _MONOTONE and axis not in (-1, rank - 1):
            raise refusal(node.op_type, title_of(node), f"it works along axis {axis}, which is not the last one")


def title_of(node: onnx.NodeProto) -> str:
    """Return the name of a node, or that of its output."""
    return str(node.name or next(filter(None, node.output), ""))
