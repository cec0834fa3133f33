"""Outputs of operators on small constants, so that a divisor or a size that is computed from them is known."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.scanning.abstract_values import MAX_ELEMENTS, Shape, Value, numpy_dtype


def folded(
    op: str, inputs: Sequence[Value], attributes: Mapping[str, Any], shape: Shape | None, dtype: int
) -> NDArray[Any] | None:
    """Return the output of an operator on small constants; None if it is not computed here."""
    rule = _FOLDS.get(op)
    if rule is None or not inputs or any(value.const is None for value in inputs):
        return None
    arrays = [value.const for value in inputs]
    try:
        with np.errstate(all="ignore"):
            if shape is not None and math.prod(axis or 1 for axis in shape) > MAX_ELEMENTS:
                return None
            found = np.asarray(rule(arrays, attributes))
            return None if found.size > MAX_ELEMENTS else found.astype(numpy_dtype(dtype), copy=False)
    except (ValueError, TypeError, IndexError, KeyError, ArithmeticError, AttributeError, MemoryError):
        return None


def _of_all(function: Callable[..., Any], a: list[Any], _: Mapping[str, Any]) -> Any:
    return functools.reduce(function, a)


def _of_first(function: Callable[..., Any], a: list[Any], _: Mapping[str, Any]) -> Any:
    return function(a[0])


def _divided(a: list[Any], _: Mapping[str, Any]) -> Any:
    if a[0].dtype.kind == "f":
        return a[0] / a[1]
    if (a[1] == 0).any():
        raise ZeroDivisionError
    return np.trunc(a[0].astype(np.float64) / a[1]) if a[0].dtype.itemsize < 8 else a[0] // a[1]


def _sliced(a: list[Any], attributes: Mapping[str, Any]) -> Any:
    starts, ends = (a[1], a[2]) if len(a) > 2 else (attributes["starts"], attributes["ends"])
    axes = a[3] if len(a) > 3 else attributes.get("axes", range(len(starts)))
    steps = a[4] if len(a) > 4 else [1] * len(starts)
    index = [slice(None)] * a[0].ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[int(axis)] = slice(int(start), int(end), int(step))
    return a[0][tuple(index)]


def _axes(a: list[Any], attributes: Mapping[str, Any]) -> tuple[int, ...] | None:
    given = a[1] if len(a) > 1 else attributes.get("axes")
    return None if given is None else tuple(int(axis) for axis in np.ravel(given))


def _reduced(function: Callable[..., Any]) -> Callable[[list[Any], Mapping[str, Any]], Any]:
    return lambda a, attributes: function(a[0], axis=_axes(a, attributes), keepdims=bool(attributes.get("keepdims", 1)))


_FOLDS: dict[str, Callable[[list[Any], Mapping[str, Any]], Any]] = {
    **{
        name: functools.partial(_of_all, function)
        for name, function in (
            ("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply), ("Min", np.minimum), ("Max", np.maximum),
            ("Pow", np.power), ("Equal", np.equal), ("Less", np.less), ("Greater", np.greater), ("And", np.logical_and),
            ("Or", np.logical_or), ("BitwiseAnd", np.bitwise_and), ("BitwiseOr", np.bitwise_or),
            ("BitwiseXor", np.bitwise_xor),
        )
    },
    **{
        name: functools.partial(_of_first, function)
        for name, function in (
            ("Identity", np.asarray), ("Neg", np.negative), ("Abs", np.abs), ("Floor", np.floor), ("Ceil", np.ceil),
            ("Round", np.rint), ("Sign", np.sign), ("Sqrt", np.sqrt), ("Not", np.logical_not), ("Cast", np.asarray),
            ("CastLike", np.asarray), ("BitwiseNot", np.invert),
        )
    },
    "Div": _divided,
    "Mod": lambda a, _: np.mod(a[0], a[1]) if (a[1] != 0).all() else None,
    "Concat": lambda a, at: np.concatenate(a, at["axis"]),
    "Gather": lambda a, at: np.take(a[0], a[1].astype(np.int64), at.get("axis", 0)),
    "Slice": _sliced,
    "Reshape": lambda a, _: a[0].reshape([a[0].shape[i] if n == 0 else int(n) for i, n in enumerate(a[1])]),
    "Unsqueeze": lambda a, at: np.expand_dims(a[0], _axes(a, at) or ()),
    "Squeeze": lambda a, at: np.squeeze(a[0], _axes(a, at)),
    "Transpose": lambda a, at: np.transpose(a[0], at.get("perm")),
    "ReduceProd": _reduced(np.prod),
    "ReduceSum": _reduced(np.sum),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
    "Where": lambda a, _: np.where(*a),
    "Range": lambda a, _: np.arange(a[0].item(), a[1].item(), a[2].item()),
    "Expand": lambda a, _: np.broadcast_to(a[0], np.broadcast_shapes(a[0].shape, tuple(map(int, a[1])))),
    "ConstantOfShape": lambda a, at: np.full(tuple(map(int, a[0])), at["value"].const.item() if "value" in at else 0),
    "Clip": lambda a, _: np.clip(a[0], a[1], a[2]) if len(a) == 3 else np.maximum(a[0], a[1]),
}  # fmt: skip
