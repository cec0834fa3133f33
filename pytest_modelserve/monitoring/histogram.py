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
from fractions import Fraction
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


# Where a profile compares distributions: at about equally many rows, and on either side of every heavy value.


_COARSEST_CELLS = 256
"""About one a bin: the coarsest grid that is tried. Each further try halves its cells until the edges fit."""
_SLACK = 2.0**-20
"""How far from the one value of a constant column its edges lie, relative to it: wider than float32 rounds."""
_SLACK_OF_ZERO = 2.0**-500
"""The same for a column of zeros, which tells no scale: as good as nothing, and far from where doubles end."""


def choose_edges(ordered: Floats, *, bins: int) -> Floats:
    """The edges (k,), rising, between bins that hold about n/bins of the `ordered` values (n,), finite and rising.

    Each lies between two neighbouring distinct values, so that a value that was rounded another way stays in its bin.
    A value that holds more than n/bins rows has an edge on either side, also at the ends of the range; so has every
    value where at most `bins` are distinct, and bins then lose nothing. At most 2·bins edges.

    Edges move to a grid on which a table finds bins fast, if none passes more than n/(2·bins) rows on its way and none
    an end of the range; else they stay, and counting is slower.
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
    """The rows below each edge: of `starts`, the first rows of each distinct value and n, those beside quantiles."""
    n = starts[-1]
    quantiles = np.arange(1, bins) * n / bins
    right = np.searchsorted(starts, quantiles, side="left")
    left = right - (starts[right] > quantiles)
    heavy = starts[right] - starts[left] > n / bins
    nearest = np.where(quantiles - starts[left] < starts[right] - quantiles, left, right)[~heavy]
    chosen: Integers = starts[np.unique(np.concatenate((left[heavy], right[heavy], nearest)))]
    return chosen


def _between(ordered: Floats, below: Integers) -> Floats:
    """An edge with exactly `below` (k,) of the ordered rows below it: halfway between two rows, or beyond the range."""
    upper, lower = ordered[np.minimum(below, ordered.size - 1)], ordered[np.maximum(below - 1, 0)]
    middle = lower / 2 + upper / 2
    edges = np.where(middle > lower, middle, upper)
    first, last = ordered[0], ordered[-1]
    second, next_to_last = ordered[ordered > first][:1], ordered[ordered < last][-1:]
    slack = abs(first) * _SLACK or _SLACK_OF_ZERO
    with np.errstate(over="ignore"):  # what is infinite becomes the last number below
        edges[below == 0] = first - (slack if not second.size else (second[0] / 2 - first / 2))
        edges[below == ordered.size] = last + (slack if not second.size else (last / 2 - next_to_last[0] / 2))
    return np.clip(edges, -np.finfo(np.float64).max, np.finfo(np.float64).max)


def _on_grids(wanted: Floats) -> Iterator[Floats]:
    """The wanted edges moved to the nearest points of ever finer grids: those of EvenCells, then of RelativeCells."""
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


# Sums of numbers and of their squares without any rounding, so that in whatever order they are added they agree.
#
# A double splits, by adding and subtracting a power of two σ, into a multiple of σ·2⁻⁵³ and a rest, both exact; so many
# leading parts add up to a double exactly, and the rests go the same way with a smaller σ until nothing is left (Rump,
# Ogita and Oishi 2008, SIAM J. Sci. Comput. 31, 189–224, algorithm 3.2). A square is the exact sum of three products of
# halves of 26 bits (Veltkamp 1968; Dekker 1971, Numer. Math. 18, 224–242). The few numbers whose squares would overflow
# or vanish go one by one as integers.


Exact = tuple[int, int, int, int]
"""Σx and Σx², each as an odd mantissa m, or 0, and an exponent e: m·2ᵉ."""

_CHUNK = 32_768
"""Numbers a step. Below 2¹⁶ − 2, a σ of 2¹⁶ times the largest of them leaves room for their sum (`_HEADROOM`)."""
_HEADROOM = 16
_LOWEST, _HIGHEST = 2.0**-450, 2.0**450
"""Between them a square, split to its last bit, neither vanishes nor overflows."""
_UNIT = -2300
"""The exponent that all sums are counted in: below that of the smallest square of a double, 2⁻²¹⁴⁸."""
_SPLITTER = 2.0**27 + 1


@dataclass(slots=True)
class _Sum:
    """Whole multiples of 2 to the power of _UNIT, added up."""

    units: int = 0

    def add(self, values: Floats, most: float, buffer: Floats) -> None:
        """Add all `values` (n,), none beyond ±`most`; they are used up, and `buffer` (n,) is overwritten."""
        sigma = math.ldexp(1.0, math.frexp(most)[1] + _HEADROOM)
        while values.any():
            np.add(values, sigma, out=buffer)
            np.subtract(buffer, sigma, out=buffer)
            self.units += _in_units(float(buffer.sum()))
            np.subtract(values, buffer, out=values)
            sigma = math.ldexp(sigma, _HEADROOM - 53)

    def exact(self) -> tuple[int, int]:
        """The mantissa, odd or 0, and its exponent."""
        if not self.units:
            return 0, 0
        zeros = (self.units & -self.units).bit_length() - 1
        return self.units >> zeros, zeros + _UNIT


def exact_sums(values: Floats) -> Exact:
    """Σx and Σx² of finite doubles (n,), exactly. About 12 ns a number, a sixth of it where all are of one size."""
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
    """Copies of at most _CHUNK numbers with a bound on their size; the extreme ones are added to the sums at once."""
    for start in range(0, values.size, _CHUNK):
        numbers = values[start : start + _CHUNK].copy()
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
    """The sums of both data sets together."""
    return (*_added(one[:2], other[:2]), *_added(one[2:], other[2:]))


def _added(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    both = _Sum(sum(mantissa << (exponent - _UNIT) for mantissa, exponent in (one, other)))
    return both.exact()


def moments(sums: Exact, n: int) -> tuple[float, float]:
    """The mean and the standard deviation (of the population) of `n` numbers with these sums, both correctly rounded
    but for the square root: the same whatever way the sums came about. 0 and 0 of no number."""
    if not n:
        return 0.0, 0.0
    total, squares = (Fraction(m) * Fraction(2) ** e for m, e in (sums[:2], sums[2:]))
    mean = total / n
    variance = squares / n - mean * mean
    if not variance:
        return float(mean), 0.0
    # By a power of four near 1, so that neither overflows nor vanishes as a double.
    half = (variance.numerator.bit_length() - variance.denominator.bit_length()) // 2
    return float(mean), math.ldexp(math.sqrt(variance / Fraction(4) ** half), half)
