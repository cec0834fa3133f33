"""From what an engine counted to columns of a profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np

from pytest_modelserve.errors import InputError
from pytest_modelserve.monitoring.binning import Floats, Integers
from pytest_modelserve.monitoring.derived import length_name
from pytest_modelserve.monitoring.edges import choose_edges
from pytest_modelserve.monitoring.kinds import Number
from pytest_modelserve.monitoring.profiled import CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.scanning.columns import LazyColumn
from pytest_modelserve.monitoring.scanning.counting import edges_and_below
from pytest_modelserve.monitoring.scanning.lazy_rows import LazyRows
from pytest_modelserve.monitoring.scanning.names import lengths_of
from pytest_modelserve.monitoring.scanning.totals import Totals
from pytest_modelserve.stats.autocorrelation import LagOne

_NO_LAG = LagOne(0.0, 0)
"""Rows of a query come in any order, and have no neighbours."""


def numeric(
    rows: LazyRows, column: LazyColumn, told: Totals, *, bins: int = 256, like: NumericColumn | None = None
) -> NumericColumn:
    """The profile of a column of numbers, between the edges of `like` where it is given."""
    edges = None if like is None else np.array(like.edges)
    if told.finite:
        edges, below = edges_and_below(rows, column.values, low=told.minimum, high=told.maximum, bins=bins, edges=edges)
    elif edges is not None:
        below = np.zeros(edges.size, dtype=np.int64)
    else:
        raise InputError(f"column {column.name!r} is infinite in every row that is not null: leave it out")
    # A column without a value is of the profile's kind, whatever type it has.
    kind = cast(Number, column.kind if like is None or told.known else like.kind)
    return _numeric(column.name, kind, told, edges, below)


def column_of_lengths(
    column: LazyColumn, names: Mapping[str, int], *, rows: int, bins: int = 256, like: NumericColumn | None = None
) -> NumericColumn:
    """The profile of the lengths of texts, of which so many of the `rows` have each."""
    told, cells = lengths_of(names, rows=rows)
    if like is None:
        edges = choose_edges(cells.ordered(), bins=bins)
    else:
        edges = np.array(like.edges)
        below, up_to = cells.below(np.array([like.minimum, np.nextafter(like.maximum, np.inf)])).tolist()
        told = replace(told, below=below, above=told.finite - up_to) if like.finite else told
    return _numeric(length_name(column.name), "integer", told, edges, cells.below(edges), source=column.name)


def categorical(
    column: LazyColumn, told: Totals, names: Mapping[str, int], *, like: ProfiledColumn | None = None
) -> CategoricalColumn:
    """The profile of a column of text, of which so many rows have each."""
    if not names and isinstance(like, CategoricalColumn):  # all null: nobody has seen a category, and none is lost
        return CategoricalColumn(column.name, told.rows, told.rows, like.categories, (0,) * len(like.counts), _NO_LAG)
    return CategoricalColumn.of(column.name, names, nulls=told.nulls, lag=_NO_LAG)


def _numeric(
    name: str, kind: Number, told: Totals, edges: Floats, below: Integers, *, source: str | None = None
) -> NumericColumn:
    counts = np.diff(below, prepend=0, append=told.finite)
    counts[0] += told.negative_infinities
    counts[-1] += told.positive_infinities
    return NumericColumn(
        name=name,
        kind=kind,
        rows=told.rows,
        nulls=told.nulls,
        negative_infinities=told.negative_infinities,
        positive_infinities=told.positive_infinities,
        minimum=told.minimum,
        maximum=told.maximum,
        mean=told.mean,
        std=told.std,
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        lag=_NO_LAG,
        below=told.below,
        above=told.above,
        source=source,
    )
