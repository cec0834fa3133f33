"""From the rows of a data set to its profile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import numpy as np

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.monitoring.binning import count_values
from pytest_modelserve.monitoring.columns import Column, Data, Table, read_table
from pytest_modelserve.monitoring.dependence import lag_of
from pytest_modelserve.monitoring.derived import EMBEDDING_BINS
from pytest_modelserve.monitoring.duplicates import repeated_rows
from pytest_modelserve.monitoring.edges import choose_edges
from pytest_modelserve.monitoring.exact_sums import exact_sums, moments
from pytest_modelserve.monitoring.frames import Frame, is_lazy
from pytest_modelserve.monitoring.matching import matched
from pytest_modelserve.monitoring.profiled import CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.reference import ReferenceProfile
from pytest_modelserve.monitoring.scoring import associate, choose_features
from pytest_modelserve.monitoring.sketch import MAX_SKETCH, sketch_of
from pytest_modelserve.monitoring.times import backward_rows


def reference_profile(
    data: Data,
    *,
    name: str = "reference",
    columns: Sequence[str] | None = None,
    like: ReferenceProfile | None = None,
    block: int | None = None,
    bins: int = 256,
    associations: bool = True,
    sketch_rows: int = 0,
) -> ReferenceProfile:
    """The profile of `data`, to hold later data against: counts and a few sums of each column, no rows.

    `data` is an array (n, features), whose columns are called `columns` or column_0, column_1 ...; a dict of columns
    (n,) of numbers, booleans, text, dates or durations, and of embeddings (n, d); a pandas, Polars or PyArrow frame; a
    query whose rows lie elsewhere, of Polars, DuckDB or PySpark (see `scan`); or the path of a .csv or .parquet file,
    or a pattern ("logs/2026-*.parquet") whose files are one data set. None, NaN, NaT and empty fields are null. Images
    and long texts are profiled as embeddings (see `encoded`).

    Numbers are counted in about `bins` bins, at most twice as many (see `choose_edges`), integers beyond 2⁵³ rounded
    to doubles; each of an embedding's in 32, which take 1 KB of the file. Dates are seconds since 1970 in UTC. Text is
    counted by category, or, with more than 100 categories or one longer than 100 letters, in pools (see
    `CategoricalColumn`) and by its length, a column of its own called "name (length)". Names of categories are kept, so
    leave out columns whose values are nobody's business.

    `like` counts between the edges of another profile with the same columns, whatever `bins`, so that the two merge
    exactly; a part of the data may then be a single row and have columns that are all null. `block` is the number of
    neighbouring rows that may depend on each other (52 for a year of weeks), 1 where none do, for every comparison with
    this profile.

    `associations` keeps sums over pairs of columns, of 64 at most, that tell correlations and no row. `sketch_rows`
    keeps as many raw rows, spread evenly over the data, for the comparison of all columns at once (2,000, say): leave
    out columns that no file should hold.

    Raises InputError, naming the column or file, for data that cannot be read (`read_table`), a single row, a column
    that is all null or all infinite, and, with `like`, for other columns; UsageError for a block or bins out of range.
    """
    if block is not None and block < 1:
        raise UsageError(f"block is a number of rows, at least 1, not {block}")
    if not 2 <= bins <= 1024:
        raise UsageError(f"bins are at least 2 and at most 1024, not {bins}")
    if not 0 <= sketch_rows <= MAX_SKETCH:
        raise UsageError(f"sketch_rows are raw rows to keep, at most {MAX_SKETCH:,}, not {sketch_rows}")
    if columns is not None and (like is not None or not isinstance(data, np.ndarray)):
        raise UsageError("columns are names for an array without `like`: other data have names of their own")
    if is_lazy(data):
        from pytest_modelserve.monitoring.scanning import scan

        if sketch_rows:
            raise UsageError("sketch_rows are kept of rows in memory alone: collect some of them, or leave it out")
        return scan(cast(Frame, data), name=name, like=like, block=block, bins=bins)
    table = read_table(data, names=columns if like is None else like.input_names, name=name)
    if like is not None:
        table = table.with_lengths(like.columns)
        pairs = matched(table, like)
        profiled = tuple(profile_column(column, like=expected) for column, expected in pairs)
        table = Table(table.name, tuple(column for column, _ in pairs))
    elif table.rows < 2:
        raise InputError("one row has no distribution: profile at least 2 rows, better thousands")
    else:
        table, profiled = _profiled(table, bins)
    features = choose_features(profiled) if like is None else like.associations.features if like.associations else ()
    return ReferenceProfile(
        name,
        profiled,
        block,
        associations=associate(table.columns, profiled, features) if associations and features else None,
        sketch=sketch_of(table.columns, profiled, wanted=sketch_rows) if sketch_rows else None,
        duplicates=repeated_rows(table.columns),
    )


def _profiled(table: Table, bins: int) -> tuple[Table, tuple[ProfiledColumn, ...]]:
    """The profiles of all columns, and the lengths of those that turn out to be text, with the table of both."""
    fewer = min(bins, EMBEDDING_BINS)
    profiled = [profile_column(column, bins=bins if column.source is None else fewer) for column in table.columns]
    texts = {column.name for column in profiled if column.kind == "category" and column.pooled}
    whole = table.with_lengths_of(texts)
    profiled += [profile_column(column, bins=bins) for column in whole.columns[len(profiled) :]]
    return whole, tuple(profiled)


def profile_column(column: Column, *, bins: int = 256, like: ProfiledColumn | None = None) -> ProfiledColumn:
    """The profile of one column, between the edges of `like` where it is given; InputError where nothing is known."""
    if column.kind is None and like is None:
        raise InputError(f"column {column.name!r} is null in every row: leave it out")
    kind = column.kind or cast(ProfiledColumn, like).kind
    if kind == "category":
        return _categorical(column, like)
    assert like is None or isinstance(like, NumericColumn)
    known = column.values[~np.isnan(column.values)].astype(np.float64)
    finite = np.sort(known[np.isfinite(known)])
    if not finite.size and like is None:
        raise InputError(f"column {column.name!r} is infinite in every row that is not null: leave it out")
    edges = choose_edges(finite, bins=bins) if like is None else np.array(like.edges)
    low, high = (like.minimum, like.maximum) if like is not None and like.finite else (-np.inf, np.inf)
    sums = exact_sums(finite)
    mean, std = moments(sums, finite.size)
    return NumericColumn(
        name=column.name,
        kind=kind,
        rows=len(column.values),
        nulls=len(column.values) - known.size,
        negative_infinities=int((known == -np.inf).sum()),
        positive_infinities=int((known == np.inf).sum()),
        minimum=float(finite[0]) + 0.0 if finite.size else 0.0,  # adding 0 makes −0 one and the same
        maximum=float(finite[-1]) + 0.0 if finite.size else 0.0,
        mean=mean,
        std=std,
        edges=tuple(edges.tolist()),
        counts=tuple(count_values(known, edges).tolist()),
        lag=lag_of(column),
        below=int(np.searchsorted(finite, low, side="left")),
        above=int(finite.size - np.searchsorted(finite, high, side="right")),
        backward=backward_rows(column.values) if kind == "datetime" else None,
        sums=sums,
        source=column.source,
    )


def _categorical(column: Column, like: ProfiledColumn | None) -> CategoricalColumn:
    counts = Counter[str]() if column.kind is None else count_categories(column)
    nulls, lag = len(column.values) - counts.total(), lag_of(column)
    if not counts and isinstance(like, CategoricalColumn):  # all null: nobody has seen a category, and none is lost
        return CategoricalColumn(column.name, nulls, nulls, like.categories, (0,) * len(like.counts), lag)
    return CategoricalColumn.of(column.name, counts, nulls=nulls, lag=lag)


def count_categories(column: Column) -> Counter[str]:
    """How many rows each category has; null is none."""
    counts = Counter(column.values.tolist())
    counts.pop(None, None)
    return counts
