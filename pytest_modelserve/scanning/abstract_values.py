"""Abstract values of a graph: element type, shape, small constants and intervals, computed without running it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray


def names_in(text: str) -> frozenset[str]:
    """Return the names in a text."""
    return frozenset(text.split())


Shape = tuple[int | None, ...]
"""Sizes of the axes; None is a free one."""

# Larger constants are not computed.
MAX_ELEMENTS = 4096
FLOATS = {1, 10, 11, 14, 15, 16, 17, 18, 19, 20}
_INTEGERS = {2, 3, 4, 5, 6, 7, 12, 13, 21, 22, 25, 26}


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of a value before the model runs.

    Attributes:
        dtype: Element type as onnx numbers it; of a sequence that of its elements. 0 if unknown.
        shape: Its shape; None if not even the rank is known.
        const: Its content, if it is a small constant.
        low: A lower bound of its elements.
        high: An upper bound of its elements.
        nominal: The largest element where free axes have the nominal size.
        is_shape: Whether its elements are sizes of axes, or products of such.
        is_fixed: Whether it follows from constants alone, so that onnxruntime computes it when it opens the file.
    """

    dtype: int = 0
    shape: Shape | None = None
    const: NDArray[Any] | None = None
    low: float = -math.inf
    high: float = math.inf
    nominal: float = math.inf
    is_shape: bool = False
    is_fixed: bool = False

    @property
    def is_integer(self) -> bool:
        """Whether its elements are known to be integers."""
        return self.dtype in _INTEGERS

    @property
    def is_float(self) -> bool:
        """Whether its elements are known to be floats."""
        return self.dtype in FLOATS

    def elements(self) -> int:
        """Return the number of elements with free axes of size 1; 1 if the shape is unknown."""
        return math.prod(1 if axis is None else axis for axis in self.shape or ())


UNKNOWN = Value()


def constant(array: NDArray[Any], dtype: int) -> Value:
    """Return the value of a constant."""
    if array.dtype.kind not in "biuf" or not array.size:
        return Value(dtype, array.shape, array, is_fixed=True)
    low, high = float(array.min()), float(array.max())
    return Value(dtype, array.shape, array, low, high, high, is_fixed=True)


def of_tensor(tensor: onnx.TensorProto) -> Value:
    """Return the value of a stored tensor; its content only if it is small and in the file."""
    if math.prod(tensor.dims) <= MAX_ELEMENTS and tensor.data_location != onnx.TensorProto.EXTERNAL:
        try:
            return constant(np.asarray(onnx.numpy_helper.to_array(tensor)), tensor.data_type)
        except (ValueError, TypeError, KeyError):
            pass  # left out of what was read
    return Value(tensor.data_type, tuple(tensor.dims), is_fixed=True)


def of_type(kind: onnx.TypeProto) -> Value:
    """Return the value of an input of a graph: its element type, and its shape if it has one."""
    which = kind.WhichOneof("value")
    while which in ("sequence_type", "optional_type"):
        kind = getattr(kind, which).elem_type
        which = kind.WhichOneof("value")
        if which == "tensor_type":
            return Value(kind.tensor_type.elem_type)
    if which not in ("tensor_type", "sparse_tensor_type"):
        return UNKNOWN
    tensor = getattr(kind, which)
    shape = tuple(axis.dim_value if axis.dim_value > 0 else None for axis in tensor.shape.dim)
    return Value(tensor.elem_type, shape if tensor.HasField("shape") else None)


def join(values: Sequence[Value]) -> Value:
    """Return what holds for each of several values: the outputs of branches."""
    first, *rest = values
    for other in rest:
        same = first.shape == other.shape
        first = Value(
            first.dtype or other.dtype,
            first.shape if same else max((first, other), key=Value.elements).shape,
            None,
            min(first.low, other.low),
            max(first.high, other.high),
            max(first.nominal, other.nominal),
            first.is_shape and other.is_shape,
        )
    return first


@functools.cache
def numpy_dtype(dtype: int) -> np.dtype[Any]:
    """Return numpy's type; TypeError for an unknown one."""
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype))
    except KeyError:
        raise TypeError(dtype) from None
