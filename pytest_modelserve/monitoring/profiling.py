"""From the rows of a data set to its profile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import numpy as np

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.monitoring.binning import Floats, count_values
from pytest_modelserve.monitoring.columns import Column, Data, read_table
from pytest_modelserve.monitoring.dependence import lag_of
from pytest_modelserve.monitoring.edges import choose_edges
from pytest_modelserve.monitoring.matching import matched
from pytest_modelserve.monitoring.profiled import CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.reference import ReferenceProfile


def reference_profile(
    data: Data,
    *,
    name: str = "reference",
    columns: Sequence[str] | None = None,
    like: ReferenceProfile | None = None,
    block: int | None = None,
    bins: int = 256,
) -> ReferenceProfile:
    """The profile of `data`, to hold later data against: counts and a few sums of each column, no rows.

    `data` is an array (n, features), whose columns are called `columns` or column_0, column_1 ...; a dict of columns
    (n,) of numbers, booleans or text; or the path of a .csv or .parquet file. None, NaN and empty fields are null.
    Numbers are counted in about `bins` bins, at most twice as many (see `choose_edges`), integers beyond 2⁵³ rounded
    to doubles; text by category, or in pools where there are more than 100 (see `CategoricalColumn`). Names of
    categories are kept, so leave out columns whose values are nobody's business.

    `like` counts between the edges of another profile with the same columns, whatever `bins`, so that the two merge
    exactly. `block` is the number of neighbouring rows that may depend on each other (52 for a year of weeks), 1 where
    none do, for every comparison with this profile.

    Raises InputError, naming the column or file, for data that cannot be read (`read_table`), a single row, a column
    that is all null or all infinite, and with `like` other columns; UsageError for a block or bins out of range.
    """
    if block is not None and block < 1:
        raise UsageError(f"block is a number of rows, at least 1, not {block}")
    if not 2 <= bins <= 1024:
        raise UsageError(f"bins are at least 2 and at most 1024, not {bins}")
    if columns is not None and (like is not None or not isinstance(data, np.ndarray)):
        raise UsageError("columns are names for an array without `like`: other data have names of their own")
    table = read_table(data, names=columns if like is None else like.names, name=name)
    if table.rows < 2:
        raise InputError("one row has no distribution: profile at least 2 rows, better thousands")
    if like is None:
        profiled = tuple(profile_column(column, bins=bins) for column in table.columns)
    else:
        profiled = tuple(profile_column(column, like=expected) for column, expected in matched(table, like))
    return ReferenceProfile(name, profiled, block)


def profile_column(column: Column, *, bins: int = 256, like: ProfiledColumn | None = None) -> ProfiledColumn:
    """The profile of one column, between the edges of `like` where it is given; InputError where nothing is known."""
    if column.kind is None:
        raise InputError(f"column {column.name!r} is null in every row: leave it out")
    if column.kind == "category":
        counts = count_categories(column)
        return CategoricalColumn.of(
            column.name, counts, nulls=len(column.values) - sum(counts.values()), lag=lag_of(column)
        )
    known = column.values[~np.isnan(column.values)].astype(np.float64)
    finite = np.sort(known[np.isfinite(known)])
    if not finite.size:
        raise InputError(f"column {column.name!r} is infinite in every row that is not null: leave it out")
    edges = choose_edges(finite, bins=bins) if like is None else np.array(cast(NumericColumn, like).edges)
    mean, std = _moments(finite)
    return NumericColumn(
        name=column.name,
        kind=column.kind,
        rows=len(column.values),
        nulls=len(column.values) - known.size,
        negative_infinities=int((known == -np.inf).sum()),
        positive_infinities=int((known == np.inf).sum()),
        minimum=float(finite[0]),
        maximum=float(finite[-1]),
        mean=mean,
        std=std,
        edges=tuple(edges.tolist()),
        counts=tuple(count_values(known, edges).tolist()),
        lag=lag_of(column),
    )


def count_categories(column: Column) -> Counter[str]:
    """How many rows each category has; null is none."""
    counts = Counter(column.values.tolist())
    counts.pop(None, None)
    return counts


def _moments(finite: Floats) -> tuple[float, float]:
    """Mean and standard deviation, scaled so that no square overflows; a constant's are exact."""
    if finite[0] == finite[-1]:
        return float(finite[0]), 0.0
    scale = float(np.abs(finite[[0, -1]]).max())
    return scale * float(np.mean(finite / scale)), scale * float(np.std(finite / scale))
