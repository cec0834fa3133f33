"""From a lazy frame to its profile: a query for the totals of all columns, and one or a few for each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_modelserve.errors import InputError
from pytest_modelserve.monitoring.columns import Table
from pytest_modelserve.monitoring.derived import is_length, length_name
from pytest_modelserve.monitoring.frames import Frame
from pytest_modelserve.monitoring.kinds import Column
from pytest_modelserve.monitoring.matching import match_columns
from pytest_modelserve.monitoring.profiled import NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.reference import ReferenceProfile
from pytest_modelserve.monitoring.scanning.columns import LazyColumn, lazy_columns
from pytest_modelserve.monitoring.scanning.lazy_rows import LazyRows
from pytest_modelserve.monitoring.scanning.names import count_names
from pytest_modelserve.monitoring.scanning.summing_up import categorical, column_of_lengths, numeric
from pytest_modelserve.monitoring.scanning.totals import Totals, totals
from pytest_modelserve.progress import progress

_TOGETHER = 32
"""Columns whose totals are one query: a dozen expressions each."""


@dataclass(frozen=True, slots=True)
class Beside:
    """The columns of a lazy frame that fit a profile, counted like it, and a sentence on each that does not."""

    columns: tuple[ProfiledColumn, ...]
    faults: tuple[str, ...]


def scan(
    frame: Frame,
    *,
    name: str = "reference",
    like: ReferenceProfile | None = None,
    block: int | None = None,
    bins: int = 256,
) -> ReferenceProfile:
    """The profile of a lazy frame: a Polars query, a DuckDB relation, a PySpark frame or another one of narwhals'.

    The engine that holds the rows counts them: in one query for every 32 columns, then in one or two for each column of
    numbers and one for each of text. Counts are exactly those of the same rows in memory between the same edges, as
    `like` gives them; without it, edges are chosen from how many values lie in each of about 32,768 cells. The engine
    adds up means and deviations, which rounds (`sums` are None). Rows of a frame have no order: neighbours are not
    compared (`lag` is of no pairs, `backward` None), and there are no associations, no sketch and no duplicates.

    Of a column of text, up to a million different texts come back, and their lengths are counted from these.

    Raises InputError, naming the column, for a type that cannot be profiled (embeddings among them), for a column that
    is null or infinite in every row, for more texts than that, for times that a session tells in another zone than UTC,
    for a frame without rows or, but for `like`, of a single one, and where the engine fails, with what it says.
    """
    if like is None:
        return ReferenceProfile(name, _scanned(LazyRows.of(frame, name), bins), block)
    beside = scan_beside(frame, like, name=name)
    if beside.faults:
        raise InputError(f"{name} does not fit the profile {like.name!r}: {'; '.join(beside.faults)}")
    return ReferenceProfile(name, beside.columns, block)


def scan_beside(frame: Frame, profile: ReferenceProfile, *, name: str = "data") -> Beside:
    """The columns of a lazy frame counted like `profile`, in its order; missing, additional and retyped are faults.

    Raises InputError as `scan` does with `like`.
    """
    rows = LazyRows.of(frame, name)
    references = {column.name: column for column in profile.columns}
    found = {column.name: (column, told) for column, told in _found(rows, references)}
    matching = match_columns(_seen(rows, list(found.values()), profile), profile)
    columns: dict[str, ProfiledColumn] = {}
    fitting = [reference for _, reference in matching.pairs if not is_length(reference)]
    for reference in progress(fitting, f"counting the columns of {name}"):
        column, told = found[reference.name]
        of_lengths = references.get(length_name(reference.name))
        if isinstance(reference, NumericColumn):
            columns[reference.name] = numeric(rows, column, told, like=reference)
        else:
            names = count_names(rows, column) if column.kind else {}
            columns[reference.name] = categorical(column, told, names, like=reference)
            if isinstance(of_lengths, NumericColumn) and is_length(of_lengths):
                columns[of_lengths.name] = column_of_lengths(column, names, rows=told.rows, like=of_lengths)
    return Beside(tuple(columns[reference.name] for _, reference in matching.pairs), matching.faults)


def _scanned(rows: LazyRows, bins: int) -> tuple[ProfiledColumn, ...]:
    found = _found(rows, {})
    if found[0][1].rows < 2:
        raise InputError("one row has no distribution: profile at least 2 rows, better thousands")
    columns: list[ProfiledColumn] = []
    lengths: list[ProfiledColumn] = []
    for column, told in progress(found, f"counting the columns of {rows.name}"):
        if not told.known:
            raise InputError(f"column {column.name!r} is null in every row: leave it out")
        if column.kind != "category":
            columns.append(numeric(rows, column, told, bins=bins))
            continue
        names = count_names(rows, column)
        columns.append(counted := categorical(column, told, names))
        if counted.pooled:
            lengths.append(column_of_lengths(column, names, rows=told.rows, bins=bins))
    return (*columns, *lengths)


def _found(rows: LazyRows, references: Mapping[str, ProfiledColumn]) -> list[tuple[LazyColumn, Totals]]:
    """All columns with their totals, at least one row in each."""
    columns = lazy_columns(rows)
    parts = [columns[start : start + _TOGETHER] for start in range(0, len(columns), _TOGETHER)]
    told = [
        found
        for part in progress(parts, f"adding up the columns of {rows.name}")
        for found in totals(rows, part, references)
    ]
    if not told[0].rows:
        raise InputError(f"there are no rows in {rows.name}")
    for column, found in zip(columns, told, strict=True):
        if column.kind is None and found.known:
            raise InputError(
                f"{rows.name}: column {column.name!r} holds what is neither numbers nor text nor times: turn it into "
                "one of them, or leave it out"
            )
    return list(zip(columns, told, strict=True))


def _seen(rows: LazyRows, found: Sequence[tuple[LazyColumn, Totals]], profile: ReferenceProfile) -> Table:
    """What matching sees of the columns: their kinds, and one value that a column of the profile would not hold."""
    columns = [
        Column(
            column.name,
            column.kind if told.known else None,
            np.empty(0) if told.stranger is None else np.array([told.stranger]),
        )
        for column, told in found
    ]
    texts = {column.name: column.kind for column in columns if column.kind in ("category", None)}
    columns += [
        Column(expected.name, "integer" if texts[expected.source] else None, np.empty(0), expected.source)
        for expected in profile.columns
        if is_length(expected) and expected.source in texts
    ]
    return Table(rows.name, tuple(columns))
