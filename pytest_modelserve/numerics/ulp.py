"""How many representable numbers lie between two floating-point values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_INTEGERS: dict[str, type[np.signedinteger[Any]]] = {
    "bfloat16": np.int16,
    "float16": np.int16,
    "float32": np.int32,
    "float64": np.int64,
}


def share_ulps(first: np.dtype[Any], second: np.dtype[Any]) -> bool:
    """Whether steps between numbers of the two dtypes can be counted: both are the same bfloat16, float16, float32 or
    float64."""
    return first.name == second.name and first.name in _INTEGERS


def ulp_distance(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.unsignedinteger[Any]]:
    """The number of representable steps between paired elements, as unsigned integers of the width of the float.

    Both arrays have one shape and one dtype: bfloat16, float16, float32 or float64 in native byte order. +0 and -0 are
    one number; the distance across zero counts through the subnormals. Infinity is one step beyond the largest finite
    number; NaN has no meaning here. Source: IEEE 754 bit patterns, read as sign and magnitude, are ordered like the
    numbers they stand for (B. Dawson, "Comparing Floating Point Numbers", 2012).
    """
    integer = _INTEGERS[first.dtype.name]
    a, b = first.view(integer), second.view(integer)
    if a.size and np.bitwise_xor(a, b).min() < 0:  # a sign bit differs somewhere: two orders have to become one
        a, b = _signed_magnitudes(a), _signed_magnitudes(b)
    # The difference needs one bit more than the type has. Larger minus smaller, read as unsigned, holds it.
    steps: NDArray[np.unsignedinteger[Any]] = (np.maximum(a, b) - np.minimum(a, b)).view(f"u{a.dtype.itemsize}")
    return steps


def _signed_magnitudes(bits: NDArray[Any]) -> NDArray[Any]:
    all_ones_if_negative = bits >> (bits.dtype.itemsize * 8 - 1)
    magnitude = bits & np.iinfo(bits.dtype).max
    signed: NDArray[Any] = (magnitude ^ all_ones_if_negative) - all_ones_if_negative
    return signed
