"""Profiles of rows in memory: counts, sums, autocorrelation and duplicates of each data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.columns import EMBEDDING_BINS, Column
from pytest_modelserve.monitoring.correlations import associate, choose_features
from pytest_modelserve.monitoring.histogram import choose_edges, count_values, exact_sums, moments
from pytest_modelserve.monitoring.profile import ReferenceProfile, RepeatedRows
from pytest_modelserve.monitoring.readers import Data, Frame, Table, is_lazy, read_table
from pytest_modelserve.monitoring.schema import matched_columns
from pytest_modelserve.monitoring.sketch import MAX_SKETCH, sketch_of
from pytest_modelserve.stats.autocorrelation import LagOne, agreement_autocorrelation, rank_autocorrelation


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
    """Profile a reference data set: counts and a few sums of each column, and no rows.

    None, NaN, NaT and empty fields are null. Numbers are counted in about `bins` bins, integers beyond 2⁵³ rounded to
    doubles; numbers of an embedding in 32. Times are seconds since 1970 in UTC, durations seconds. Text is counted by
    category; with more than 100 categories, or one longer than 100 letters, by hash bucket and by length, a column
    called "name (length)". Names of categories are stored: remove columns with confidential values.

    Args:
        data: An array (n, features); a mapping of columns (n,) of numbers, booleans, text, dates or durations and of
            embeddings (n, d); a pandas, Polars or PyArrow frame; a lazy frame of Polars, DuckDB or PySpark, which its
            engine counts; or the path of a .csv or .parquet file, or a pattern ("logs/2026-*.parquet") of files that
            are one data set. Images and long texts are profiled by embeddings: see `with_embedding`.
        name: The name of the data set in reports.
        columns: The names of an array's columns. Default: column_0, column_1 …
        like: A profile with the same columns whose edges are used, so that the two can be merged or compared. The data
            may then be a single row, and columns may be all null.
        block: The number of neighboring rows that may depend on each other (52 for a year of weekly rows); 1 if none
            do. Used by every comparison with this profile.
        bins: The number of bins of a numeric column, 2 to 1024. There may be up to twice as many.
        associations: Whether to store sums over pairs of at most 64 columns, for their correlations.
        sketch_rows: The number of raw rows to store for the comparison of whole rows (2,000, for example), spread
            evenly over the data. Remove confidential columns first.

    Returns:
        The profile.

    Raises:
        InputError: The data cannot be read, have a single row, or have a column that is all null or all infinite; with
            `like`, the columns do not fit it.
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
    if is_lazy(data):
        from pytest_modelserve.monitoring.lazy_profiler import scan

        if sketch_rows:
            raise UsageError("sketch_rows needs rows in memory: collect some of the lazy frame, or remove it")
        return scan(cast(Frame, data), name=name, like=like, block=block, bins=bins)
    table = read_table(data, names=columns if like is None else like.input_names, name=name)
    if like is not None:
        pairs = matched_columns(table.with_lengths_of(like.length_sources), like)
        profiled = tuple(profile_column(column, like=expected) for column, expected in pairs)
        table = Table(table.name, tuple(column for column, _ in pairs))
    elif table.rows < 2:
        raise InputError("data has 1 row: a profile needs at least 2 rows (thousands recommended)")
    else:
        table, profiled = _profile_table(table, bins)
    features = choose_features(profiled) if like is None else like.associations.features if like.associations else ()
    return ReferenceProfile(
        name,
        profiled,
        block,
        associations=associate(table.columns, profiled, features) if associations and features else None,
        sketch=sketch_of(table.columns, profiled, wanted=sketch_rows) if sketch_rows else None,
        duplicates=repeated_rows(table.columns),
    )


def _profile_table(table: Table, bins: int) -> tuple[Table, tuple[ProfiledColumn, ...]]:
    """Profile all columns, and the lengths of text columns, and return the table of both."""
    fewer = min(bins, EMBEDDING_BINS)
    profiled = [profile_column(column, bins=bins if column.source is None else fewer) for column in table.columns]
    texts = {column.name for column in profiled if column.kind == "category" and column.hashed}
    whole = table.with_lengths_of(texts)
    profiled += [profile_column(column, bins=bins) for column in whole.columns[len(profiled) :]]
    return whole, tuple(profiled)


def profile_column(column: Column, *, bins: int = 256, like: ProfiledColumn | None = None) -> ProfiledColumn:
    """Profile one column, between the edges of `like` if given; InputError if it has no value and no `like`."""
    if column.kind is None and like is None:
        raise InputError(f"column {column.name!r} is null in every row: remove it")
    kind = column.kind or cast(ProfiledColumn, like).kind
    if kind == "category":
        return _profile_categories(column, like)
    assert like is None or isinstance(like, NumericColumn)
    known = column.values[~np.isnan(column.values)].astype(np.float64)
    finite = np.sort(known[np.isfinite(known)])
    if not finite.size and like is None:
        raise InputError(f"column {column.name!r} is infinite in every non-null row: remove it")
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
        lag=autocorrelation(column),
        below=int(np.searchsorted(finite, low, side="left")),
        above=int(finite.size - np.searchsorted(finite, high, side="right")),
        backward=backward_rows(column.values) if kind == "datetime" else None,
        sums=sums,
        source=column.source,
    )


