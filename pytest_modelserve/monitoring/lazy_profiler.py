"""Profiles of lazy frames: the engine counts, through narwhals, and returns a few numbers for each column.

Histograms are computed from about ten thousand cells of a column's range.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from pytest_modelserve.errors import InputError
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.columns import Column, Number, is_length, length_name
from pytest_modelserve.monitoring.dependence import Dependence
from pytest_modelserve.monitoring.histogram import Floats, Integers, choose_edges
from pytest_modelserve.monitoring.lazy_columns import LazyColumn, LazyRows, Totals, count_texts, lazy_columns, totals
from pytest_modelserve.monitoring.lazy_histogram import Cells, edges_and_below
from pytest_modelserve.monitoring.profile import ReferenceProfile
from pytest_modelserve.monitoring.read_options import ReadOptions, describe_text_of_numbers, text_of_numbers
from pytest_modelserve.monitoring.readers import Frame, NoRowsError, Table
from pytest_modelserve.monitoring.schema import match_columns
from pytest_modelserve.progress import progress

_COLUMNS_PER_QUERY = 32
"""Columns with totals in one query: a dozen expressions each."""


@dataclass(frozen=True, slots=True)
class ScannedColumns:
    """The columns of a lazy frame that match a profile, counted like it, and a message for each that does not."""

    columns: tuple[ProfiledColumn, ...]
    errors: tuple[str, ...]


def scan(
    frame: Frame,
    *,
    name: str = "reference",
    like: ReferenceProfile | None = None,
    block: int | None = None,
    bins: int = 256,
    options: ReadOptions | None = None,
) -> ReferenceProfile:
    """Profile a lazy frame: a Polars query, a DuckDB relation, a PySpark frame or another one that narwhals supports.

    The engine counts: one query for every 32 columns, one or two more for each numeric column, one for each text
    column. With `like`, counts are exactly those of the same rows in memory. Without it, edges are chosen from counts
    of about 32,768 cells. The engine adds up means and deviations, which rounds (`sums` are None). Rows have no order:
    `dependence` has no rows and `backward` is None. There are no associations, no sketch and no duplicates. Up to a
    million different texts of a column are read, for their lengths.

    Raises InputError, naming the column, for types that cannot be profiled, an all-null or all-infinite column, more
    texts, times in a session's zone that is not UTC, a frame without rows (or with one, without `like`), and errors of
    the engine.
    """
    if like is None:
        options = options or ReadOptions()
        rows = LazyRows.of(frame, name, options, profiling=True)
        return ReferenceProfile(name, _scanned(rows, bins, options), block, reading=options)
    scanned = scan_like(frame, like, name=name)
    if scanned.errors:
        raise InputError(f"{name} does not fit the profile {like.name!r}: {'; '.join(scanned.errors)}")
    return ReferenceProfile(name, scanned.columns, block, reading=like.reading)


def scan_like(frame: Frame, profile: ReferenceProfile, *, name: str = "data") -> ScannedColumns:
    """Count the columns of a lazy frame like `profile`, in its order; missing, additional and retyped are errors.

    Raises InputError as `scan` does with `like`.
    """
    rows = LazyRows.of(frame, name, profile.reading)
    references = {column.name: column for column in profile.columns}
    found = {column.name: (column, of_column) for column, of_column in _read_totals(rows, references)}
    matching = match_columns(_schema_table(rows, list(found.values()), profile), profile)
    columns: dict[str, ProfiledColumn] = {}
    fitting = [reference for _, reference in matching.pairs if not is_length(reference)]
    for reference in progress(fitting, f"counting the columns of {name}"):
        column, of_column = found[reference.name]
        of_lengths = references.get(length_name(reference.name))
        if isinstance(reference, NumericColumn):
            columns[reference.name] = profile_numbers(rows, column, of_column, like=reference)
        else:
            texts = count_texts(rows, column) if column.kind else {}
            columns[reference.name] = profile_texts(column, of_column, texts, like=reference)
            if isinstance(of_lengths, NumericColumn) and is_length(of_lengths):
                columns[of_lengths.name] = profile_lengths(column, texts, rows=of_column.rows, like=of_lengths)
    return ScannedColumns(tuple(columns[reference.name] for _, reference in matching.pairs), matching.errors)


def _scanned(rows: LazyRows, bins: int, options: ReadOptions) -> tuple[ProfiledColumn, ...]:
    found = _read_totals(rows, {})
    if found[0][1].rows < 2:
        raise InputError(f"{rows.name} has 1 row: a profile needs at least 2 rows (thousands recommended)")
    columns: list[ProfiledColumn] = []
    lengths: list[ProfiledColumn] = []
    for column, of_column in progress(found, f"counting the columns of {rows.name}"):
        if not of_column.known:
            raise InputError(f"column {column.name!r} is null in every row: exclude=({column.name!r},) leaves it out")
        if column.kind != "category":
            columns.append(profile_numbers(rows, column, of_column, bins=bins))
            continue
        texts = count_texts(rows, column)
        if column.name not in options.types and (mistyped := text_of_numbers(texts, options)):
            raise InputError(describe_text_of_numbers(column.name, "", mistyped[0], "cast it in the query"))
        columns.append(counted := profile_texts(column, of_column, texts))
        if counted.hashed:
            lengths.append(profile_lengths(column, texts, rows=of_column.rows, bins=bins))
    return (*columns, *lengths)


def _read_totals(rows: LazyRows, references: Mapping[str, ProfiledColumn]) -> list[tuple[LazyColumn, Totals]]:
    """Return all columns with their totals, like `references` if there are any; NoRowsError if there are no rows."""
    columns = lazy_columns(rows, profiling=not references)
    parts = [columns[start : start + _COLUMNS_PER_QUERY] for start in range(0, len(columns), _COLUMNS_PER_QUERY)]
    every = [
        of_column
        for part in progress(parts, f"adding up the columns of {rows.name}")
        for of_column in totals(rows, part, references)
    ]
    if not every[0].rows:
        raise NoRowsError(f"{rows.name}: there are no rows")
    for index, (column, of_column) in enumerate(zip(columns, every, strict=True)):
        if column.kind is None and of_column.known and not column.error:
            error = (
                f"{rows.name}: column {column.name!r} holds values that are not numbers, text or times: convert or "
                "remove it"
            )
            if not references:
                raise InputError(error)
            columns[index] = replace(column, error=error)
    return list(zip(columns, every, strict=True))


def _schema_table(rows: LazyRows, found: Sequence[tuple[LazyColumn, Totals]], profile: ReferenceProfile) -> Table:
    """Return the columns for the schema check: their kinds, and one value that does not fit the profile."""
    columns = [
        Column(
            column.name,
            column.kind if of_column.known else None,
            np.empty(0) if of_column.invalid is None else np.array([of_column.invalid]),
            error=column.error,
        )
        for column, of_column in found
    ]
    texts = {column.name: column.kind for column in columns if column.kind in ("category", None)}
    columns += [
        Column(expected.name, "integer" if texts[expected.source] else None, np.empty(0), expected.source)
        for expected in profile.columns
        if is_length(expected) and expected.source in texts
    ]
    return Table(rows.name, tuple(columns))


# Columns of the profile, from what the engine counted.


def _length_totals(texts: Mapping[str, int], *, rows: int) -> tuple[Totals, Cells]:
    """Return the totals and cells of the lengths of texts with these rows."""
    by_length = Counter[int]()
    for text, count in texts.items():
        by_length[len(text)] += count
    values = np.array(sorted(by_length), dtype=np.float64)
    counts = np.array([by_length[int(value)] for value in values], dtype=np.int64)
    if not values.size:
        return Totals(rows, rows), Cells.of_values(values, counts)
    mean = float(np.average(values, weights=counts))
    std = float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))
    ends = float(values[0]), float(values[-1])
    of_lengths = Totals(rows, rows - int(counts.sum()), minimum=ends[0], maximum=ends[1], mean=mean, std=std)
    return of_lengths, Cells.of_values(values, counts)


_ORDER_UNKNOWN = Dependence()
"""Rows of a query have no order, and therefore no neighbors."""


def profile_numbers(
    rows: LazyRows, column: LazyColumn, of_column: Totals, *, bins: int = 256, like: NumericColumn | None = None
) -> NumericColumn:
    """Profile a numeric column, between the edges of `like` if given."""
    edges = None if like is None else np.array(like.edges)
    if of_column.finite:
        edges, below = edges_and_below(
            rows, column.values, low=of_column.minimum, high=of_column.maximum, bins=bins, edges=edges
        )
    elif edges is not None:
        below = np.zeros(edges.size, dtype=np.int64)
    else:
        raise InputError(
            f"column {column.name!r} is infinite in every non-null row: exclude=({column.name!r},) leaves it out"
        )
    # A column without values has the kind of the profile, whatever its type.
    kind = cast(Number, column.kind if like is None or of_column.known else like.kind)
    return _numeric_column(column.name, kind, of_column, edges, below)


def profile_lengths(
    column: LazyColumn, texts: Mapping[str, int], *, rows: int, bins: int = 256, like: NumericColumn | None = None
) -> NumericColumn:
    """Profile the lengths of texts, given the number of rows of each text."""
    of_lengths, cells = _length_totals(texts, rows=rows)
    if like is None:
        edges = choose_edges(cells.representative(), bins=bins)
    else:
        edges = np.array(like.edges)
        below, up_to = cells.below(np.array([like.minimum, np.nextafter(like.maximum, np.inf)])).tolist()
        if like.finite:
            of_lengths = replace(of_lengths, below=below, above=of_lengths.finite - up_to)
    return _numeric_column(
        length_name(column.name), "integer", of_lengths, edges, cells.below(edges), source=column.name
    )


def profile_texts(
    column: LazyColumn, of_column: Totals, texts: Mapping[str, int], *, like: ProfiledColumn | None = None
) -> CategoricalColumn:
    """Profile a text column, given the number of rows of each text."""
    if not texts and isinstance(like, CategoricalColumn):  # all null: no category is new, and none is lost
        n = of_column.rows
        return replace(like, rows=n, nulls=n, counts=(0,) * len(like.counts), dependence=_ORDER_UNKNOWN)
    return CategoricalColumn.of(column.name, texts, nulls=of_column.nulls, dependence=_ORDER_UNKNOWN, like=like)


def _numeric_column(
    name: str, kind: Number, of_column: Totals, edges: Floats, below: Integers, *, source: str | None = None
) -> NumericColumn:
    counts = np.diff(below, prepend=0, append=of_column.finite)
    counts[0] += of_column.negative_infinities
    counts[-1] += of_column.positive_infinities
    return NumericColumn(
        name=name,
        kind=kind,
        rows=of_column.rows,
        nulls=of_column.nulls,
        negative_infinities=of_column.negative_infinities,
        positive_infinities=of_column.positive_infinities,
        minimum=of_column.minimum,
        maximum=of_column.maximum,
        mean=of_column.mean,
        std=of_column.std,
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        dependence=_ORDER_UNKNOWN,
        below=of_column.below,
        above=of_column.above,
        source=source,
    )
