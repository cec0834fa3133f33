"""Schema check: match the columns of data with those of a profile."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.monitoring.column_profile import ProfiledColumn
from pytest_modelserve.monitoring.columns import KIND_NAMES, Column, is_length
from pytest_modelserve.monitoring.histogram import chunks
from pytest_modelserve.monitoring.profile import ReferenceProfile
from pytest_modelserve.monitoring.readers import Table


@dataclass(frozen=True, slots=True)
class Matching:
    """The columns that can be compared, in the profile's order, and a message for each that cannot."""

    pairs: tuple[tuple[Column, ProfiledColumn], ...]
    errors: tuple[str, ...]


def matched_columns(table: Table, profile: ReferenceProfile) -> tuple[tuple[Column, ProfiledColumn], ...]:
    """Return the pairs of columns if all match; otherwise raise InputError with every schema error."""
    matching = match_columns(table, profile)
    if matching.errors:
        raise InputError(f"{table.name} does not fit the profile {profile.name!r}: {'; '.join(matching.errors)}")
    return matching.pairs


def match_columns(table: Table, profile: ReferenceProfile) -> Matching:
    """Match the columns of `table` by name; missing, additional, unreadable and retyped columns are errors.

    Integers may come as floats (a null makes them so), and booleans as the numbers 0 and 1. A column that is all null
    fits every kind. An embedding is one column, whose width is part of its kind. Text lengths follow their text.
    """
    found = {column.name: column for column in table.columns}
    present, wanted = _widths(table.columns), _widths(profile.columns)
    missing, extra = [name for name in wanted if name not in present], [name for name in present if name not in wanted]
    renamed = {old: new for old in missing if (new := _new_name(old, missing, extra))}
    errors = [
        f"column {name!r} is missing"
        + (f"; is the new column {renamed[name]!r} its new name?" if name in renamed else "")
        for name in missing
    ]
    errors += [f"column {name!r} is not in the profile" for name in extra if name not in renamed.values()]
    errors += [
        f"column {name!r} holds {_format_width(present[name])}, the profile {_format_width(width)}"
        for name, width in wanted.items()
        if name in present and present[name] != width and (name not in found or found[name].kind is not None)
    ]
    pairs = []
    for expected in profile.columns:
        column = found.get(expected.name) or _null_part(expected, found)
        if column is None:
            continue
        if error := column.error or _kind_error(column, expected):
            errors.append(error)
        else:
            pairs.append((column, expected))
    return Matching(tuple(pairs), tuple(dict.fromkeys(errors)))


def _null_part(expected: ProfiledColumn, found: Mapping[str, Column]) -> Column | None:
    """Return one number of an embedding that is null in every row, and therefore has no width."""
    whole = found.get(expected.source) if expected.source is not None else None
    if whole is None or whole.kind is not None:
        return None
    return Column(expected.name, None, whole.values, expected.source, error=whole.error)


def _widths(columns: Iterable[Column | ProfiledColumn]) -> dict[str, int | None]:
    """Return the columns without text lengths, each embedding as one with its width."""
    widths: dict[str, int | None] = {}
    for column in columns:
        if column.source is None:
            widths[column.name] = None
        elif not is_length(column):
            widths[column.source] = (widths.get(column.source) or 0) + 1
    return widths


def _format_width(width: int | None) -> str:
    return "one value a row" if width is None else f"embeddings of {width} numbers"


def _new_name(old: str, missing: Sequence[str], extra: Sequence[str]) -> str | None:
    """Return the additional column that `old` was probably renamed to: a similar name, or the only candidate."""
    by_letters = {name.strip().casefold(): name for name in extra}
    near = difflib.get_close_matches(old.strip().casefold(), list(by_letters), n=1)
    if near:
        return by_letters[near[0]]
    return extra[0] if len(missing) == len(extra) == 1 else None


def _kind_error(column: Column, expected: ProfiledColumn) -> str | None:
    if column.kind is None:
        return None
    if column.kind != expected.kind and {column.kind, expected.kind} & {"category", "datetime"}:
        return f"column {column.name!r} holds {KIND_NAMES[column.kind]}, the profile {KIND_NAMES[expected.kind]}"
    invalid = None
    if expected.kind == "integer" and column.kind == "float":
        invalid = _first(column.values, lambda values: np.isfinite(values) & (values != np.floor(values)))
    if expected.kind == "boolean" and column.kind != "boolean":
        invalid = _first(column.values, lambda values: ~np.isnan(values) & (values != 0) & (values != 1))
    if invalid is None:
        return None
    where = f" in row {invalid}" * (len(column.values) > 1)  # an engine returns one value and no row
    return f"column {column.name!r} holds {column.values[invalid]:g}{where}, the profile {KIND_NAMES[expected.kind]}"


def _first(values: NDArray[Any], invalid: Callable[[NDArray[Any]], NDArray[np.bool_]]) -> int | None:
    for rows in chunks(len(values)):
        found = np.flatnonzero(invalid(values[rows]))
        if found.size:
            return int(rows.start + found[0])
    return None
