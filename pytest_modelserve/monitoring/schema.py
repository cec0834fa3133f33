"""Schema check: match the columns of data with those of a profile, or with the chosen ones of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.monitoring.column_profile import ProfiledColumn
from pytest_modelserve.monitoring.columns import KIND_NAMES, Column, is_length
from pytest_modelserve.monitoring.histogram import chunks
from pytest_modelserve.monitoring.profile import ReferenceProfile
from pytest_modelserve.monitoring.read_options import ReadOptions, names_of
from pytest_modelserve.monitoring.readers import Table
from pytest_modelserve.settings import shown_value

_MAX_NAMES = 5


def choose_columns(
    profile: ReferenceProfile, columns: Collection[str] | None, exclude: Collection[str]
) -> ReferenceProfile:
    """Return `profile` with some of its columns; data that are compared with it are read without all others.

    `columns` names those to compare, `exclude` those to leave out, which the data alone may have. An embedding is one
    column, and the lengths of texts follow them. Copies of rows are not compared where a column of the profile is left
    out, because they are counted over all columns.

    Raises UsageError for an unknown name, for both arguments, and where no column is left.
    """
    left_out, known = names_of(exclude, "exclude"), list(_widths(profile.columns))
    if columns is None:
        for name in left_out:
            if name not in known and difflib.get_close_matches(name, known):
                raise UsageError(f"exclude: {unknown_choice('column', name, known)}")
        reading = replace(profile.reading, exclude=(*profile.reading.exclude, *left_out))
    else:
        if left_out:
            raise UsageError("columns and exclude cannot be given together: name the columns to compare, or the others")
        for name in (chosen := names_of(columns, "columns")):
            if name not in known:
                raise UsageError(f"columns: {unknown_choice('column', name, known)}")
        reading = replace(profile.reading, only=chosen)
    if reading == profile.reading:
        return profile
    if not any(map(reading.reads, known)):
        raise UsageError(f"{'exclude leaves' if columns is None else 'columns names'} no column to compare")
    return restricted(profile, reading)


def restricted(profile: ReferenceProfile, reading: ReadOptions) -> ReferenceProfile:
    """Return the profile of the columns that `reading` reads."""
    names = {column.name for column in profile.columns if reading.reads(column.source or column.name)}
    return replace(with_columns(profile, names), reading=reading)


def with_columns(profile: ReferenceProfile, names: Collection[str]) -> ReferenceProfile:
    """Return the profile of the columns of these names, without the number of copies of whole rows."""
    places = [index for index, column in enumerate(profile.columns) if column.name in names]
    if len(places) == len(profile.columns):
        return profile
    chosen = tuple(profile.columns[index] for index in places)
    associations = profile.associations and profile.associations.of_columns(names)
    sketch = profile.sketch and profile.sketch.of_columns(places)
    return replace(profile, columns=chosen, associations=associations, sketch=sketch, duplicates=None, row_digests=None)


def describe_choice(whole: ReferenceProfile, profile: ReferenceProfile) -> str:
    """Return the sentence on the columns of `whole` that are left out of `profile`; "" for none."""
    kept, every = _widths(profile.columns), _widths(whole.columns)
    missing = [name for name in every if name not in kept]
    more = f" and {len(missing) - _MAX_NAMES} more" if len(missing) > _MAX_NAMES else ""
    names = ", ".join(map(repr, missing[:_MAX_NAMES]))
    return f"compared {len(kept)} of the profile's {len(every)} columns, without {names}{more}" if missing else ""


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
    value = shown_value(column.name, f"{column.values[invalid]:g}")
    return f"column {column.name!r} holds {value}{where}, the profile {KIND_NAMES[expected.kind]}"


def _first(values: NDArray[Any], invalid: Callable[[NDArray[Any]], NDArray[np.bool_]]) -> int | None:
    for rows in chunks(len(values)):
        found = np.flatnonzero(invalid(values[rows]))
        if found.size:
            return int(rows.start + found[0])
    return None
