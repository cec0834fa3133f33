"""Histograms: the edges of bins, counts of values between them, and exact sums.

The bin of a value is `np.searchsorted(edges, value, "right")`, but that costs 80 ns a value, and sorting 5 to 60. If
the edges lie on one of two grids, a few vector operations (1.5 ns) give the number of a value's cell, and each cell
lies in one bin: the counts are identical.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

CHUNK = 262_144
"""Values of one step, a buffer of 2 MiB: with shorter steps, calls of numpy cost more than the cache saves."""
MAX_CELLS = 65_536
"""The most cells of a table: with 512 KiB of counts, a lookup is still cheaper than sorting."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EvenCells:
    """Cells of one width w, a power of two: adding `shift`, 1.5·2⁵²·w, leaves the number of the cell in the last bits.

    Cell j reaches from (j − ½)w to (j + ½)w. Rounding half to even assigns the end between an odd j and j + 1 to j + 1.
    Edges of the form (4i + 3)·w/2 are such ends, so that a value on an edge lies above it.
    """

    shift: np.float64

    @classmethod
    def of(cls, edges: Floats) -> EvenCells | None:
        """Return the cells for edges of the form (4i + 3)·w/2; None for others, and near the limits of a double."""
        half = lowest_bit(edges[0])
        if not 2.0**-1000 < half < 2.0**900:
            return None
        # More than 2⁵⁰ steps from zero, the sum would round differently.
        if np.abs(edges[[0, -1]]).max() >= 2.0**50 * half:
            return None
        exact = ((edges / half - 3) % 4 == 0).all()
        return cls(np.float64(1.5 * 2.0**53 * half)) if exact else None

    def number(self, values: Floats, first: np.int64) -> Integers:
        """Return the number of each value's cell, counted from `first`; `values` is overwritten."""
        np.add(values, self.shift, out=values)
        numbers = values.view(np.int64)
        return np.subtract(numbers, first, out=numbers)


@dataclass(frozen=True, slots=True)
class RelativeCells:
    """Cells of one relative width, for positive edges: the leading bits of a double are the number of its cell.

    Positive doubles have the order of their bits as integers. Without the last `shift` bits, cells double in width with
    every power of two: a grid for values of many magnitudes.
    """

    shift: np.int64

    @classmethod
    def of(cls, edges: Floats) -> RelativeCells | None:
        """Return the widest cells for edges from 2⁻²⁵⁵ to 2⁵¹¹; None for others."""
        # Within these limits, and with cells of at most a power of two, NaN has no cell of the table: see CellTable.
        if not (edges[0] >= 2.0**-255 and edges[-1] <= 2.0**511):
            return None
        bits = int(np.bitwise_or.reduce(edges.view(np.int64)))
        return cls(np.int64(min((bits & -bits).bit_length() - 1, 52)))

    def number(self, values: Floats, first: np.int64) -> Integers:
        """Return the number of each value's cell, counted from `first`; `values` is overwritten."""
        numbers = values.view(np.int64)
        np.right_shift(numbers, self.shift, out=numbers)
        return np.subtract(numbers, first, out=numbers)


@dataclass(frozen=True, slots=True)
class CellTable:
    """The cells from the first to the last edge, and one beyond each; `starts` are the first cells of the bins."""

    cells: EvenCells | RelativeCells
    low: np.float64
    high: np.float64
    first: np.int64
    starts: Integers

    @classmethod
    def of(cls, edges: Floats) -> CellTable | None:
        """Return the table on the first grid with all edges (k,) and at most MAX_CELLS cells; None if there is none."""
        if not edges.size:
            return None
        with np.errstate(over="ignore"):  # the next double may be infinite, which no table contains
            ends = np.concatenate(([np.nextafter(edges[0], -math.inf)], edges))
        for cells in (EvenCells.of(edges), RelativeCells.of(edges)):
            if cells is not None:
                numbers = cells.number(ends.copy(), np.int64(0))
                if numbers[-1] - numbers[0] < MAX_CELLS:
                    return cls(cells, ends[0], ends[-1], numbers[0], numbers - numbers[0])
        return None

    def count(self, values: NDArray[Any]) -> Integers:
        """Count the `values` (n,) in each bin, without NaN."""
        with np.errstate(invalid="ignore"):  # raised by the addition of a signaling NaN
            try:
                return self._count(values, has_nan=False)
            except IndexError:  # NaN is not clipped, and its bits are far from those of any cell
                return self._count(values, has_nan=True)

    def bins_of(self, values: Floats) -> Integers:
        """Return the bin of each of `values` (n,), without NaN, which may raise IndexError."""
        bins = np.repeat(np.arange(self.starts.size), np.diff(self.starts, append=self.starts[-1] + 1))
        found: Integers = bins[self.cells.number(np.clip(values, self.low, self.high), self.first)]
        return found

    def _count(self, values: NDArray[Any], *, has_nan: bool) -> Integers:
        total = np.zeros(self.starts[-1] + 1, dtype=np.int64)
        buffer = np.empty(min(CHUNK, len(values)))
        for rows in chunks(len(values)):
            chunk = values[rows]
            if has_nan:
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
    """Count the `values` (n,) in each of the k + 1 bins between `edges` (k,), without NaN, in about 2 MiB of memory."""
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
    """Return the bin, 0 to k, of each of `values` (n,) between `edges` (k,); NaN is not allowed."""
    wanted = np.array(edges, dtype=np.float64)
    table = CellTable.of(wanted)
    return np.searchsorted(wanted, values, side="right") if table is None else table.bins_of(values)


