"""From the rows of a data set to its profile."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.columns import EMBEDDING_BINS, Column
from pytest_modelserve.monitoring.correlations import associate, choose_features
from pytest_modelserve.monitoring.histogram import choose_edges, chunks, count_values, exact_sums, moments
from pytest_modelserve.monitoring.profile import ReferenceProfile, RepeatedRows
from pytest_modelserve.monitoring.readers import Data, Frame, Table, is_lazy, read_table
from pytest_modelserve.monitoring.schema import matched
from pytest_modelserve.monitoring.sketch import MAX_SKETCH, sketch_of
from pytest_modelserve.monitoring.timestamps import backward_rows
from pytest_modelserve.stats.autocorrelation import LagOne, agreement_autocorrelation, rank_autocorrelation

if TYPE_CHECKING:
    from pytest_modelserve.monitoring.window import WindowColumn


# Whether the rows of a column depend on their neighbours, judged by a sample of stretches of the file.


STRONG = 0.1
"""The autocorrelation from which independence is no longer believed. At 0.1 in a chain that forgets geometrically, a
sum varies 22 % more than one of independent rows and an alpha of 0.01 is in truth 0.026."""
ERROR_RATE = 0.001
"""How often, over all columns, rows no more dependent than that may be taken for strongly dependent ones."""
_STRETCHES, _STRETCH = 8, 256
"""2,048 rows in all tell the autocorrelation to 0.02; more would cost as much as counting all of 200,000."""


def lag_of(column: Column) -> LagOne:
    """The autocorrelation at lag one of a column that is not all null, over at most 8 stretches of 256 rows."""
    stretches = _stretches(column.values)
    if column.kind != "category":
        return rank_autocorrelation(stretches)
    codes = {None: -1}
    return agreement_autocorrelation(
        np.array([[codes.setdefault(value, len(codes) - 1) for value in row] for row in stretches.tolist()])
    )


def strongly_dependent(lag: LagOne, *, columns: int) -> bool:
    """Whether the autocorrelation is significantly above 0.1, at an error rate of 0.001 over all `columns`."""
    return lag.low(-float(ndtri(ERROR_RATE / columns))) > STRONG


def _stretches(values: NDArray[Any]) -> NDArray[Any]:
    """All rows as one stretch, or stretches spread evenly over the file, shape (stretches, length)."""
    if len(values) <= _STRETCHES * _STRETCH:
        return values[np.newaxis]
    starts = np.linspace(0, len(values) - _STRETCH, _STRETCHES).astype(np.int64)
    return np.stack([values[start : start + _STRETCH] for start in starts])


def dependence_told(pairs: Sequence[tuple[WindowColumn, ProfiledColumn]], *, data: str) -> str:
    """The strongest dependence of rows on their neighbours, in the data or in the profile; "" where there is none."""
    lags = [(column.lag(), column.name, data) for column, _ in pairs]
    lags += [(reference.lag, reference.name, "the profile") for _, reference in pairs]
    strong = [found for found in lags if strongly_dependent(found[0], columns=len(lags))]
    if not strong:
        return ""
    lag, name, where = max(strong, key=lambda found: found[0].estimate)
    others = f", and {len(strong) - 1} more such" if len(strong) > 1 else ""
    return (
        f"rows depend on their neighbours: autocorrelation {lag.estimate:.2f} at lag one in column {name!r} of {where}"
        f"{others}; so many rows say less than as many independent ones, and how much less is unknown"
    )


# How many rows of a data set are copies of earlier ones.


_SAMPLE = 256
"""Rows whose values are all different in a column that may tell all rows apart."""
_STEP = 32_768
"""Rows hashed at a time, so that hashes and keys stay in the cache."""
_ODD = np.uint64(0x9E3779B97F4A7C15)
"""2⁶⁴ divided by the golden ratio: Fibonacci hashing (Knuth, The Art of Computer Programming 3, section 6.4)."""
_HALF = np.uint64(32)

Hashes = NDArray[np.uint64]


def repeated_rows(columns: Sequence[Column]) -> RepeatedRows:
    """How many rows of the columns (n,) equal an earlier one in every column.

    Null equals null and 0 equals −0. One column that tells all rows apart is enough, and costs one sort; else rows are
    compared by hashes of 64 bits, which take two different rows for equal in one data set of a million rows in 10⁷.
    Beyond the columns it holds 32 bytes a row.
    """
    numeric = [column.values for column in columns if column.values.dtype.kind != "O"]
    texts = [column.values for column in columns if column.values.dtype.kind == "O"]
    telling = next((index for index, values in enumerate(numeric) if _tells_rows_apart(values)), 0)
    numeric[:1], numeric[telling : telling + 1] = numeric[telling : telling + 1], numeric[:1]
    return RepeatedRows(_repeated(numeric, texts), len(columns[0].values))


def _repeated(numeric: Sequence[NDArray[Any]], texts: Sequence[NDArray[Any]]) -> int:
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
    """A number of 64 bits for each value, the same for equal numbers alone."""
    if values.dtype.kind != "f":
        return values.astype(np.int64).view(np.uint64)
    numbers: NDArray[np.float64] = np.add(values, 0.0, dtype=np.float64)  # −0 becomes 0
    np.copyto(numbers, np.nan, where=np.isnan(numbers))  # NaN has many bit patterns
    return numbers.view(np.uint64)


def _codes(values: NDArray[Any]) -> Hashes:
    codes: dict[Any, int] = {}
    return np.fromiter((codes.setdefault(value, len(codes)) for value in values.tolist()), np.uint64, len(values))


def _mix(hashes: Hashes, keys: Hashes) -> None:
    """Mix the keys into the hashes, in place: multiplying carries what differs up, a shift brings it down again."""
    np.bitwise_xor(hashes, keys, out=hashes)
    np.multiply(hashes, _ODD, out=hashes)
    np.bitwise_xor(hashes, np.right_shift(hashes, _HALF, out=keys), out=hashes)
    np.multiply(hashes, _ODD, out=hashes)


def _tells_rows_apart(values: NDArray[Any]) -> bool:
    """Whether a sample of rows, spread over all, has no value twice."""
    sample = values[:: max(len(values) // _SAMPLE, 1)]
    return np.unique(sample).size == sample.size


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
    and long texts are profiled as embeddings (see `with_embedding`).

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
        from pytest_modelserve.monitoring.lazy_profiler import scan

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


# What one pass over a column of numbers tells of its rows beyond their distribution: nulls, infinities, range.


@dataclass(frozen=True, slots=True)
class NumericFacts:
    """Rows of a column of numbers: null, infinite, below and above the finite range of the profile, and the extremes.

    `minimum` is inf and `maximum` −inf where nothing is finite.
    """

    rows: int
    nulls: int
    infinities: int
    below: int
    above: int
    minimum: float
    maximum: float

    @property
    def finite(self) -> int:
        """The rows that are neither null nor infinite."""
        return self.rows - self.nulls - self.infinities


def numeric_facts(column: Column, reference: NumericColumn) -> NumericFacts:
    """The facts of a column of numbers, held against the range of its profile."""
    nulls = infinities = below = above = 0
    minimum, maximum = math.inf, -math.inf
    for rows in chunks(len(column.values)):
        chunk = column.values[rows]
        low, high = chunk.min(), chunk.max()
        if not (np.isfinite(low) and np.isfinite(high)):  # NaN makes both NaN
            finite = np.isfinite(chunk)
            missing = int(np.count_nonzero(np.isnan(chunk)))
            nulls, infinities = nulls + missing, infinities + int((~finite).sum()) - missing
            chunk = chunk[finite]
            if not chunk.size:
                continue
            low, high = chunk.min(), chunk.max()
        if low < reference.minimum:
            below += int(np.count_nonzero(chunk < reference.minimum))
        if high > reference.maximum:
            above += int(np.count_nonzero(chunk > reference.maximum))
        minimum, maximum = min(minimum, float(low)), max(maximum, float(high))
    return NumericFacts(len(column.values), nulls, infinities, below, above, minimum, maximum)
