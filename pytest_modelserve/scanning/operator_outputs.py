"""What an operator makes of abstract values: element types, shapes, constants and bounds of its outputs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pytest_modelserve.scanning.abstract_values import (
    FLOATS,
    MAX_ELEMENTS,
    UNKNOWN,
    Shape,
    Value,
    constant,
    join,
    names_in,
    numpy_dtype,
)
from pytest_modelserve.scanning.output_shapes import shape_of

# A free axis has some size up to the most, and counts as the nominal one where work is estimated.
_MOST_SIZE, _NOMINAL_SIZE = 2.0**31, 64.0
_NUMPY_INTEGERS = {2, 3, 4, 5, 6, 7, 12, 13}
_INT64 = 7


def outputs_of(
    node: onnx.NodeProto, inputs: Sequence[Value], attributes: Mapping[str, Any], version: int
) -> list[Value]:
    """Return the outputs of a node that has no subgraph and calls no function."""
    found = [Value(dtype) for dtype in _output_dtypes(node, inputs, attributes, version)]
    if not found:
        return found
    is_fixed = all(value.is_fixed for value in inputs) and not node.op_type.startswith(("Random", "Multinomial"))
    shape = shape_of(node.op_type, inputs, attributes)
    first = replace(found[0], shape=shape, is_fixed=is_fixed)
    if node.op_type == "Shape" and inputs and inputs[0].shape is not None:
        start, end = (attributes.get(name) for name in ("start", "end"))
        if all(each is None or isinstance(each, int) for each in (start, end)):
            return [_of_axes(inputs[0].shape[start:end])]
    if node.op_type in ("Shape", "Size", "SequenceLength"):
        known = inputs[0].shape if inputs and node.op_type == "Size" else None
        if known is not None and None not in known:
            return [constant(np.array(math.prod(a for a in known if a is not None)), _INT64)]
        return [replace(first, low=0, high=_MOST_SIZE, nominal=_NOMINAL_SIZE, is_shape=True)]
    const = _folded(node.op_type, inputs, attributes, shape, first.dtype) if is_fixed else None
    if const is not None:
        return [constant(const, first.dtype), *found[1:]]
    if first.dtype == 0 or first.is_integer or first.dtype == 9 or node.op_type in ("Cast", "Floor", "Ceil", "Clip"):
        first = _in_range(_with_bounds(node.op_type, inputs, first))
    return [first, *found[1:]]


def _of_axes(axes: Shape) -> Value:
    """Return the output of Shape."""
    if None not in axes:
        return constant(np.array(axes, np.int64), _INT64)
    known = [axis for axis in axes if axis is not None]
    return Value(
        _INT64,
        (len(axes),),
        None,
        min([*known, 0]),
        max([*known, _MOST_SIZE]),
        max([*known, _NOMINAL_SIZE]),
        is_shape=True,
    )


_KEEPS = names_in(
    "Identity Cast Gather Slice Squeeze Unsqueeze Reshape Flatten Transpose Expand Tile ReduceMax ReduceMin Concat "
    "Split GatherElements GatherND Relu Compress Unique TopK Round Floor Ceil SequenceAt OptionalGetElement CastLike"
)
"""Operators whose outputs lie between the bounds of their inputs."""


def _with_bounds(op: str, inputs: Sequence[Value], first: Value) -> Value:
    """Return an output with bounds of its elements, by interval arithmetic."""
    if not inputs:
        return first
    inputs = [_limited(value) for value in inputs]
    a, b = inputs[0], inputs[1] if len(inputs) > 1 else UNKNOWN
    if op in _KEEPS:
        of = inputs if op == "Concat" else inputs[:1]
        return replace(
            first,
            low=min(each.low for each in of),
            high=max(each.high for each in of),
            nominal=max(each.nominal for each in of),
            # A size that is cast to a narrow type wraps around.
            is_shape=first.dtype in (0, 6, _INT64) and all(each.is_shape or _is_positive(each) for each in of),
        )
    if op in ("Add", "Sub", "Mul", "Div", "Min", "Max") and len(inputs) >= 2:
        low, high = _corners(op, a, b)
        if len(inputs) > 2:
            low, high = -math.inf, math.inf
        sizes = (a.is_shape or _is_positive(a)) and (b.is_shape or _is_positive(b))
        sizes = sizes and (op in ("Add", "Mul", "Min", "Max") or (op == "Div" and _is_positive(b)))
        sizes = sizes and (high < 2.0**62 or (a.is_shape and b.is_shape))
        nominal = _nominal(op, a, b)
        return replace(first, low=low, high=high, nominal=nominal, is_shape=sizes)
    if op in ("ReduceProd", "ReduceSum", "CumSum"):
        count = max(a.elements(), 1)
        is_product = op == "ReduceProd"
        high = a.high**count if is_product and count < 64 and math.isfinite(a.high) else a.high * count
        nominal = a.nominal**count if is_product and count < 64 else a.nominal * count
        low = a.low if a.low >= 0 else -math.inf
        return replace(
            first, low=min(low, low**count) if is_product else low, high=high, nominal=nominal, is_shape=a.is_shape
        )
    if op == "Abs":
        return replace(
            first, low=max(0.0, a.low), high=max(abs(a.low), abs(a.high)), nominal=a.nominal, is_shape=a.is_shape
        )
    if op == "Clip" and b.const is not None and b.const.size == 1 and len(inputs) < 4:
        most = inputs[2] if len(inputs) > 2 else a  # it wins where it lies below the least
        low = min(max(a.low, b.low), most.low) if len(inputs) > 2 else max(a.low, b.low)
        return replace(first, low=low, high=min(a.high, most.high), nominal=min(a.nominal, most.nominal))
    if op == "Where" and len(inputs) == 3:
        return replace(
            join(inputs[1:]), shape=first.shape, dtype=first.dtype or inputs[1].dtype, is_fixed=first.is_fixed
        )
    if op == "Range" and len(inputs) == 3:
        low, high = min(a.low, b.low), max(a.high, b.high)
        return replace(first, low=low, high=high, nominal=max(a.nominal, b.nominal))
    if op == "NonZero":
        return replace(first, low=0, high=_MOST_SIZE, nominal=_NOMINAL_SIZE)
    return first


def _is_positive(value: Value) -> bool:
    """Return whether it is a constant by which sizes can be multiplied without an overflow."""
    return value.const is not None and 0 < value.low <= value.high < 1 << 20


def _limited(value: Value) -> Value:
    """Return a value whose bounds are at most those of its type."""
    if value.dtype not in _NUMPY_INTEGERS or value.is_shape:
        return value
    limits = np.iinfo(numpy_dtype(value.dtype))
    return replace(value, low=max(value.low, float(limits.min)), high=min(value.high, float(limits.max)))


def _in_range(value: Value) -> Value:
    """Return an integer without bounds that its type cannot hold: it wraps around."""
    if not value.is_integer or value.is_shape:
        return value
    limits = np.iinfo(numpy_dtype(value.dtype)) if value.dtype in _NUMPY_INTEGERS else None
    if limits is not None and (value.low < float(limits.min) or value.high > float(limits.max)):
        return replace(value, low=-math.inf, high=math.inf)
    return value


def _corners(op: str, a: Value, b: Value) -> tuple[float, float]:
    """Return the bounds of a result from those of both operands."""
    if op == "Min":
        return min(a.low, b.low), min(a.high, b.high)
    if op == "Max":
        return max(a.low, b.low), max(a.high, b.high)
    if op == "Add":
        return a.low + b.low, a.high + b.high
    if op == "Sub":
        return a.low - b.high, a.high - b.low
    if op == "Div" and b.low <= 0 <= b.high:
        return -math.inf, math.inf
    corners = [_times(x, y if op == "Mul" else 1 / y) for x in (a.low, a.high) for y in (b.low, b.high)]
    if op == "Div":
        corners = [each if math.isinf(each) else math.floor(each) if each < 0 else math.trunc(each) for each in corners]
    return min(corners), max(corners)


def _times(x: float, y: float) -> float:
    return 0.0 if x == 0 or y == 0 else x * y


def _nominal(op: str, a: Value, b: Value) -> float:
    if op == "Min":
        return min(a.nominal, b.nominal)
    if op == "Max":
        return max(a.nominal, b.nominal)
    if op == "Mul":
        return _times(a.nominal, b.nominal)
    if op == "Add":
        return a.nominal + b.nominal
    if op == "Sub":
        return a.nominal - b.low if math.isfinite(b.low) else math.inf
    return a.nominal / max(b.low, 1) if b.low > 0 or b.is_shape else math.inf


def _output_dtypes(
    node: onnx.NodeProto, inputs: Sequence[Value], attributes: Mapping[str, Any], version: int
) -> list[int]:
    """Return the element type of each output: of the operator's schema, an attribute, or the inputs of its type."""
    count = len(node.output)
    if node.op_type == "Cast" or (node.op_type in _TYPED and "dtype" in attributes):
        given = attributes.get("to", attributes.get("dtype"))
        return [given if isinstance(given, int) else 0] * count
    if node.op_type in (
        "SequenceAt",
        "ConcatFromSequence",
        "SequenceConstruct",
        "SequenceInsert",
        "SplitToSequence",
    ) or (node.op_type in ("SequenceErase", "OptionalGetElement", "Optional")):
        return [inputs[0].dtype if inputs else 0] * count
    if node.op_type == "ConstantOfShape":
        value = attributes.get("value")
        return [1 if value is None else value.dtype]
    plan = _type_plan(node.op_type, "" if node.domain == "ai.onnx" else node.domain, version)
    if plan is None:
        return [0] * count
    formal_inputs, formal_outputs, fixed = plan
    bound: dict[str, int] = {}
    for place, value in enumerate(inputs):
        formal = formal_inputs[min(place, len(formal_inputs) - 1)] if formal_inputs else ""
        if value.dtype:
            bound.setdefault(formal, value.dtype)
    found = []
    for place in range(count):
        formal = formal_outputs[min(place, len(formal_outputs) - 1)]
        found.append(bound.get(formal) or fixed.get(formal, 0))
    return found


