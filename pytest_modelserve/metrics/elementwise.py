"""Element-wise differences of two arrays, distances in units in the last place, and kinds of dtypes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.metrics.channels import add_counts, count_by_channel

Bound = float | NDArray[np.float64]
"""A tolerance: one number, or an array that broadcasts to the output."""
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
    """Return how values of `dtype` are compared: with a tolerance ("real"), for equality ("exact", "text"), or None.

    bfloat16, float8 and int4 of ml_dtypes have numpy's kind "V", as records have, and are recognized by name. Arrays of
    objects count as text; the caller checks that they hold strings.
    """
    if dtype.kind in "UOT":
        return "text"
    if dtype.kind == "f" or (dtype.kind == "V" and dtype.name.startswith(("float", "bfloat"))):
        return "real"
    if dtype.kind in "iub" or (dtype.kind == "V" and dtype.name.startswith(("int", "uint"))):
        return "exact"
    return None


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return numpy's name of the dtype, and "str" for every kind of text."""
    return "str" if kind_of(dtype) == "text" else dtype.name


def machine_epsilon(dtype: str) -> float:
    """Return the machine epsilon of a real dtype: the step between 1 and the next number.

    KeyError for a dtype that is not one of float64, float32, float16, bfloat16 and the float8 formats of ONNX with a
    mantissa.
    """
    return 2.0 ** -_MANTISSA_BITS[dtype]


_INTEGERS: dict[str, type[np.signedinteger[Any]]] = {
    "bfloat16": np.int16,
    "float16": np.int16,
    "float32": np.int32,
    "float64": np.int64,
}


def has_ulps(first: np.dtype[Any], second: np.dtype[Any]) -> bool:
    """Return whether `ulp_distance` applies: both are the same bfloat16, float16, float32 or float64."""
    return first.name == second.name and first.name in _INTEGERS


def ulp_distance(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.unsignedinteger[Any]]:
    """Return the distance of paired elements in units in the last place, as unsigned integers.

    Both arrays have one shape and one dtype: bfloat16, float16, float32 or float64 in native byte order. +0 and -0 are
    one number; the distance across zero includes the subnormals. Infinity is one step beyond the largest finite
    number; NaN is undefined. Source: IEEE 754 bit patterns, read as sign and magnitude, are ordered like the
    numbers they stand for (B. Dawson, "Comparing Floating Point Numbers", 2012).
    """
    integer = _INTEGERS[first.dtype.name]
    a, b = first.view(integer), second.view(integer)
    if a.size and np.bitwise_xor(a, b).min() < 0:  # a sign bit differs somewhere: map both signs to one order
        a, b = _signed_magnitudes(a), _signed_magnitudes(b)
    # The difference needs one bit more than the type has. Larger minus smaller, read as unsigned, holds it.
    steps: NDArray[np.unsignedinteger[Any]] = (np.maximum(a, b) - np.minimum(a, b)).view(f"u{a.dtype.itemsize}")
    return steps


def _signed_magnitudes(bits: NDArray[Any]) -> NDArray[Any]:
    all_ones_if_negative = bits >> (bits.dtype.itemsize * 8 - 1)
    magnitude = bits & np.iinfo(bits.dtype).max
    signed: NDArray[Any] = (magnitude ^ all_ones_if_negative) - all_ones_if_negative
    return signed


# Measured on 10 million float32: 2**14 to 2**17 elements are equally fast, smaller chunks pay for the calls, and the
# four float64 temporaries of a chunk (256 KiB each) fit a core's second-level cache.
_CHUNK = 2**15


