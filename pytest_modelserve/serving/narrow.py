"""Numbers that numpy knows through ml_dtypes alone: bfloat16, float8, float4, int4, int2.

`InferenceSession.run` of onnxruntime 1.32 raises on most of them and gives float8e4m3fn as raw uint8, so both
directions go through the memory of an OrtValue. Types of less than a byte lie packed there, the first in the low bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pytest_modelserve.artifacts.signature import elem_type

NARROW = frozenset(
    {"bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"}
    | {"float4_e2m1fn", "int4", "uint4", "int2", "uint2"}
)
_PACKED_BITS = {"float4_e2m1fn": 4, "int4": 4, "uint4": 4, "int2": 2, "uint2": 2}

Run = Callable[[list[str], dict[str, Any]], list[Any]]


def narrow_feed(feed: Mapping[str, Any]) -> dict[str, Any]:
    """`feed` with every array of such numbers as an OrtValue of its own."""
    return {
        name: _ort_value(value) if isinstance(value, np.ndarray) and value.dtype.name in NARROW else value
        for name, value in feed.items()
    }


def narrow_run(session: onnxruntime.InferenceSession, output_dtypes: Sequence[str]) -> Run:
    """A `run` of `session` that answers arrays of those dtypes, whichever they are; all values have to be tensors."""

    def run(names: list[str], feed: dict[str, Any]) -> list[NDArray[Any]]:
        values = {
            name: value
            if isinstance(value, onnxruntime.OrtValue)
            else onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value).reshape(value.shape))
            for name, value in feed.items()
        }
        answers = session.run_with_ort_values(names, values)
        return [
            _array(answer, dtype) if dtype in NARROW else answer.numpy()
            for answer, dtype in zip(answers, output_dtypes, strict=True)
        ]

    return run


def _ort_value(array: NDArray[Any]) -> onnxruntime.OrtValue:
    name = array.dtype.name
    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(array.shape), elem_type(name), "cpu")
    codes = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    stored = _pack(codes, _PACKED_BITS[name]) if name in _PACKED_BITS else codes
    if stored.size:
        ctypes.memmove(value.data_ptr(), stored.ctypes.data, stored.size)
    return value


def _array(value: onnxruntime.OrtValue, dtype: str) -> NDArray[Any]:
    """A copy of the numbers in `value`, which live no longer than it does."""
    import ml_dtypes

    shape, kind = value.shape(), np.dtype(getattr(ml_dtypes, dtype))
    count = int(np.prod(shape, dtype=np.int64))
    if not count:
        return np.zeros(shape, kind)
    stored = np.ctypeslib.as_array((ctypes.c_uint8 * value.tensor_size_in_bytes()).from_address(value.data_ptr()))
    codes = _unpack(stored, _PACKED_BITS[dtype], count) if dtype in _PACKED_BITS else stored.copy()
    numbers: NDArray[Any] = codes.view(kind).reshape(shape)
    return numbers


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    a_byte = 8 // bits
    padded = np.zeros(-(-codes.size // a_byte) * a_byte, np.uint8)
    padded[: codes.size] = codes & ((1 << bits) - 1)
    shifts = np.arange(a_byte, dtype=np.uint8) * bits
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(padded.reshape(-1, a_byte) << shifts, axis=1)
    return packed


def _unpack(stored: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    shifts = np.arange(8 // bits, dtype=np.uint8) * bits
    codes = (stored[:, np.newaxis] >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(-1)[:count].astype(np.uint8)