def chunks(n: int) -> Iterator[slice]:
    """Return slices of at most CHUNK rows that cover n rows."""
    return (slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))


def lowest_bit(value: np.float64 | float) -> float:
    """Return the largest power of two of which `value` is an integer multiple; 0 for 0."""
    mantissa, exponent = math.frexp(value)
    whole = int(abs(mantissa) * 2.0**53)
    return math.ldexp(whole & -whole, exponent - 53)


# Edges: about equally many rows in each bin, and an edge on either side of every frequent value.

_COARSEST_CELLS = 256
"""About one for each bin: the coarsest grid tried. Each further grid has cells of half the width."""
_SLACK = 2.0**-20
"""The relative distance of a constant column's edges from its value: wider than float32 rounds."""
_SLACK_OF_ZERO = 2.0**-500
"""The same for a column of zeros, which has no scale: negligible, and far from the smallest double."""


def choose_edges(ordered: Floats, *, bins: int) -> Floats:
    """Return rising edges (k,) of bins with about n/bins of the `ordered` values (n,), which are finite and rising.

    Each edge lies between two distinct values, so that a value stays in its bin if it is rounded differently. A value
    in more than n/bins rows has an edge on either side, and so has every value if at most `bins` are distinct. There
    are at most 2·bins edges.

    Edges move to a grid with a fast table if none passes more than n/(2·bins) rows or an end of the range. Otherwise
    they stay, and counting is slower.
    """
    n = ordered.size
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] > ordered[:-1], [True])))
    below = starts if starts.size - 1 <= bins else _quantile_starts(starts, bins)
    wanted = _between(ordered, below)
    tolerance = np.where((below == 0) | (below == n), 0, n // (2 * bins))
    for moved in _on_grids(wanted):
        if (np.abs(np.searchsorted(ordered, moved, side="left") - below) <= tolerance).all():
            return np.unique(moved)
    return np.unique(wanted)


def _quantile_starts(starts: Integers, bins: int) -> Integers:
    """Return the rows below each edge: those of `starts` (the first row of each distinct value, and n) at quantiles."""
    n = starts[-1]
    quantiles = np.arange(1, bins) * n / bins
    right = np.searchsorted(starts, quantiles, side="left")
    left = right - (starts[right] > quantiles)
    heavy = starts[right] - starts[left] > n / bins
    nearest = np.where(quantiles - starts[left] < starts[right] - quantiles, left, right)[~heavy]
    chosen: Integers = starts[np.unique(np.concatenate((left[heavy], right[heavy], nearest)))]
    return chosen


def _between(ordered: Floats, below: Integers) -> Floats:
    """Return edges with exactly `below` (k,) ordered rows below each: halfway between two rows, or beyond the range."""
    upper, lower = ordered[np.minimum(below, ordered.size - 1)], ordered[np.maximum(below - 1, 0)]
    middle = lower / 2 + upper / 2
    edges = np.where(middle > lower, middle, upper)
    first, last = ordered[0], ordered[-1]
    second, next_to_last = ordered[ordered > first][:1], ordered[ordered < last][-1:]
    slack = abs(first) * _SLACK or _SLACK_OF_ZERO
    with np.errstate(over="ignore"):  # infinities become the largest finite number
        edges[below == 0] = first - (slack if not second.size else (second[0] / 2 - first / 2))
        edges[below == ordered.size] = last + (slack if not second.size else (last / 2 - next_to_last[0] / 2))
    return np.clip(edges, -np.finfo(np.float64).max, np.finfo(np.float64).max)


def _on_grids(wanted: Floats) -> Iterator[Floats]:
    """Return the edges moved to the nearest points of ever finer grids, first of EvenCells, then of RelativeCells."""
    with np.errstate(over="ignore"):
        spread = wanted[-1] - wanted[0] or abs(wanted[0]) or 1.0
    if math.isfinite(spread):
        coarsest = math.frexp(spread / _COARSEST_CELLS)[1]
        finest = math.frexp(spread / (MAX_CELLS - 4))[1]
        for exponent in range(coarsest, finest - 1, -1):
            half = math.ldexp(0.5, exponent)
            yield (4 * np.round((wanted / half - 3) / 4) + 3) * half
    if wanted[0] > 0:
        bits = wanted.view(np.int64)
        cells = int(bits[-1] - bits[0])
        for shift in range(min(52, (cells // _COARSEST_CELLS).bit_length()), (cells // MAX_CELLS).bit_length(), -1):
            yield ((bits + (1 << (shift - 1))) >> shift << shift).view(np.float64)


# Exact sums of numbers and of their squares, so that profiles merge to the same bits in any order.
#
# Adding and subtracting a power of two σ splits a double into a multiple of σ·2⁻⁵³ and a rest, both exact. The leading
# parts add up exactly; the rests follow with a smaller σ until nothing is left (Rump, Ogita and Oishi 2008, SIAM J.
# Sci. Comput. 31, 189–224, algorithm 3.2). A square is the exact sum of three products of halves of 26 bits (Veltkamp
# 1968; Dekker 1971, Numer. Math. 18, 224–242). Numbers whose squares would overflow or underflow are added as
# integers.

Exact = tuple[int, int, int, int]
"""Σx and Σx², each as an odd mantissa m, or 0, and an exponent e: m·2ᵉ."""

_STEP = 32_768
"""Numbers of one step. Below 2¹⁶ − 2, a σ of 2¹⁶ times the largest one bounds their sum (`_HEADROOM_BITS`)."""
_HEADROOM_BITS = 16
_LOWEST, _HIGHEST = 2.0**-450, 2.0**450
"""Between them a square, split to its last bit, neither underflows nor overflows."""
_UNIT = -2300
"""The exponent of all sums: below that of the smallest square of a double, 2⁻²¹⁴⁸."""
_SPLITTER = 2.0**27 + 1


@dataclass(slots=True)
class _Sum:
    """A sum of integer multiples of 2 to the power of _UNIT."""

    units: int = 0

    def add(self, values: Floats, most: float, buffer: Floats) -> None:
        """Add all `values` (n,) up to ±`most`; `values` and `buffer` (n,) are overwritten."""
        sigma = math.ldexp(1.0, math.frexp(most)[1] + _HEADROOM_BITS)
        while values.any():
            np.add(values, sigma, out=buffer)
            np.subtract(buffer, sigma, out=buffer)
            self.units += _in_units(float(buffer.sum()))
            np.subtract(values, buffer, out=values)
            sigma = math.ldexp(sigma, _HEADROOM_BITS - 53)

    def exact(self) -> tuple[int, int]:
        """Return the mantissa, odd or 0, and its exponent."""
        if not self.units:
            return 0, 0
        zeros = (self.units & -self.units).bit_length() - 1
        return self.units >> zeros, zeros + _UNIT


def exact_sums(values: Floats) -> Exact:
    """Return the exact Σx and Σx² of finite doubles (n,): 12 ns a number, a sixth of it for one magnitude."""
    total, squares = _Sum(), _Sum()
    for numbers, most in _steps(values, total, squares):
        buffer, high = np.empty(numbers.size), numbers * _SPLITTER
        high -= high - numbers
        low = numbers - high
        total.add(numbers, most, buffer)
        squares.add(high * high, 2 * most * most, buffer)
        squares.add(2 * high * low, most * most, buffer)
        squares.add(low * low, most * most, buffer)
    return (*total.exact(), *squares.exact())


def _steps(values: Floats, total: _Sum, squares: _Sum) -> Iterator[tuple[Floats, float]]:
    """Yield copies of at most _STEP numbers with a bound on their size; extreme numbers are added to the sums."""
    for start in range(0, values.size, _STEP):
        numbers = values[start : start + _STEP].copy()
        sizes = np.abs(numbers)
        extreme = (sizes > _HIGHEST) | ((sizes < _LOWEST) & (sizes > 0))
        for number in numbers[extreme].tolist():
            units = _in_units(number)
            total.units += units
            squares.units += units * units >> -_UNIT
        numbers[extreme] = 0.0
        sizes[extreme] = 0.0
        yield numbers, float(sizes.max())


def _in_units(number: float) -> int:
    numerator, denominator = number.as_integer_ratio()
    return (numerator << -_UNIT) // denominator


def added(one: Exact, other: Exact) -> Exact:
    """Return the sums of both data sets."""
    return (*_added(one[:2], other[:2]), *_added(one[2:], other[2:]))


def _added(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    both = _Sum(sum(mantissa << (exponent - _UNIT) for mantissa, exponent in (one, other)))
    return both.exact()


def moments(sums: Exact, n: int) -> tuple[float, float]:
    """Return the mean and the population standard deviation of `n` numbers with these sums; 0 and 0 for none.

    Both are correctly rounded except for the square root, so that they do not depend on the order of the sums.
    """
    if not n:
        return 0.0, 0.0
    total, squares = (Fraction(m) * Fraction(2) ** e for m, e in (sums[:2], sums[2:]))
    mean = total / n
    variance = squares / n - mean * mean
    if not variance:
        return float(mean), 0.0
    # Scale by a power of four to near 1, so that the variance neither overflows nor underflows as a double.
    half = (variance.numerator.bit_length() - variance.denominator.bit_length()) // 2
    return float(mean), math.ldexp(math.sqrt(variance / Fraction(4) ** half), half)
