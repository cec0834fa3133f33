"""Profiles of rows in memory: counts, sums, dependence and duplicates of each data set."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.columns import EMBEDDING_BINS, Column, Kind, escaped
from pytest_modelserve.monitoring.correlations import Feature, associate, choose_features
from pytest_modelserve.monitoring.dependence import estimate_dependence
from pytest_modelserve.monitoring.duplicates import repeated_rows
from pytest_modelserve.monitoring.histogram import choose_edges, count_values, exact_sums, moments
from pytest_modelserve.monitoring.profile import ReferenceProfile, array_names, as_profile
from pytest_modelserve.monitoring.read_options import (
    LeadingZeros,
    ReadOptions,
    describe_text_of_numbers,
    names_of,
    text_of_numbers,
)
from pytest_modelserve.monitoring.readers import Data, Frame, Table, is_lazy, read_table
from pytest_modelserve.monitoring.row_digests import RowDigests, read_from_data
from pytest_modelserve.monitoring.schema import matched_columns
from pytest_modelserve.monitoring.sketch import MAX_SKETCH, sketch_of


def reference_profile(
    data: Data,
    *,
    name: str = "reference",
    columns: Sequence[str] | None = None,
    like: ReferenceProfile | str | os.PathLike[str] | None = None,
    block: int | None = None,
    bins: int = 256,
    associations: bool = True,
    sketch_rows: int = 0,
    exclude: Collection[str] = (),
    types: Mapping[str, Kind] | None = None,
    separator: str | None = None,
    decimal: str = ".",
    thousands: str = "",
    null_values: Collection[str] = (),
    leading_zeros: LeadingZeros = "number",
    row_digest_key: str | None = None,
) -> ReferenceProfile:
    """Profile a reference data set: counts and a few sums of each column, and no rows.

    None, NaN, NaT and empty fields are null. Numbers are counted in about `bins` bins, integers beyond 2⁵³ rounded to
    doubles; numbers of an embedding in 32. Times are seconds since 1970 in UTC, durations seconds. Text is counted by
    category; with more than 100 categories, or one longer than 100 letters, by hash bucket and by length, a column
    called "name (length)". Names of categories are stored: exclude columns with confidential values.

    The kind of each column is decided here, and the profile keeps it with the options of reading: later data are read
    alike. Text of which 95 % of the rows are numbers is refused, with a row and a value, unless `types` declares it.

    Args:
        data: An array (n, features); a mapping of columns (n,) of numbers, booleans, text, dates or durations and of
            embeddings (n, d); a pandas, Polars or PyArrow frame; a lazy frame of Polars, DuckDB or PySpark, which its
            engine counts; or the path of a .csv or .parquet file, of a folder of such files (with Hive partitions as
            columns), or a pattern ("logs/2026-*.parquet"). Images and long texts are profiled by embeddings: see
            `with_embedding`.
        name: The name of the data set in reports.
        columns: The names of an array's columns. Default: column_0, column_1 …
        like: A profile with the same columns whose edges are used, so that the two can be merged or compared. The data
            may then be a single row, and columns may be all null.
        block: The number of neighboring rows that may depend on each other (52 for a year of weekly rows); 1 if none
            do. Used by every comparison with this profile. Default: each comparison estimates it for each column.
        bins: The number of bins of a numeric column, 2 to 1024. There may be up to twice as many.
        associations: Whether to store sums over pairs of at most 64 columns, for their correlations.
        sketch_rows: The number of raw rows to store for the comparison of whole rows (2,000, for example), spread
            evenly over the data. Exclude confidential columns.
        exclude: Names of columns to leave out, here and in later data.
        types: The kinds of some columns: "float", "integer", "boolean", "datetime" or "category".
        separator: The character between the columns of CSV files. Default: a comma.
        decimal: The decimal point of numbers in text: "." or ",".
        thousands: The character between groups of three digits in text: "," in "1,234.50". Default: none.
        null_values: Texts that mean null, besides empty fields: ("NA", "n/a").
        leading_zeros: Whether numbers in CSV files that start with a zero (007) are numbers, or make the column text.
        row_digest_key: A secret with which a digest of each row is stored, so that `assert_no_overlap` finds copies of
            rows; whoever has it can ask whether a row that they know is in the data. At most a million digests
            (11 MiB) are kept, of more rows a random sample.

    Returns:
        The profile.

    Raises:
        InputError: The data cannot be read, have a single row, or have a column that is all null or all infinite, or
            text that is nearly all numbers; with `like`, the columns do not fit it.
        UsageError: An argument is out of range or does not apply to this data.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> profile = ms.reference_profile({"age": rng.normal(40, 12, 1000), "city": ["Bern", "Graz"] * 500})
        >>> profile.rows, profile.names, profile.column("city").counts
        (1000, ('age', 'city'), (500, 500))
    """
    if block is not None and block < 1:
        raise UsageError(f"block must be a number of rows, at least 1; got {block}")
    if not 2 <= bins <= 1024:
        raise UsageError(f"bins must be from 2 to 1024; got {bins}")
    if not 0 <= sketch_rows <= MAX_SKETCH:
        raise UsageError(f"sketch_rows must be from 0 to {MAX_SKETCH:,}; got {sketch_rows}")
    if columns is not None and (like is not None or not isinstance(data, np.ndarray)):
        raise UsageError("columns names the columns of an array without `like`; other data have names: remove it")
    options = ReadOptions(
        names_of(exclude, "exclude"),
        types or {},
        separator,
        decimal,
        thousands,
        names_of(null_values, "null_values"),
        leading_zeros,
    )
    if like is not None:
        like = as_profile(like, data, argument="like")
        if options != ReadOptions():
            raise UsageError("like= reads data as the profile was read: remove the other options of reading")
        options = like.reading
    if columns is not None and exclude:
        raise UsageError("columns and exclude cannot be given together: remove the columns from the array")
    if is_lazy(data):
        from pytest_modelserve.monitoring.lazy_profiler import scan

        if row_digest_key is not None:
            raise UsageError("row_digest_key needs rows in memory: collect the lazy frame, or remove it")
        if sketch_rows:
            raise UsageError("sketch_rows needs rows in memory: collect some of the lazy frame, or remove it")
        return scan(cast(Frame, data), name=name, like=like, block=block, bins=bins, options=options)
    table = read_table(
        data,
        names=columns if like is None else array_names(like),
        name=name,
        options=options,
        kinds=None if like is None else like.kinds,
    )
    if like is not None:
        table, profiled, features = _profile_like(table, like)
    elif table.rows < 2:
        raise InputError("data has 1 row: a profile needs at least 2 rows (thousands recommended)")
    else:
        table, profiled = _profile_table(table, bins, options)
        features = choose_features(profiled)
    return ReferenceProfile(
        name,
        profiled,
        block,
        associations=associate(table.columns, profiled, features) if associations and features else None,
        sketch=sketch_of(table.columns, profiled, wanted=sketch_rows) if sketch_rows else None,
        duplicates=repeated_rows(table.columns),
        reading=options,
        row_digests=None if row_digest_key is None else RowDigests.of(read_from_data(table.columns), row_digest_key),
    )


def profile_again(table: Table, like: ReferenceProfile, *, sketch_rows: int) -> ReferenceProfile:
    """Return the profile of other rows that were read as those of `like`, with all that it holds but row digests."""
    table, profiled, features = _profile_like(table, like)
    return ReferenceProfile(
        like.name,
        profiled,
        like.block,
        associations=associate(table.columns, profiled, features) if features else None,
        sketch=sketch_of(table.columns, profiled, wanted=sketch_rows) if sketch_rows else None,
        duplicates=repeated_rows(table.columns),
        reading=like.reading,
    )


def _profile_like(
    table: Table, like: ReferenceProfile
) -> tuple[Table, tuple[ProfiledColumn, ...], tuple[Feature, ...]]:
    """Profile the columns of `like` between its edges; return them, and the columns whose pairs it compares."""
    pairs = matched_columns(table.with_lengths_of(like.length_sources), like)
    profiled = tuple(profile_column(column, like=expected) for column, expected in pairs)
    features = like.associations.features if like.associations else ()
    return Table(table.name, tuple(column for column, _ in pairs)), profiled, features


def _profile_table(table: Table, bins: int, options: ReadOptions) -> tuple[Table, tuple[ProfiledColumn, ...]]:
    """Profile all columns, and the lengths of text columns, and return the table of both."""
    fewer = min(bins, EMBEDDING_BINS)
    profiled = [
        profile_column(column, bins=bins if column.source is None else fewer, options=options)
        for column in table.columns
    ]
    texts = {column.name for column in profiled if column.kind == "category" and column.hashed}
    whole = table.with_lengths_of(texts)
    profiled += [profile_column(column, bins=bins) for column in whole.columns[len(profiled) :]]
    return whole, tuple(profiled)


def profile_column(
    column: Column, *, bins: int = 256, like: ProfiledColumn | None = None, options: ReadOptions | None = None
) -> ProfiledColumn:
    """Profile one column, between the edges of `like` if given.

    Raises InputError if it has no value and no `like`, and, with `options`, if it is text that is nearly all numbers.
    """
    if column.kind is None and like is None:
        raise InputError(f"column {column.name!r} is null in every row: exclude=({column.name!r},) leaves it out")
    kind = column.kind or cast(ProfiledColumn, like).kind
    if kind == "category":
        return _profile_categories(column, like, options)
    assert like is None or isinstance(like, NumericColumn)
    known = column.values[~np.isnan(column.values)].astype(np.float64)
    finite = np.sort(known[np.isfinite(known)])
    if not finite.size and like is None:
        raise InputError(
            f"column {column.name!r} is infinite in every non-null row: exclude=({column.name!r},) leaves it out"
        )
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
        minimum=float(finite[0]) + 0.0 if finite.size else 0.0,  # adding 0 turns −0 into 0
        maximum=float(finite[-1]) + 0.0 if finite.size else 0.0,
        mean=mean,
        std=std,
        edges=tuple(edges.tolist()),
        counts=tuple(count_values(known, edges).tolist()),
        dependence=estimate_dependence(column),
        below=int(np.searchsorted(finite, low, side="left")),
        above=int(finite.size - np.searchsorted(finite, high, side="right")),
        backward=backward_rows(column.values) if kind == "datetime" else None,
        sums=sums,
        source=column.source,
        at_minimum=int(np.searchsorted(finite, finite[0], side="right")) if finite.size else 0,
        at_maximum=int(finite.size - np.searchsorted(finite, finite[-1], side="left")) if finite.size else 0,
    )


def _profile_categories(column: Column, like: ProfiledColumn | None, options: ReadOptions | None) -> CategoricalColumn:
    counts = Counter[str]() if column.kind is None else count_categories(column)
    if options is not None and not column.declared and (found := text_of_numbers(counts, options)):
        row = column.values.tolist().index(found[0])
        raise InputError(describe_text_of_numbers(column.name, f" in row {row}", *found))
    nulls, dependence = len(column.values) - counts.total(), estimate_dependence(column)
    if not counts and isinstance(like, CategoricalColumn):  # all null: no category is new, and none is lost
        return replace(like, rows=nulls, nulls=nulls, counts=(0,) * len(like.counts), dependence=dependence)
    return CategoricalColumn.of(column.name, counts, nulls=nulls, dependence=dependence, like=like)


def count_categories(column: Column) -> Counter[str]:
    """Count the rows of each category, without nulls; surrogates are written as escapes."""
    counts = Counter(column.values.tolist())
    counts.pop(None, None)
    for text in [text for text in counts if not text.isascii() and escaped(text) != text]:
        counts[escaped(text)] += counts.pop(text)
    return counts


def backward_rows(values: NDArray[Any]) -> int:
    """Count the times (n,), in any unit, that are earlier than the one before, without NaN."""
    known = values[~np.isnan(values)] if np.isnan(values).any() else values
    return int(np.count_nonzero(known[1:] < known[:-1]))
