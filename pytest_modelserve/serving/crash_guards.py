"""Known crashes of onnxruntime: inputs and graphs on which it ends the process instead of raising.

Seen with onnxruntime 1.32 on x86-64. GRU, LSTM and DynamicQuantizeLSTM abort (SIGABRT) on an empty sequence or batch.
Div of int32 or int64 crashes (SIGFPE) on minimum / -1, which does not fit the type. Such inputs are rejected before the
run. Values that the model computes are not tracked, so a graph that turns other inputs into such values still crashes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError

if TYPE_CHECKING:
    import onnx

    from pytest_modelserve._onnx.scopes import Scope

EMPTY_ABORTS = ("DynamicQuantizeLSTM", "GRU", "LSTM")
DIVISION_TRAPS = ("int32", "int64")  # the narrower types are widened before they are divided


@dataclass(frozen=True, slots=True)
class KnownCrashes:
    """The inputs to reject.

    `empty` names the operators that abort on empty inputs. `minimum` names the integer dtypes in which the model may
    divide the smallest value. `from_float` names those of them to which it also casts: there NaN, infinities and
    numbers out of range become the smallest value.
    """

    empty: tuple[str, ...] = ()
    minimum: tuple[str, ...] = ()
    from_float: tuple[str, ...] = ()

    def check(self, feed: Mapping[str, NDArray[Any]]) -> None:
        """Raise InputError for the first input on which onnxruntime may crash."""
        for name, array in feed.items():
            if self.empty and array.size == 0:
                raise InputError(
                    f"input {name!r} is empty (shape {list(array.shape)}): onnxruntime crashes when "
                    f"{' or '.join(self.empty)} gets an empty batch or sequence; remove such inputs"
                )
            for dtype in self.minimum:
                self._check_minimum(name, array, np.dtype(dtype))

    def _check_minimum(self, name: str, array: NDArray[Any], dtype: np.dtype[Any]) -> None:
        is_wide_integer = array.dtype.kind in "iu" and array.dtype.itemsize >= dtype.itemsize
        is_cast_float = array.dtype.kind == "f" and dtype.name in self.from_float
        if not (is_wide_integer or is_cast_float):
            return
        smallest = np.iinfo(dtype).min
        with np.errstate(invalid="ignore"):
            is_smallest = array.astype(dtype, copy=False) == smallest  # numpy casts as the model's own Cast would
        if is_smallest.any():
            first = tuple(int(i) for i in np.argwhere(is_smallest)[0])
            raise InputError(
                f"input {name!r} holds {array[first]} at {list(first)}, which is {smallest} as {dtype.name}: the model "
                f"divides {dtype.name}, and onnxruntime crashes on {smallest} / -1; remove such values"
            )


def find_known_crashes(model: onnx.ModelProto) -> KnownCrashes:
    """Return the known crashes of every graph of `model`: the main graph, its subgraphs, and local functions.

    A division counts unless its type, a constant divisor without -1 or a constant dividend rules the crash out. A
    division of unknown type counts as both int32 and int64.
    """
    from pytest_modelserve._onnx.scopes import cast_type, walk

    empty: set[str] = set()
    minimum: set[str] = set()
    certain: set[str] = set()
    cast: set[str | None] = set()
    for node, scope in walk(model):
        if node.op_type in EMPTY_ABORTS:
            empty.add(node.op_type)
        elif node.domain not in ("", "ai.onnx"):
            continue  # another operator of the same name
        elif node.op_type == "Cast":
            cast.add(cast_type(node))
        elif node.op_type == "Div" and _may_trap(node, scope):
            kind = scope.type_of((*node.input, *node.output))
            if kind is None:
                minimum.update(DIVISION_TRAPS)
            elif kind in DIVISION_TRAPS:
                minimum.add(kind)
                certain.add(kind)
    return KnownCrashes(
        empty=tuple(sorted(empty)),
        minimum=tuple(sorted(minimum)),
        from_float=tuple(sorted(certain & cast)),
    )


def _may_trap(division: onnx.NodeProto, scope: Scope) -> bool:
    dividend, divisor = (scope.constant(name) for name in division.input)
    if divisor is not None and not (divisor == -1).any():
        return False
    return dividend is None or (dividend.dtype.kind == "i" and bool((dividend == np.iinfo(dividend.dtype).min).any()))


# Operators that move values or change their type, and compute nothing.
_MOVES = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def crashes_when_optimized(model: onnx.ModelProto) -> bool:
    """Return True if a MatMul reads an input of the model that was transposed in float16, without computation between.

    The last level of graph optimization then crashes (SIGSEGV) while the session opens, also with a Cast, Reshape or
    Identity in between. The levels below are unaffected, and so are values that a layer has computed.
    """
    from pytest_modelserve._onnx.scopes import walk

    moved = {value.name for value in model.graph.input}
    transposed: set[str] = set()
    for node, scope in walk(model):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "MatMul" and transposed.intersection(node.input):
            return True
        if node.op_type in _MOVES and moved.intersection(node.input[:1]):
            moved.update(node.output)
            is_transposed = node.op_type == "Transpose" and scope.type_of((*node.input, *node.output)) == "float16"
            if is_transposed or transposed.intersection(node.input[:1]):
                transposed.update(node.output)
    return False
