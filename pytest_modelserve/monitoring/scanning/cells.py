"""How many finite values of a column lie in each cell of its range: enough to choose edges, and to count between them.

Cells come from an engine with the least and the largest value in each, so that nothing rests on how the engine rounds:
a cell between whose ends no edge lies is counted whole, and the few others are split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.monitoring.binning import Floats, Integers, lowest_bit

CELLS = 2**13
"""Cells a query asks for: sixteen a bin or more. In four times as many, grouping takes half as long again."""
_MOST_CELLS = 2**15
"""Those that it asks for where all edges then lie on the ends of cells, which spares another query."""
_ROWS = 2**18
"""Rows that stand for all of them when edges are chosen."""
_NARROWEST = 2.0**-1000

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Cells:
    """Cells (m,) by rising values: their number k and width w, the `rows` from k·w on and below (k + 1)·w, and the
    least and the largest value of these."""

    width: Floats
    number: Integers
    rows: Integers
    low: Floats
    high: Floats

    @classmethod
    def sorted(cls, width: Floats, number: Integers, rows: Integers, low: Floats, high: Floats) -> Cells:
        """The cells put in order."""
        order = np.argsort(low)
        return cls(width[order], number[order], rows[order], low[order], high[order])

    @classmethod
    def of_values(cls, values: Floats, rows: Integers) -> Cells:
        """Distinct values (m,) with as many rows each."""
        return cls.sorted(np.ones(values.size), np.arange(values.size), rows, values, values)

    @classmethod
    def together(cls, parts: Sequence[Cells]) -> Cells:
        """The cells of all parts."""
        return cls.sorted(
            np.concatenate([part.width for part in parts]),
            np.concatenate([part.number for part in parts]),
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.low for part in parts]),
            np.concatenate([part.high for part in parts]),
        )

    def chosen(self, mask: Mask) -> Cells:
        """Some of the cells."""
        return Cells(self.width[mask], self.number[mask], self.rows[mask], self.low[mask], self.high[mask])

    @property
    def largest(self) -> float:
        """The largest size of a value."""
        return float(max(-self.low.min(), self.high.max(), 0.0))

    def divisible(self) -> Mask:
        """Whether narrower cells can be told apart: their numbers fit an integer, and there is more than one value."""
        narrowest = np.array([widened(0.0, value) for value in np.maximum(-self.low, self.high).tolist()])
        divisible: Mask = (self.width > narrowest) & (self.low < self.high)
        return divisible

    def astride(self, edges: Floats) -> Mask:
        """Whether a cell has values on both sides of one of the edges; a value on an edge lies above it."""
        upper: Mask = np.searchsorted(edges, self.high, side="right") > np.searchsorted(edges, self.low, side="right")
        return upper

    def crowded(self, most: float) -> Mask:
        """Whether a cell has more than `most` rows, and not all of one value."""
        crowded: Mask = (self.rows > most) & (self.low < self.high)
        return crowded

    def between(self, edges: Floats) -> Floats:
        """The edges (k,), rising, of which those inside a cell moved to the nearer one of its ends: astride of none."""
        index = np.minimum(np.searchsorted(self.high, edges, side="left"), self.high.size - 1)
        inside = (self.low[index] < edges) & (edges <= self.high[index])
        left = self.number[index] * self.width[index]
        right = left + self.width[index]
        return np.unique(np.where(inside, np.where(edges - left < right - edges, left, right), edges))

    def below(self, edges: Floats) -> Integers:
        """How many rows lie below each of the edges (k,), of cells that are astride of none."""
        order = np.argsort(self.high)
        rows = np.concatenate(([0], np.cumsum(self.rows[order])))
        below: Integers = rows[np.searchsorted(self.high[order], edges, side="left")]
        return below

    def ordered(self) -> Floats:
        """About 2¹⁸ values, rising, that are spread as all rows are: each cell has its own share, from its least to its
        largest value, and at least these two."""
        least = np.where(self.low < self.high, 2, 1)
        total = int(self.rows.sum())
        share = np.maximum(np.round(self.rows * min(_ROWS / total, 1.0)).astype(np.int64), least)
        first = np.concatenate(([0], np.cumsum(share)[:-1]))
        rank = np.arange(share.sum()) - np.repeat(first, share)
        part = rank / np.repeat(np.maximum(share - 1, 1), share)
        low, high = np.repeat(self.low, share), np.repeat(self.high, share)
        return np.maximum.accumulate(low * (1 - part) + high * part)


def first_width(low: float, high: float, edges: Floats | None) -> float:
    """The width of cells for values from `low` to `high`: a power of two of which all edges are multiples, if cells are
    then not too many."""
    span = high / 2 - low / 2
    width = widened(math.ldexp(2 / CELLS, math.frexp(span)[1]), max(abs(low), abs(high)))
    if edges is None:
        return width
    aligned = min((lowest_bit(edge) for edge in edges.tolist() if edge), default=0.0)
    fits = aligned == widened(aligned, max(abs(low), abs(high))) and span < aligned * (_MOST_CELLS / 2)
    return aligned if fits else width


def widened(width: float, largest: float) -> float:
    """The width, or the least one with which the number of every cell up to `largest` in size is exact."""
    return max(width, math.ldexp(1.0, math.frexp(largest)[1] - 53), _NARROWEST)
