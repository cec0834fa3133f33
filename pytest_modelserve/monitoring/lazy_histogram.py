"""How many finite values of a column lie in each cell of its range: enough to choose edges, and to count between them.

Cells come from an engine with the least and the largest value in each, so that nothing rests on how the engine rounds:
a cell between whose ends no edge lies is counted whole, and the few others are split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.monitoring.histogram import Floats, Integers, choose_edges, lowest_bit

if TYPE_CHECKING:
    import narwhals

    from pytest_modelserve.monitoring.lazy_profiler import LazyRows


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


# The cells of a column, counted by an engine, and the rows below the edges of its bins.


_ROUNDS = 4
"""Times that cells are split: each makes them narrower by up to 2¹⁵, and what an edge still divides is compared."""


@dataclass(frozen=True, slots=True)
class CellQueries:
    """The finite values of one column, held between `low` and `high`: what lies outside counts as if on these ends."""

    rows: LazyRows
    values: narwhals.Expr
    low: float
    high: float

    def cells(self, width: float, within: tuple[float, Integers] | None = None) -> Cells:
        """The cells of this width: all, or those that lie within the cells of another width with these numbers."""
        import narwhals

        answer = self.rows.answer(
            self._known(within)
            .with_columns(_number(width).alias("cell"))
            .group_by("cell")
            .agg(
                narwhals.len().alias("rows"),
                narwhals.col("value").min().alias("low"),
                narwhals.col("value").max().alias("high"),
            )
        )
        number, rows = (answer[name].to_numpy().astype(np.int64) for name in ("cell", "rows"))
        low, high = (answer[name].to_numpy().astype(np.float64) for name in ("low", "high"))
        return Cells.sorted(np.full(number.size, width), number, rows, low, high)

    def split(self, cells: Cells, unfit: Callable[[Cells], Mask]) -> Cells:
        """The cells, of which those that are `unfit` were split until none was, or as often as makes sense."""
        for _ in range(_ROUNDS):
            parents = unfit(cells) & cells.divisible()
            if not parents.any():
                break
            finer = [self._within(cells.chosen(parents & (cells.width == w))) for w in np.unique(cells.width[parents])]
            cells = Cells.together([cells.chosen(~parents), *finer])
        return cells

    def _within(self, parents: Cells) -> Cells:
        """The cells that these, all of one width, are split into: about as many as one query asks for."""
        width = float(parents.width[0])
        parts = 2.0 ** max(int(math.log2(CELLS / parents.rows.size)), 1)
        return self.cells(widened(width / parts, parents.largest), (width, parents.number))

    def below(self, cells: Cells, edges: Floats) -> Integers:
        """The rows below each of the edges (k,), exactly; cells that are still astride are compared edge by edge."""
        import narwhals

        astride = cells.astride(edges)
        below = cells.chosen(~astride).below(edges)
        for width in np.unique(cells.width[astride]).tolist():
            divided = cells.chosen(astride & (cells.width == width))
            known = self._known((width, divided.number))
            asked = [
                narwhals.when(narwhals.col("value") < edge).then(1).otherwise(0).sum().alias(str(index))
                for index, edge in enumerate(edges.tolist())
            ]
            below += np.array([int(rows) for rows in self.rows.answer(known.select(*asked)).row(0)], dtype=np.int64)
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
    """The number of a value's cell. Dividing by a power of two rounds nothing.

    It stays a double: engines may number values before they leave out those that no integer has room for.
    """
    import narwhals

    return (narwhals.col("value") * (1 / width)).floor()


def edges_and_below(
    rows: LazyRows, values: narwhals.Expr, *, low: float, high: float, bins: int, edges: Floats | None
) -> tuple[Floats, Integers]:
    """The `edges`, or about `bins` chosen ones, and the finite values of a column, from `low` to `high`, below each."""
    if edges is not None:
        low, high = float(np.nextafter(edges[0], -np.inf)), float(edges[-1])
    queries = CellQueries(rows, values, low, high)
    cells = queries.cells(first_width(low, high, edges))
    if edges is None:
        most = int(cells.rows.sum()) / (2 * bins)
        cells = queries.split(cells, lambda found: found.crowded(most))
        edges = cells.between(choose_edges(cells.ordered(), bins=bins))
    else:
        cells = queries.split(cells, lambda found: found.astride(edges))
    return edges, queries.below(cells, edges)