@dataclass(frozen=True, slots=True)
class Differences:
    """Differences of two arrays. Indices are flat and in C order; None where there is no such element.

    `max_abs`, `max_rel` and `max_multiple` cover pairs in which both values are finite: the largest error, the largest
    error over |reference|, and the largest error over its tolerance. `worst` is the first index of `max_multiple`, None
    where nothing differs; `beyond` counts the pairs whose multiple exceeds 1, and `beyond_by` those of each channel.
    `nan_differ` counts places where exactly one value is NaN; `inf_differ` those without NaN where one value is
    infinite and the other is not the same infinity.
    """

    max_abs: float = 0.0
    max_rel: float = 0.0
    max_multiple: float = 0.0
    max_ulp: int = 0
    worst: int | None = None
    beyond: int = 0
    beyond_by: Mapping[int, Mapping[int, int]] = field(default_factory=dict, hash=False)
    nan_differ: int = 0
    nan_first: int | None = None
    inf_differ: int = 0
    inf_first: int | None = None

    def then(self, later: Differences) -> Differences:
        """Merge with the differences of a later chunk; of equal multiples the earlier index stays."""
        return Differences(
            max_abs=max(self.max_abs, later.max_abs),
            max_rel=max(self.max_rel, later.max_rel),
            max_multiple=max(self.max_multiple, later.max_multiple),
            max_ulp=max(self.max_ulp, later.max_ulp),
            worst=later.worst if later.max_multiple > self.max_multiple else self.worst,
            beyond=self.beyond + later.beyond,
            beyond_by=add_counts(self.beyond_by, later.beyond_by) if later.beyond_by else self.beyond_by,
            nan_differ=self.nan_differ + later.nan_differ,
            nan_first=later.nan_first if self.nan_first is None else self.nan_first,
            inf_differ=self.inf_differ + later.inf_differ,
            inf_first=later.inf_first if self.inf_first is None else self.inf_first,
        )


def real_differences(
    candidate: NDArray[Any], reference: NDArray[Any], *, rtol: Bound, atol: Bound, equal_nan: bool = True
) -> Differences:
    """Return the differences of two real arrays of one shape with the tolerance `atol + rtol * |reference|`.

    They are computed in float64. `rtol` and `atol` are numbers or arrays that broadcast to the outputs.
    Where the tolerance is 0 the multiple of any error is infinite, and where the reference is 0 so is its relative
    error. `max_ulp` stays 0 unless both dtypes are the same float with countable steps. With `equal_nan=False` every
    NaN counts in `nan_differ`, otherwise only those without a NaN on the other side.
    """
    with_ulps = has_ulps(candidate.dtype, reference.dtype)
    total = Differences()
    with np.errstate(all="ignore"):  # overflow and NaN are detected in the result
        for start, a, b, *bounds in _chunks(candidate, reference, rtol, atol):
            chunk_rtol, chunk_atol = bounds or (rtol, atol)
            chunk = _Chunk(start, reference.shape, chunk_rtol, chunk_atol, with_ulps)
            total = total.then(_finite_chunk(chunk, a, b) or _any_chunk(chunk, a, b, equal_nan))
    return total


def exact_differences(candidate: NDArray[Any], reference: NDArray[Any]) -> Differences:
    """Return the differences of two arrays of integers, booleans or strings, with infinite multiples.

    `max_abs` and `max_rel` are exact integers rounded to float64 for numbers and stay 0 for strings.
    """
    total = Differences()
    for start, a, b, *_ in _chunks(candidate, reference):
        places = np.flatnonzero(a != b)
        if places.size:
            is_text = kind_of(a.dtype) == "text"
            largest, relative = (0.0, 0.0) if is_text else _integer_errors(a[places], b[places])
            first = start + int(places[0])
            total = total.then(
                Differences(
                    max_abs=largest,
                    max_rel=relative,
                    max_multiple=np.inf,
                    worst=first,
                    beyond=int(places.size),
                    beyond_by=count_by_channel(start + places, reference.shape),
                )
            )
    return total


def _chunks(candidate: NDArray[Any], reference: NDArray[Any], *bounds: Bound) -> Iterator[tuple[Any, ...]]:
    """Yield the start and both arrays in C order as native one-dimensional chunks: views where possible, else copies.

    If one of the `bounds` is an array, all of them follow, as arrays of the same length.
    """
    operands = [candidate, reference]
    if any(isinstance(bound, np.ndarray) for bound in bounds):
        operands += [np.broadcast_to(bound, reference.shape) for bound in bounds]
    start = 0
    pieces = np.nditer(
        operands,
        flags=["external_loop", "buffered", "zerosize_ok", "refs_ok"],
        op_flags=[["readonly", "nbo", "aligned"]] * len(operands),
        order="C",
        buffersize=_CHUNK,
    )
    for chunk in pieces:
        if chunk[0].size:
            yield start, *chunk
        start += chunk[0].size


