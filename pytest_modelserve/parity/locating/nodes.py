"""What is different between two nodes: operator, attributes, wiring and stored weights, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pytest_modelserve.parity.locating.graph import Graph
from pytest_modelserve.parity.locating.precision import epsilon, largest

# Weights that were computed once more (folded, say) differ in their last bits.
_ROUNDED_STEPS = 4


def named(node: onnx.NodeProto) -> str:
    """`Gemm 'node_linear'`; a node without a name is called by what it makes."""
    return f"{node.op_type} {name_of(node)!r}"


def name_of(node: onnx.NodeProto) -> str:
    """The name of `node`, or of the first tensor that it makes."""
    return str(node.name or next(filter(None, node.output), ""))


def changes(
    candidate: Graph, ours: onnx.NodeProto, reference: Graph, theirs: onnx.NodeProto, same: Mapping[str, str]
) -> tuple[str, ...]:
    """One sentence for each difference between node `ours` of `candidate` and `theirs` of `reference`.

    `same` gives the reference's name of each tensor of the candidate that both have. Differences of stored weights in
    the last bits are none.
    """
    if (ours.domain, ours.op_type) != (theirs.domain, theirs.op_type):
        return (f"operator is {ours.op_type} where the reference has {theirs.op_type}",)
    return (
        *_attributes(_settings(candidate, ours), _settings(reference, theirs)),
        *_inputs(candidate, ours, reference, theirs, same),
    )


def _settings(graph: Graph, node: onnx.NodeProto) -> dict[str, Any]:
    """Every attribute's value, those that the operator's definition implies included."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    found: dict[str, Any] = {}
    try:
        schema = onnx.defs.get_schema(node.op_type, graph.opsets.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        pass  # an operator that onnx itself does not know
    else:
        for name, formal in schema.attributes.items():
            if formal.default_value.type != onnx.AttributeProto.UNDEFINED:
                found[name] = onnx.helper.get_attribute_value(formal.default_value)
    return found | {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def _attributes(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*ours, *theirs}):
        if name not in ours or name not in theirs:
            side, other = ("candidate", "reference") if name in ours else ("reference", "candidate")
            value = _told(ours.get(name, theirs.get(name)))
            yield f"attribute {name} is {value} in the {side} and absent in the {other}"
        elif ours[name] != theirs[name]:
            yield f"attribute {name} is {_told(ours[name])} where the reference has {_told(theirs[name])}"


def _told(value: Any) -> str:
    if isinstance(value, bytes):
        return repr(value.decode(errors="replace"))
    if isinstance(value, float):
        return f"{value:g}"
    return f"a {type(value).__name__}" if hasattr(value, "SerializeToString") else str(value)


def _inputs(
    candidate: Graph, ours: onnx.NodeProto, reference: Graph, theirs: onnx.NodeProto, same: Mapping[str, str]
) -> Iterator[str]:
    for place, (mine, other) in enumerate(zip_longest(ours.input, theirs.input, fillvalue="")):
        stored, expected = candidate.constants.get(mine), reference.constants.get(other)
        if stored is not None and expected is not None:
            yield from _weights(f"weight {mine!r}", stored, expected)
        elif (stored is None) != (expected is None) or bool(mine) != bool(other):
            yield f"input {place} is {_kind(mine, stored)} where the reference has {_kind(other, expected)}"
        elif mine and same.get(mine, mine) != other and (mine in same or other in same.values()):
            yield f"input {place} is {mine!r} where the reference takes {other!r}"


def _kind(name: str, stored: NDArray[Any] | None) -> str:
    if not name:
        return "absent"
    return f"{name!r}" if stored is None else f"the stored {name!r}"


def _weights(what: str, ours: NDArray[Any], theirs: NDArray[Any]) -> Iterator[str]:
    if ours.dtype != theirs.dtype:
        yield f"{what} is {ours.dtype} where the reference has {theirs.dtype}"
    if ours.shape != theirs.shape:
        if ours.ndim > 1 and ours.shape == theirs.T.shape and np.array_equal(ours, theirs.T):
            yield f"{what} is the reference's transposed"
        else:
            yield f"{what} has shape {list(ours.shape)} where the reference has {list(theirs.shape)}"
        return
    if ours.ndim > 1 and not np.array_equal(ours, theirs) and np.array_equal(ours, np.swapaxes(theirs, -1, -2)):
        yield f"{what} is the reference's transposed"
        return
    yield from _values(what, ours, theirs)


def _values(what: str, ours: NDArray[Any], theirs: NDArray[Any]) -> Iterator[str]:
    if ours.dtype.kind in "fiub" and theirs.dtype.kind in "fiub":
        error = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        allowed = _ROUNDED_STEPS * epsilon(ours, theirs) * largest(theirs) if theirs.dtype.kind == "f" else 0.0
        differ = ~(error <= allowed) & ~(np.isnan(ours) & np.isnan(theirs)) & (ours != theirs)
    else:
        error = differ = np.asarray(ours != theirs)
    if differ.any():
        ranked = np.where(differ, np.nan_to_num(error.astype(np.float64), nan=np.inf), -1)
        index = tuple(int(i) for i in np.unravel_index(int(ranked.argmax()), ranked.shape))
        told = f"{ours[index]!s} where the reference has {theirs[index]!s}"
        if ours.size == 1:
            yield f"{what} is {told}"
        else:
            yield f"{what} differs in {int(differ.sum())} of {ours.size} elements, most at {list(index)}: {told}"
