"""How many representable numbers lie between two floating-point values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_INTEGERS: dict[str, type[np.signedinteger[Any]]] = {"float16": np.int16, "float32": np.int32, "float64": np.int64}


def has_ulps(dtype: np.dtype[Any]) -> bool:
    """Whether `ulp_distance` is defined for `dtype`: float16, float32 and float64."""
    return dtype.name in _INTEGERS


def ulp_distance(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.unsignedinteger[Any]]:
    """The number of representable steps between paired elements, as unsigned integers of the width of the float.

    Both arrays have one shape and one dtype for which `has_ulps` holds. +0 and -0 are one number; the distance across
    zero counts through the subnormals. Infinity is one step beyond the largest finite number; NaN has no meaning here.
    Source: the ordering of IEEE 754 bit patterns as sign and magnitude (B. Dawson, "Comparing floating point numbers").
    """
    integer = _INTEGERS[first.dtype.name]
    a, b = first.view(integer), second.view(integer)
    if a.size and np.bitwise_xor(a, b).min() < 0:  # some pair differs in sign: magnitudes become signed integers
        a, b = _signed_magnitudes(a), _signed_magnitudes(b)
    # The true difference needs one bit more than the type has; larger minus smaller, read as unsigned, holds it.
    distance: NDArray[np.unsignedinteger[Any]] = np.subtract(np.maximum(a, b), np.minimum(a, b)).view(
        f"u{integer().itemsize}"
    )
    return distance


def _signed_magnitudes(bits: NDArray[Any]) -> NDArray[Any]:
    width = bits.dtype.itemsize * 8
    negative = bits >> (width - 1)  # all ones where the sign bit is set
    magnitude = bits & bits.dtype.type(np.iinfo(bits.dtype).max)
    signed: NDArray[Any] = (magnitude ^ negative) - negative
    return signed
