"""What kind of values a dtype holds, those included that numpy knows from ml_dtypes alone."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

Kind = Literal["real", "exact", "text"]

# Bits behind the leading one: IEEE 754 (2019), table 3.5; bfloat16 and the 8-bit formats as ONNX describes them.
_MANTISSA_BITS = {
    "float64": 52,
    "float32": 23,
    "float16": 10,
    "bfloat16": 7,
    "float8_e4m3fn": 3,
    "float8_e4m3fnuz": 3,
    "float8_e5m2": 2,
    "float8_e5m2fnuz": 2,
}


def kind_of(dtype: np.dtype[Any]) -> Kind | None:
    """How values of `dtype` are compared: within a tolerance ("real"), for equality ("exact", "text"), or None: not.

    bfloat16, float8 and int4 come from the package ml_dtypes and have numpy's kind "V", as records have; their names
    tell what they are. Arrays of objects count as text: whether they hold strings has to be looked at.
    """
    if dtype.kind in "UOT":
        return "text"
    if dtype.kind == "f" or (dtype.kind == "V" and dtype.name.startswith(("float", "bfloat"))):
        return "real"
    if dtype.kind in "iub" or (dtype.kind == "V" and dtype.name.startswith(("int", "uint"))):
        return "exact"
    return None


def dtype_name(dtype: np.dtype[Any]) -> str:
    """numpy's name, except that every kind of text is "str": its width and its storage are no part of a model."""
    return "str" if kind_of(dtype) == "text" else dtype.name


def machine_epsilon(dtype: str) -> float:
    """The step between 1 and the next number of a real dtype, as the share of a value that its last digit is.

    KeyError for a dtype that is not one of float64, float32, float16, bfloat16 and the float8 formats of ONNX with a
    mantissa.
    """
    return 2.0 ** -_MANTISSA_BITS[dtype]
