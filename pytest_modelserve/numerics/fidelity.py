"""How much of a model's signal survives a loss of precision: noise ratio, direction of rows, and the top answer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.numerics.dtypes import kind_of

_CHUNK = 2**16  # elements read at a time: 512 KiB as float64


def signal_to_quantization_noise_db(candidate: NDArray[Any], reference: NDArray[Any]) -> float:
    """The power of `reference` over the power of its error, in decibels: 10 log10(sum r^2 / sum (c - r)^2).

    Two arrays of one shape and any number of dimensions, summed as a whole in float64. inf where they are equal, -inf
    where the reference is zero everywhere and the candidate is not. Raises InputError for no elements, different
    shapes, NaN, infinities, and anything but real numbers.
    """
    check_pair(candidate, reference)
    # Powers are taken relative to the largest magnitude: squares of float64 overflow from 1e154 on.
    largest = max(_largest(candidate), _largest(reference)) or 1.0
    signal = noise = 0.0
    for c, r in _chunks(candidate, reference):
        c, r = c / largest, r / largest
        error = c - r
        signal += float(r @ r)
        noise += float(error @ error)
    if noise == 0:
        return math.inf
    return 10 * (math.log10(signal) - math.log10(noise)) if signal else -math.inf


def row_cosines(candidate: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.float64]:
    """The cosine of the angle between paired rows `(n, ...)`, each flattened: `(n,)`, from -1 to 1.

    A row of zeros has no direction: beside another row of zeros its cosine is 1.0, beside any other row 0.0. Raises
    InputError for no rows, different shapes, NaN, infinities, and anything but real numbers.
    """
    check_pair(candidate, reference)
    c, r = _unit_rows(candidate), _unit_rows(reference)
    cosines: NDArray[np.float64] = np.clip(np.einsum("ij,ij->i", c, r), -1.0, 1.0)
    cosines[~c.any(axis=1) & ~r.any(axis=1)] = 1.0
    return cosines


def top1_matches(candidate: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether both put the same class first, for scores `(..., classes)`: booleans of shape `(...)`.

    Between equal scores the first class wins. Raises InputError for no rows, different shapes, fewer than two classes,
    NaN, infinities, and anything but real numbers.
    """
    check_pair(candidate, reference)
    if reference.ndim < 2 or reference.shape[-1] < 2:
        raise InputError(
            f"the top class needs scores of shape (rows, classes) with at least two classes, not {reference.shape}"
        )
    matches: NDArray[np.bool_] = candidate.argmax(axis=-1) == reference.argmax(axis=-1)
    return matches


def top1_agreement(candidate: NDArray[Any], reference: NDArray[Any]) -> float:
    """The share of rows for which both put the same class first, from 0 to 1; see `top1_matches`."""
    return float(top1_matches(candidate, reference).mean())


def check_pair(candidate: NDArray[Any], reference: NDArray[Any]) -> None:
    """Raise InputError unless both are arrays of one shape that hold rows of finite real numbers."""
    for side, array in (("candidate", candidate), ("reference", reference)):
        if not isinstance(array, np.ndarray):
            raise InputError(f"{side} is a numpy array, not {type(array).__name__}")
    if candidate.shape != reference.shape:
        raise InputError(f"candidate has shape {candidate.shape} and reference {reference.shape}: both need the same")
    if reference.ndim == 0 or reference.size == 0:
        raise InputError(f"outputs of shape {reference.shape} hold no rows: nothing can be measured")
    for side, array in (("candidate", candidate), ("reference", reference)):
        if array.dtype.kind == "b" or kind_of(array.dtype) not in ("real", "exact"):
            raise InputError(f"{side} has dtype {array.dtype}: fidelity is measured on real numbers")
        if not np.isfinite(array).all():
            first = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise InputError(f"{side} holds {array[first]} at {list(first)}: fidelity is measured on finite numbers")


def _largest(array: NDArray[Any]) -> float:
    return max(abs(float(array.max())), abs(float(array.min())))


def _chunks(
    candidate: NDArray[Any], reference: NDArray[Any]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    pieces = np.nditer(
        [candidate, reference],
        flags=["external_loop", "buffered"],
        op_flags=[["readonly"], ["readonly"]],
        op_dtypes=[np.float64, np.float64],
        casting="same_kind",
        order="C",
        buffersize=_CHUNK,
    )
    yield from pieces


def _unit_rows(array: NDArray[Any]) -> NDArray[np.float64]:
    """`(n, ...)` as `(n, m)` rows of length 1; a row of zeros stays one."""
    rows = array.reshape(len(array), -1).astype(np.float64)
    # First to a largest magnitude of 1, so that the squares in the norm neither overflow nor vanish.
    rows = _divided(rows, np.abs(rows).max(axis=1, keepdims=True))
    return _divided(rows, np.linalg.norm(rows, axis=1, keepdims=True))


def _divided(rows: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(rows, sizes, out=np.zeros_like(rows), where=sizes > 0)
