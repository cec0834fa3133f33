"""Rows of several inputs as flat, numbered coordinates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError

Feed = dict[str, NDArray[Any]]
"""Inputs by name. The first axis of every array counts rows, so that many rows are evaluated in one call."""


@dataclass(frozen=True, slots=True)
class Coordinates:
    """A numbering of every element of a row, input after input."""

    slices: tuple[InputSlice, ...]

    @classmethod
    def of(cls, rows: Mapping[str, NDArray[Any]]) -> Coordinates:
        """Return the coordinates of rows in arrays (n, ...)."""
        slices = []
        offset = 0
        for name, array in rows.items():
            size = int(np.prod(array.shape[1:], dtype=np.int64))
            slices.append(InputSlice(name, array.dtype, array.shape[1:], offset, size))
            offset += size
        return cls(tuple(slices))

    @property
    def size(self) -> int:
        """The number of coordinates of a row."""
        return sum(part.size for part in self.slices)

    def by_input(self, indices: NDArray[np.intp]) -> Iterator[tuple[InputSlice, NDArray[np.bool_], NDArray[np.intp]]]:
        """Yield each input that `indices` touch, the mask of those in it, and their places in its flat row."""
        if len(self.slices) == 1:
            yield self.slices[0], np.ones(indices.shape, np.bool_), indices
            return
        for part in self.slices:
            mask = (indices >= part.offset) & (indices < part.offset + part.size)
            if mask.any():
                yield part, mask, indices[mask] - part.offset

    def locate(self, index: int) -> tuple[InputSlice, tuple[int, ...]]:
        """Return the input that holds a coordinate, and its index in one row of it."""
        part = next(part for part in self.slices if part.offset <= index < part.offset + part.size)
        return part, tuple(int(i) for i in np.unravel_index(index - part.offset, part.shape))

    def flat_place(self, index: int) -> tuple[str, int, np.dtype[Any]]:
        """Return the name of the input that holds a coordinate, its place in the flat row, and the dtype."""
        part, _ = self.locate(index)
        return part.name, index - part.offset, part.dtype

    def copy(self, indices: NDArray[np.intp], source: Feed, target: Feed, row: int = 0) -> None:
        """Copy coordinates of the first row of `source` to a row of `target`, both flat."""
        for part, _, places in self.by_input(indices):
            target[part.name][row, places] = source[part.name][0, places]


@dataclass(frozen=True, slots=True)
class InputSlice:
    """One input's slice of the coordinates: `shape` is that of one row, `offset` the first coordinate."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    size: int


def flatten_rows(rows: Mapping[str, NDArray[Any]]) -> Feed:
    """Return the arrays as (n, coordinates), as views where numpy can."""
    return {name: array.reshape(len(array), int(np.prod(array.shape[1:]))) for name, array in rows.items()}


def unflatten_rows(rows: Mapping[str, NDArray[Any]], coordinates: Coordinates) -> Feed:
    """Return flat arrays (n, coordinates) in their shapes (n, ...)."""
    return {part.name: rows[part.name].reshape(len(rows[part.name]), *part.shape) for part in coordinates.slices}


def row_count(rows: Mapping[str, NDArray[Any]]) -> int:
    """Return the common length of the first axes.

    Raises:
        InputError: If there is no input, an input is a scalar, or the lengths differ.
    """
    lengths = {}
    for name, array in rows.items():
        if array.ndim == 0:
            raise InputError(f"input {name!r} is a scalar: expected an array with a row axis")
        lengths[name] = len(array)
    if len(set(lengths.values())) != 1:
        raise InputError(f"inputs have different numbers of rows: {lengths}" if lengths else "there are no inputs")
    return next(iter(lengths.values()))


def take_rows(rows: Mapping[str, NDArray[Any]], index: Any) -> Feed:
    """Return the rows at `index` (a slice, a mask or indices) of every input."""
    return {name: array[index] for name, array in rows.items()}


def concat_rows(feeds: list[Feed]) -> Feed:
    """Concatenate the rows of several feeds."""
    # int4 of ml_dtypes would come back as int8.
    return {
        name: np.concatenate([feed[name] for feed in feeds]).astype(array.dtype, copy=False)
        for name, array in feeds[0].items()
    }


def changed_mask(first: Mapping[str, NDArray[Any]], second: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Return whether each coordinate differs in its bits, (n, coordinates). A NaN equals itself, -0.0 is not 0.0."""
    found = []
    others = flatten_rows(second)
    for name, array in flatten_rows(first).items():
        if array.dtype.kind in "OUT":
            found.append(np.asarray(array != others[name], np.bool_))
        else:
            bits = np.dtype(f"u{array.dtype.itemsize}")
            found.append(np.ascontiguousarray(array).view(bits) != np.ascontiguousarray(others[name]).view(bits))
    return np.concatenate(found, axis=1)