_TYPED = ("SequenceEmpty", "RandomNormal", "RandomUniform", "EyeLike", "Multinomial", "Bernoulli", "RandomNormalLike")


@functools.lru_cache(maxsize=2048)
def _type_plan(op: str, domain: str, version: int) -> tuple[tuple[str, ...], tuple[str, ...], Mapping[str, int]] | None:
    """Return the type parameters of inputs and outputs, and those that are one type, or float of some width."""
    try:
        schema = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None
    fixed: dict[str, int] = {}
    allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
    for formal in (*schema.inputs, *schema.outputs):
        dtypes = {_dtype_of(text) for text in allowed.get(formal.type_str, [formal.type_str])}
        if len(dtypes) == 1 or dtypes <= FLOATS:
            fixed[formal.type_str] = min(dtypes)
    outputs = {formal.type_str for formal in schema.outputs}
    known = {name: dtype for name, dtype in fixed.items() if name in outputs and dtype}
    return (
        tuple(formal.type_str for formal in schema.inputs),
        tuple(formal.type_str for formal in schema.outputs),
        known,
    )


def _dtype_of(text: str) -> int:
    name = text.rpartition("(")[2].rstrip(")").upper()
    try:
        return int(onnx.TensorProto.DataType.Value(name))
    except ValueError:
        return 0


# Outputs on small constants, so that a divisor or a size that is computed from them is known


def _folded(
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


def _folded_axes(a: list[Any], attributes: Mapping[str, Any]) -> tuple[int, ...] | None:
    given = a[1] if len(a) > 1 else attributes.get("axes")
    return None if given is None else tuple(int(axis) for axis in np.ravel(given))


def _reduced(function: Callable[..., Any]) -> Callable[[list[Any], Mapping[str, Any]], Any]:
    return lambda a, attributes: function(
        a[0], axis=_folded_axes(a, attributes), keepdims=bool(attributes.get("keepdims", 1))
    )


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
    "Unsqueeze": lambda a, at: np.expand_dims(a[0], _folded_axes(a, at) or ()),
    "Squeeze": lambda a, at: np.squeeze(a[0], _folded_axes(a, at)),
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
