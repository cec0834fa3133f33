"""The cells of a column, counted by an engine, and the rows below the edges of its bins."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_modelserve.monitoring.binning import Floats, Integers
from pytest_modelserve.monitoring.edges import choose_edges
from pytest_modelserve.monitoring.scanning.cells import CELLS, Cells, Mask, first_width, widened
from pytest_modelserve.monitoring.scanning.lazy_rows import LazyRows

if TYPE_CHECKING:
    import narwhals

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
