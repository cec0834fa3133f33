"""How many values fall between the edges of a profile: one pass that looks up most of them in a table of cells.

The bin of a value is the number of edges that it does not lie below, as `np.searchsorted(edges, value, "right")` has
it; but that search costs 80 ns a value and sorting 5 to 60. Where the edges lie on one of two grids, a few vector
operations, 1.5 ns, give each value the number of its cell, and each cell lies in one bin alone: the counts are the same
to the last row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

CHUNK = 262_144
"""Values a step: a buffer of 2 MiB. Shorter steps stay nearer and still take longer, by what calling numpy costs."""
MAX_CELLS = 65_536
"""Cells of a table at most: with 512 KiB of counts, one step in memory a value is still cheaper than sorting."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EvenCells:
    """Cells of one width w, a power of two: adding `shift`, 1.5·2⁵²·w, leaves a value's cell in the last bits.

    Cell j reaches from (j − ½)w to (j + ½)w, and rounding half to even gives the end between an odd j and j + 1 to
    j + 1. Edges of the form (4i + 3)·w/2 are such ends, so that a value on an edge lies above it.
    """

    shift: np.float64

    @classmethod
    def of(cls, edges: Floats) -> EvenCells | None:
        """The cells for edges of the form (4i + 3)·w/2; None for others, and near the ends of what a double holds."""
        half = lowest_bit(edges[0])
        if not 2.0**-1000 < half < 2.0**900:
            return None
        # From 2⁵⁰ steps off zero on, the sum would round otherwise.
        if np.abs(edges[[0, -1]]).max() >= 2.0**50 * half:
            return None
        exact = ((edges / half - 3) % 4 == 0).all()
        return cls(np.float64(1.5 * 2.0**53 * half)) if exact else None

    def number(self, values: Floats, first: np.int64) -> Integers:
        """The number of each value's cell, counted from `first`, written over `values`."""
        np.add(values, self.shift, out=values)
        numbers = values.view(np.int64)
        return np.subtract(numbers, first, out=numbers)


@dataclass(frozen=True, slots=True)
class RelativeCells:
    """Cells of one relative width, for positive edges: the leading bits of a double are the number of its cell.

    Positive doubles order like their bits read as integers, the exponent first. Leaving off the last `shift` bits
    gives cells that double in width with every power of two: the grid for values that spread over many of them.
    """

    shift: np.int64

    @classmethod
    def of(cls, edges: Floats) -> RelativeCells | None:
        """The cells for edges from 2⁻²⁵⁵ to 2⁵¹¹, as wide as the last bits that are zero in all; None for others."""
        # Within these ends, and up to one cell a power of two, a NaN's number is none of the table's: see CellTable.
        if not (edges[0] >= 2.0**-255 and edges[-1] <= 2.0**511):
            return None
        bits = int(np.bitwise_or.reduce(edges.view(np.int64)))
        return cls(np.int64(min((bits & -bits).bit_length() - 1, 52)))

    def number(self, values: Floats, first: np.int64) -> Integers:
        """The number of each value's cell, counted from `first`, written over `values`."""
        numbers = values.view(np.int64)
        np.right_shift(numbers, self.shift, out=numbers)
        return np.subtract(numbers, first, out=numbers)


@dataclass(frozen=True, slots=True)
class CellTable:
    """The cells between the first and the last edge, and one beyond either; `starts` are the first of each bin."""

    cells: EvenCells | RelativeCells
    low: np.float64
    high: np.float64
    first: np.int64
    starts: Integers

    @classmethod
    def of(cls, edges: Floats) -> CellTable | None:
        """The table on the first grid that holds all edges (k,); None where none does with MAX_CELLS at most."""
        if not edges.size:
            return None
        with np.errstate(over="ignore"):  # beyond the last double is infinity, which no table holds
            ends = np.concatenate(([np.nextafter(edges[0], -math.inf)], edges))
        for cells in (EvenCells.of(edges), RelativeCells.of(edges)):
            if cells is not None:
                numbers = cells.number(ends.copy(), np.int64(0))
                if numbers[-1] - numbers[0] < MAX_CELLS:
                    return cls(cells, ends[0], ends[-1], numbers[0], numbers - numbers[0])
        return None

    def count(self, values: NDArray[Any]) -> Integers:
        """How many of `values` (n,) lie in each bin, NaN left out."""
        with np.errstate(invalid="ignore"):  # as the addition of a signalling NaN is
            try:
                return self._count(values, holding_nan=False)
            except IndexError:  # clipping leaves NaN as it is, and its bits are far from those of any cell
                return self._count(values, holding_nan=True)

    def bins_of(self, values: Floats) -> Integers:
        """The bin of each of `values` (n,); NaN has none, and IndexError may be what comes of it."""
        bins = np.repeat(np.arange(self.starts.size), np.diff(self.starts, append=self.starts[-1] + 1))
        found: Integers = bins[self.cells.number(np.clip(values, self.low, self.high), self.first)]
        return found

    def _count(self, values: NDArray[Any], *, holding_nan: bool) -> Integers:
        total = np.zeros(self.starts[-1] + 1, dtype=np.int64)
        buffer = np.empty(min(CHUNK, len(values)))
        for rows in chunks(len(values)):
            chunk = values[rows]
            if holding_nan:
                chunk = chunk[~np.isnan(chunk)]
            clipped = buffer[: len(chunk)]
            if not chunk.flags.c_contiguous:  # a column of an array (n, features): copying first halves the time
                clipped[:] = chunk
                chunk = clipped
            np.clip(chunk, self.low, self.high, out=clipped)
            np.add.at(total, self.cells.number(clipped, self.first), 1)
        counts: Integers = np.add.reduceat(total, self.starts)
        return counts


def count_values(values: NDArray[Any], edges: ArrayLike) -> Integers:
    """How many of `values` (n,), numbers of any kind, lie in each of the k + 1 bins between `edges` (k,); NaN in none.

    Beyond the values it holds about 2 MiB.
    """
    wanted = np.array(edges, dtype=np.float64)
    table = CellTable.of(wanted)
    if table is not None:
        return table.count(values)
    below = np.zeros(wanted.size + 2, dtype=np.int64)
    for rows in chunks(len(values)):
        chunk = values[rows].astype(np.float64)
        known = np.sort(chunk[~np.isnan(chunk)])
        below[1:-1] += np.searchsorted(known, wanted, side="left")
        below[-1] += known.size
    return np.diff(below)


def bins_of(values: Floats, edges: ArrayLike) -> Integers:
    """The bin, 0 to k, between `edges` (k,) of each of `values` (n,), none of them NaN."""
    wanted = np.array(edges, dtype=np.float64)
    table = CellTable.of(wanted)
    return np.searchsorted(wanted, values, side="right") if table is None else table.bins_of(values)


def chunks(n: int) -> Iterator[slice]:
    """Slices of at most CHUNK that together hold n rows."""
    return (slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))


def lowest_bit(value: np.float64 | float) -> float:
    """The largest power of two that `value` is a whole multiple of; 0 for 0."""
    mantissa, exponent = math.frexp(value)
    whole = int(abs(mantissa) * 2.0**53)
    return math.ldexp(whole & -whole, exponent - 53)
