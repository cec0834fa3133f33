"""Inputs on which onnxruntime ends the whole process instead of raising, found by reading the model's graph.

Seen with onnxruntime 1.32 on x86-64: GRU, LSTM and their quantised form abort (SIGABRT) on an empty sequence or batch,
and Div of int32 or int64 dies (SIGFPE) on minimum / -1, which does not fit the type. Nothing can be caught afterwards,
so such inputs are refused before the run. What the model computes on the way is not followed: a graph that turns
harmless inputs into such values still ends the process.
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
    """What to refuse.

    `empty` names the operators of the model that abort on empty inputs, `minimum` the integer dtypes in which it may
    divide the least value, and `from_float` those in which it does divide and to which it casts: a NaN, an infinity and
    a number out of range become the least value there.
    """

    empty: tuple[str, ...] = ()
    minimum: tuple[str, ...] = ()
    from_float: tuple[str, ...] = ()

    def refuse(self, feed: Mapping[str, NDArray[Any]]) -> None:
        """Raise InputError for the first input on which onnxruntime may end the process."""
        for name, array in feed.items():
            if self.empty and array.size == 0:
                raise InputError(
                    f"input {name!r} has shape {list(array.shape)}, which is empty: onnxruntime ends the whole process "
                    f"where {' or '.join(self.empty)} meets an empty batch or sequence; leave such inputs out"
                )
            for dtype in self.minimum:
                self._refuse_minimum(name, array, np.dtype(dtype))

    def _refuse_minimum(self, name: str, array: NDArray[Any], dtype: np.dtype[Any]) -> None:
        is_wide_integer = array.dtype.kind in "iu" and array.dtype.itemsize >= dtype.itemsize
        is_cast_float = array.dtype.kind == "f" and dtype.name in self.from_float
        if not (is_wide_integer or is_cast_float):
            return
        least = np.iinfo(dtype).min
        with np.errstate(invalid="ignore"):
            reaches = array.astype(dtype, copy=False) == least  # numpy casts as the model's own Cast would
        if reaches.any():
            first = tuple(int(i) for i in np.argwhere(reaches)[0])
            raise InputError(
                f"input {name!r} holds {array[first]} at {list(first)}, which as {dtype.name} is {least}: the model "
                f"divides {dtype.name}, and onnxruntime ends the whole process on {least} / -1; leave such values out"
            )


def find_known_crashes(model: onnx.ModelProto) -> KnownCrashes:
    """The hazards of every graph of `model`: the main one, the branches and bodies inside it, and local functions.

    A division counts unless its type, a constant divisor without -1 or a constant dividend rules the trap out; where
    the model does not tell its type, it counts as both.
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


# Models on which onnxruntime's last level of optimisation ends the whole process, found by reading their graph.
#
# Seen with onnxruntime 1.32 on x86-64: a float16 Transpose of an input that feeds a MatMul (SIGSEGV while the session
# opens), also with a Cast, Reshape or Identity in between. The levels below are fine, and so are values that a layer
# has
# computed.


# Operators that move values, or write them in another type, and compute nothing.
_MOVES = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def crashes_when_optimized(model: onnx.ModelProto) -> bool:
    """Whether a MatMul reads an input of the model that was transposed in float16, with nothing computed in between."""
    from pytest_modelserve._onnx.scopes import walk

    moved = {value.name for value in model.graph.input}
    turned: set[str] = set()
    for node, scope in walk(model):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "MatMul" and turned.intersection(node.input):
            return True
        if node.op_type in _MOVES and moved.intersection(node.input[:1]):
            moved.update(node.output)
            is_turn = node.op_type == "Transpose" and scope.type_of((*node.input, *node.output)) == "float16"
            if is_turn or turned.intersection(node.input[:1]):
                turned.update(node.output)
    return False
