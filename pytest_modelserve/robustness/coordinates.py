"""Rows of several inputs as flat, numbered coordinates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError

Feed = dict[str, NDArray[Any]]
"""Inputs by name. Within this room the first axis of every array counts rows, so that many are asked in one call."""


@dataclass(frozen=True, slots=True)
class Part:
    """One input's share of a row: `shape` is that of one row, `offset` the place of its first coordinate."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Every element of a row under one number, input after input."""

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, rows: Mapping[str, NDArray[Any]]) -> Coordinates:
        """The coordinates of rows in arrays (n, ...)."""
        parts = []
        offset = 0
        for name, array in rows.items():
            size = int(np.prod(array.shape[1:], dtype=np.int64))
            parts.append(Part(name, array.dtype, array.shape[1:], offset, size))
            offset += size
        return cls(tuple(parts))

    @property
    def size(self) -> int:
        """How many coordinates a row has."""
        return sum(part.size for part in self.parts)

    def within(self, indices: NDArray[np.intp]) -> Iterator[tuple[Part, NDArray[np.bool_], NDArray[np.intp]]]:
        """Each part that `indices` touch: which of them lie there, and their places in its flat row."""
        if len(self.parts) == 1:
            yield self.parts[0], np.ones(indices.shape, np.bool_), indices
            return
        for part in self.parts:
            mask = (indices >= part.offset) & (indices < part.offset + part.size)
            if mask.any():
                yield part, mask, indices[mask] - part.offset

    def place(self, index: int) -> tuple[Part, tuple[int, ...]]:
        """The part that holds a coordinate, and its index in one row of it."""
        part = next(part for part in self.parts if part.offset <= index < part.offset + part.size)
        return part, tuple(int(i) for i in np.unravel_index(index - part.offset, part.shape))


def flat(rows: Mapping[str, NDArray[Any]]) -> Feed:
    """The arrays as (n, coordinates), views wherever numpy can."""
    return {name: array.reshape(len(array), int(np.prod(array.shape[1:]))) for name, array in rows.items()}


def shaped(rows: Mapping[str, NDArray[Any]], coordinates: Coordinates) -> Feed:
    """The inverse of `flat`."""
    return {part.name: rows[part.name].reshape(len(rows[part.name]), *part.shape) for part in coordinates.parts}


def row_count(rows: Mapping[str, NDArray[Any]]) -> int:
    """The length of the first axis; InputError for a scalar, for no input and for inputs of different lengths."""
    lengths = {}
    for name, array in rows.items():
        if array.ndim == 0:
            raise InputError(f"input {name!r} has no rows: it is a scalar")
        lengths[name] = len(array)
    if len(set(lengths.values())) != 1:
        raise InputError(f"inputs have different numbers of rows: {lengths}" if lengths else "there are no inputs")
    return next(iter(lengths.values()))


def taken(rows: Mapping[str, NDArray[Any]], index: Any) -> Feed:
    """The rows at `index` (a slice, a mask or places) of every input."""
    return {name: array[index] for name, array in rows.items()}


def joined(feeds: list[Feed]) -> Feed:
    """The rows of several feeds, one below the other."""
    # ml_dtypes' int4 would come back as int8.
    return {
        name: np.concatenate([feed[name] for feed in feeds]).astype(array.dtype, copy=False)
        for name, array in feeds[0].items()
    }


def changed(first: Mapping[str, NDArray[Any]], second: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Whether each coordinate differs, (n, coordinates): by bits, so that -0.0 is not 0.0 and a NaN equals itself."""
    found = []
    for name, array in flat(first).items():
        other = flat(second)[name]
        if array.dtype.kind in "OUT":
            found.append(np.asarray(array != other, np.bool_))
        else:
            bits = np.dtype(f"u{array.dtype.itemsize}")
            found.append(np.ascontiguousarray(array).view(bits) != np.ascontiguousarray(other).view(bits))
    return np.concatenate(found, axis=1)