def _profile_categories(column: Column, like: ProfiledColumn | None) -> CategoricalColumn:
    counts = Counter[str]() if column.kind is None else count_categories(column)
    nulls, lag = len(column.values) - counts.total(), autocorrelation(column)
    if not counts and isinstance(like, CategoricalColumn):  # all null: no category is new, and none is lost
        return CategoricalColumn(column.name, nulls, nulls, like.categories, (0,) * len(like.counts), lag)
    return CategoricalColumn.of(column.name, counts, nulls=nulls, lag=lag)


def count_categories(column: Column) -> Counter[str]:
    """Count the rows of each category, without nulls."""
    counts = Counter(column.values.tolist())
    counts.pop(None, None)
    return counts


def backward_rows(values: NDArray[Any]) -> int:
    """Count the times (n,), in any unit, that are earlier than the one before, without NaN."""
    known = values[~np.isnan(values)] if np.isnan(values).any() else values
    return int(np.count_nonzero(known[1:] < known[:-1]))


# Autocorrelation of neighboring rows.

_SEGMENTS, _SEGMENT_ROWS = 8, 256
"""2,048 rows give the autocorrelation to ±0.02; more would cost as much as counting all of 200,000."""


def autocorrelation(column: Column) -> LagOne:
    """Return the autocorrelation at lag one of a column, over at most 8 segments of 256 rows."""
    segments = _segments(column.values)
    if column.kind != "category":
        return rank_autocorrelation(segments)
    codes = {None: -1}
    return agreement_autocorrelation(
        np.array([[codes.setdefault(value, len(codes) - 1) for value in row] for row in segments.tolist()])
    )


def _segments(values: NDArray[Any]) -> NDArray[Any]:
    """Return all rows as one segment, or segments spread evenly over them, shape (segments, rows)."""
    if len(values) <= _SEGMENTS * _SEGMENT_ROWS:
        return values[np.newaxis]
    starts = np.linspace(0, len(values) - _SEGMENT_ROWS, _SEGMENTS).astype(np.int64)
    return np.stack([values[start : start + _SEGMENT_ROWS] for start in starts])


# Duplicate rows.

_SAMPLE_SIZE = 256
"""Rows that are all different in a column that may distinguish all rows."""
_STEP = 32_768
"""Rows hashed at a time, so that hashes and keys stay in the cache."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2⁶⁴ divided by the golden ratio: Fibonacci hashing (Knuth, The Art of Computer Programming 3, section 6.4)."""
_HALF = np.uint64(32)

Hashes = NDArray[np.uint64]


def repeated_rows(columns: Sequence[Column]) -> RepeatedRows:
    """Count the rows of the columns (n,) that equal an earlier row in every column.

    Null equals null, and 0 equals −0. One column without equal values is enough, and costs one sort. Otherwise rows are
    compared by hashes of 64 bits, with a collision in one of 10⁷ data sets of a million rows. It holds 32 bytes a row.
    """
    numeric = [column.values for column in columns if column.values.dtype.kind != "O"]
    texts = [column.values for column in columns if column.values.dtype.kind == "O"]
    distinct = next((index for index, values in enumerate(numeric) if _may_be_distinct(values)), 0)
    numeric[:1], numeric[distinct : distinct + 1] = numeric[distinct : distinct + 1], numeric[:1]
    return RepeatedRows(_count_repeated(numeric, texts), len(columns[0].values))


def _count_repeated(numeric: Sequence[NDArray[Any]], texts: Sequence[NDArray[Any]]) -> int:
    if numeric and not _ties(numeric[0]) and np.count_nonzero(np.isnan(numeric[0])) < 2:
        return 0
    hashes = np.zeros(len((*numeric, *texts)[0]), dtype=np.uint64)
    for start in range(0, len(hashes), _STEP):
        rows = slice(start, start + _STEP)
        for values in numeric:
            _mix(hashes[rows], _keys(values[rows]))
    if not texts or not _ties(hashes):
        return _ties(hashes)
    for values in texts:
        _mix(hashes, _codes(values))
    return _ties(hashes)


def _ties(values: NDArray[Any]) -> int:
    ordered = np.sort(values)
    return int(np.count_nonzero(ordered[1:] == ordered[:-1]))


def _keys(values: NDArray[Any]) -> Hashes:
    """Return a 64-bit number for each value, equal only for equal values."""
    if values.dtype.kind != "f":
        return values.astype(np.int64).view(np.uint64)
    numbers: NDArray[np.float64] = np.add(values, 0.0, dtype=np.float64)  # −0 becomes 0
    np.copyto(numbers, np.nan, where=np.isnan(numbers))  # NaN has many bit patterns
    return numbers.view(np.uint64)


def _codes(values: NDArray[Any]) -> Hashes:
    codes: dict[Any, int] = {}
    return np.fromiter((codes.setdefault(value, len(codes)) for value in values.tolist()), np.uint64, len(values))


def _mix(hashes: Hashes, keys: Hashes) -> None:
    """Mix the keys into the hashes, in place: the product carries differences up, the shift brings them down."""
    np.bitwise_xor(hashes, keys, out=hashes)
    np.multiply(hashes, _MULTIPLIER, out=hashes)
    np.bitwise_xor(hashes, np.right_shift(hashes, _HALF, out=keys), out=hashes)
    np.multiply(hashes, _MULTIPLIER, out=hashes)


def _may_be_distinct(values: NDArray[Any]) -> bool:
    """Return True if a sample of rows, spread over all, has no value twice."""
    sample = values[:: max(len(values) // _SAMPLE_SIZE, 1)]
    return np.unique(sample).size == sample.size
