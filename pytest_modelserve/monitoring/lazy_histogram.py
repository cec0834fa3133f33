"""Histograms of lazy frames: counts of cells of a column's range, to choose edges and to count between them.

The engine returns the smallest and the largest value of each cell, so that its rounding does not matter: a cell without
an edge between these is counted as a whole, and the others are split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.monitoring.histogram import Floats, Integers, choose_edges, lowest_bit
from pytest_modelserve.monitoring.lazy_columns import LazyRows

if TYPE_CHECKING:
    import narwhals


CELLS = 2**13
"""Cells of one query: sixteen or more for each bin. With four times as many, grouping takes 1.5 times as long."""
_MAX_CELLS = 2**15
"""Cells of one query if all edges are then ends of cells, which saves another query."""
_ROWS = 2**18
"""Values that represent all rows when edges are chosen."""
_NARROWEST = 2.0**-1000

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Cells:
    """Cells (m,) by rising values: number k, width w, the `rows` in [k·w, (k + 1)·w), and their extreme values."""

    width: Floats
    number: Integers
    rows: Integers
    low: Floats
    high: Floats

    @classmethod
    def sorted(cls, width: Floats, number: Integers, rows: Integers, low: Floats, high: Floats) -> Cells:
        """Return the cells in order."""
        order = np.argsort(low)
        return cls(width[order], number[order], rows[order], low[order], high[order])

    @classmethod
    def of_values(cls, values: Floats, rows: Integers) -> Cells:
        """Return a cell for each of the distinct values (m,) with these rows."""
        return cls.sorted(np.ones(values.size), np.arange(values.size), rows, values, values)

    @classmethod
    def concatenated(cls, parts: Sequence[Cells]) -> Cells:
        """Return the cells of all parts."""
        return cls.sorted(
            np.concatenate([part.width for part in parts]),
            np.concatenate([part.number for part in parts]),
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.low for part in parts]),
            np.concatenate([part.high for part in parts]),
        )

    def chosen(self, mask: Mask) -> Cells:
        """Return the cells where `mask` is True."""
        return Cells(self.width[mask], self.number[mask], self.rows[mask], self.low[mask], self.high[mask])

    @property
    def largest(self) -> float:
        """The largest absolute value."""
        return float(max(-self.low.min(), self.high.max(), 0.0))

    def divisible(self) -> Mask:
        """Return a mask of cells that can be split: they have more than one value, and numbers that fit an integer."""
        narrowest = np.array([widened(0.0, value) for value in np.maximum(-self.low, self.high).tolist()])
        divisible: Mask = (self.width > narrowest) & (self.low < self.high)
        return divisible

    def astride(self, edges: Floats) -> Mask:
        """Return a mask of cells with values on both sides of an edge; a value on an edge lies above it."""
        upper: Mask = np.searchsorted(edges, self.high, side="right") > np.searchsorted(edges, self.low, side="right")
        return upper

    def crowded(self, most: float) -> Mask:
        """Return a mask of cells with more than `most` rows and more than one value."""
        crowded: Mask = (self.rows > most) & (self.low < self.high)
        return crowded

    def snapped(self, edges: Floats) -> Floats:
        """Return rising edges (k,), with those inside a cell moved to its nearer end."""
        index = np.minimum(np.searchsorted(self.high, edges, side="left"), self.high.size - 1)
        inside = (self.low[index] < edges) & (edges <= self.high[index])
        left = self.number[index] * self.width[index]
        right = left + self.width[index]
        return np.unique(np.where(inside, np.where(edges - left < right - edges, left, right), edges))

    def below(self, edges: Floats) -> Integers:
        """Count the rows below each of the edges (k,), none of which is inside a cell."""
        order = np.argsort(self.high)
        rows = np.concatenate(([0], np.cumsum(self.rows[order])))
        below: Integers = rows[np.searchsorted(self.high[order], edges, side="left")]
        return below

    def representative(self) -> Floats:
        """Return about 2¹⁸ rising values with the distribution of all rows, at least the extremes of each cell."""
        least = np.where(self.low < self.high, 2, 1)
        total = int(self.rows.sum())
        share = np.maximum(np.round(self.rows * min(_ROWS / total, 1.0)).astype(np.int64), least)
        first = np.concatenate(([0], np.cumsum(share)[:-1]))
        rank = np.arange(share.sum()) - np.repeat(first, share)
        part = rank / np.repeat(np.maximum(share - 1, 1), share)
        low, high = np.repeat(self.low, share), np.repeat(self.high, share)
        return np.maximum.accumulate(low * (1 - part) + high * part)


def first_width(low: float, high: float, edges: Floats | None) -> float:
    """Return the width of cells for values from `low` to `high`: a power of two.

    All edges are multiples of it if that does not give too many cells.
    """
    span = high / 2 - low / 2
    width = widened(math.ldexp(2 / CELLS, math.frexp(span)[1]), max(abs(low), abs(high)))
    if edges is None:
        return width
    aligned = min((lowest_bit(edge) for edge in edges.tolist() if edge), default=0.0)
    fits = aligned == widened(aligned, max(abs(low), abs(high))) and span < aligned * (_MAX_CELLS / 2)
    return aligned if fits else width


def widened(width: float, largest: float) -> float:
    """Return the width, or the smallest one with which cell numbers up to the value `largest` are exact."""
    return max(width, math.ldexp(1.0, math.frexp(largest)[1] - 53), _NARROWEST)


# Queries for the cells of a column.

_ROUNDS = 4
"""Rounds of splitting: each makes cells narrower by up to 2¹⁵. Cells still divided are compared value by value."""


@dataclass(frozen=True, slots=True)
class CellQueries:
    """Queries for the finite values of one column, clipped to `low` and `high`."""

    rows: LazyRows
    values: narwhals.Expr
    low: float
    high: float

    def cells(self, width: float, within: tuple[float, Integers] | None = None) -> Cells:
        """Return the cells of this width: all, or those within the cells of another width with these numbers."""
        import narwhals

        result = self.rows.collect(
            self._known(within)
            .with_columns(_number(width).alias("cell"))
            .group_by("cell")
            .agg(
                narwhals.len().alias("rows"),
                narwhals.col("value").min().alias("low"),
                narwhals.col("value").max().alias("high"),
            )
        )
        number, rows = (result[name].to_numpy().astype(np.int64) for name in ("cell", "rows"))
        low, high = (result[name].to_numpy().astype(np.float64) for name in ("low", "high"))
        return Cells.sorted(np.full(number.size, width), number, rows, low, high)

    def split(self, cells: Cells, unfit: Callable[[Cells], Mask]) -> Cells:
        """Split the cells that are `unfit`, until none is or no further splitting is possible."""
        for _ in range(_ROUNDS):
            parents = unfit(cells) & cells.divisible()
            if not parents.any():
                break
            finer = [self._within(cells.chosen(parents & (cells.width == w))) for w in np.unique(cells.width[parents])]
            cells = Cells.concatenated([cells.chosen(~parents), *finer])
        return cells

    def _within(self, parents: Cells) -> Cells:
        """Split cells of one width into about CELLS narrower ones."""
        width = float(parents.width[0])
        parts = 2.0 ** max(int(math.log2(CELLS / parents.rows.size)), 1)
        return self.cells(widened(width / parts, parents.largest), (width, parents.number))

    def below(self, cells: Cells, edges: Floats) -> Integers:
        """Count the rows below each of the edges (k,) exactly; values of divided cells are compared with each edge."""
        import narwhals

        astride = cells.astride(edges)
        below = cells.chosen(~astride).below(edges)
        for width in np.unique(cells.width[astride]).tolist():
            divided = cells.chosen(astride & (cells.width == width))
            known = self._known((width, divided.number))
            expressions = [
                narwhals.when(narwhals.col("value") < edge).then(1).otherwise(0).sum().alias(str(index))
                for index, edge in enumerate(edges.tolist())
            ]
            below += np.array(
                [int(rows) for rows in self.rows.collect(known.select(*expressions)).row(0)], dtype=np.int64
            )
        return below

    def _known(self, within: tuple[float, Integers] | None) -> narwhals.LazyFrame[Any]:
        import narwhals

        value = narwhals.col("value")
        frame = self.rows.frame.select(self.values.alias("value")).filter(value.is_finite())
        frame = frame.with_columns(value.clip(self.low, self.high))
        return (
            frame if within is None else frame.filter(_number(within[0]).is_in(within[1].astype(np.float64).tolist()))
        )


def _number(width: float) -> narwhals.Expr:
    """Return the number of a value's cell; division by a power of two is exact.

    It stays a double, because engines may compute it before they filter values that do not fit an integer.
    """
    import narwhals

    return (narwhals.col("value") * (1 / width)).floor()


def edges_and_below(
    rows: LazyRows, values: narwhals.Expr, *, low: float, high: float, bins: int, edges: Floats | None
) -> tuple[Floats, Integers]:
    """Return `edges`, or about `bins` chosen ones, and the number of finite values (`low` to `high`) below each."""
    if edges is not None:
        low, high = float(np.nextafter(edges[0], -np.inf)), float(edges[-1])
    queries = CellQueries(rows, values, low, high)
    cells = queries.cells(first_width(low, high, edges))
    if edges is None:
        most = int(cells.rows.sum()) / (2 * bins)
        cells = queries.split(cells, lambda found: found.crowded(most))
        edges = cells.snapped(choose_edges(cells.representative(), bins=bins))
    else:
        cells = queries.split(cells, lambda found: found.astride(edges))
    return edges, queries.below(cells, edges)