@dataclass(frozen=True, slots=True, eq=False)
class _Chunk:
    """Where a chunk starts in an output of `shape`, and its tolerances."""

    start: int
    shape: tuple[int, ...]
    rtol: Bound
    atol: Bound
    with_ulps: bool


def _finite_chunk(chunk: _Chunk, a: NDArray[Any], b: NDArray[Any]) -> Differences | None:
    """Return the differences of a chunk without NaN and infinities, or None if an error is not finite."""
    error = np.subtract(a, b, dtype=np.float64)
    np.abs(error, out=error)
    max_abs = float(error.max())
    if not np.isfinite(max_abs):
        return None
    return _differences(chunk, a, b, error, max_abs)


def _any_chunk(chunk: _Chunk, a: NDArray[Any], b: NDArray[Any], equal_nan: bool) -> Differences:
    nan_a, nan_b = np.isnan(a), np.isnan(b)
    finite = np.isfinite(a) & np.isfinite(b)
    nan_places = np.flatnonzero(nan_a != nan_b if equal_nan else nan_a | nan_b)
    inf_places = np.flatnonzero(~finite & ~nan_a & ~nan_b & (a != b))
    a, b = np.where(finite, a, a.dtype.type(0)), np.where(finite, b, b.dtype.type(0))
    error = np.abs(np.subtract(a, b, dtype=np.float64))
    found = _differences(chunk, a, b, error, float(error.max()))
    return found.then(
        Differences(
            nan_differ=int(nan_places.size),
            nan_first=chunk.start + int(nan_places[0]) if nan_places.size else None,
            inf_differ=int(inf_places.size),
            inf_first=chunk.start + int(inf_places[0]) if inf_places.size else None,
        )
    )


def _differences(
    chunk: _Chunk, a: NDArray[Any], b: NDArray[Any], error: NDArray[np.float64], max_abs: float
) -> Differences:
    if max_abs == 0:
        return Differences()
    size = np.abs(b, dtype=np.float64)
    max_rel = float(np.fmax.reduce(error / size, initial=0.0))  # fmax ignores 0/0
    tolerance = np.multiply(size, chunk.rtol, out=size)
    tolerance += chunk.atol
    multiple = np.divide(error, tolerance, out=error)
    if np.ndim(chunk.atol) or chunk.atol == 0:
        multiple[np.isnan(multiple)] = 0  # 0/0: no error under no tolerance
    worst = int(multiple.argmax())
    max_multiple = float(multiple[worst])
    beyond = np.flatnonzero(multiple > 1) if max_multiple > 1 else np.zeros(0, np.intp)
    return Differences(
        max_abs=max_abs,
        max_rel=max_rel,
        max_multiple=max_multiple,
        max_ulp=int(ulp_distance(a, b).max()) if chunk.with_ulps else 0,
        worst=chunk.start + worst,
        beyond=beyond.size,
        beyond_by=count_by_channel(chunk.start + beyond, chunk.shape) if beyond.size else {},
    )


def _integer_errors(a: NDArray[Any], b: NDArray[Any]) -> tuple[float, float]:
    a, b = _as_builtin(a), _as_builtin(b)
    wide = np.dtype(np.uint8) if a.dtype.kind == b.dtype.kind == "b" else np.result_type(a, b)
    if wide.kind == "f":  # uint64 and a signed type: no integer type holds both
        error = np.abs(np.subtract(a, b, dtype=np.float64))
    else:
        x, y = a.astype(wide), b.astype(wide)
        # As in ulp_distance: larger minus smaller, read as unsigned, cannot overflow.
        error = (np.maximum(x, y) - np.minimum(x, y)).view(f"u{wide.itemsize}").astype(np.float64)
    with np.errstate(divide="ignore"):
        relative = error / np.abs(b.astype(np.float64))
    return float(error.max()), float(relative.max())


def _as_builtin(integers: NDArray[Any]) -> NDArray[Any]:
    return integers.astype(np.int64) if integers.dtype.kind == "V" else integers  # int4 for example


def is_builtin_dtype(dtype: np.dtype[Any]) -> bool:
    """Return whether the dtype is numpy's own; those of ml_dtypes have the kinds "V" and "f"."""
    return dtype.isbuiltin == 1
