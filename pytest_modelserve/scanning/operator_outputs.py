"""What an operator makes of abstract values: element types, shapes, constants and bounds of its outputs."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from pytest_modelserve.scanning.abstract_values import (
    FLOATS,
    UNKNOWN,
    Shape,
    Value,
    constant,
    join,
    names_in,
    numpy_dtype,
)
from pytest_modelserve.scanning.constant_folding import folded
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
    const = folded(node.op_type, inputs, attributes, shape, first.dtype) if is_fixed else None
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
