"""Match the columns of new data with those of a profile."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.monitoring.column_profile import ProfiledColumn
from pytest_modelserve.monitoring.columns import KIND_WORDS, Column, is_length
from pytest_modelserve.monitoring.histogram import chunks
from pytest_modelserve.monitoring.profile import ReferenceProfile
from pytest_modelserve.monitoring.readers import Table


@dataclass(frozen=True, slots=True)
class Matching:
    """The columns that can be compared, in the profile's order, and a sentence on each that cannot."""

    pairs: tuple[tuple[Column, ProfiledColumn], ...]
    faults: tuple[str, ...]


def match_columns(table: Table, profile: ReferenceProfile) -> Matching:
    """The columns of `table` beside those of `profile`: missing, additional and retyped ones are faults.

    Whole numbers may come as floats (a null among them makes them so) and booleans as the numbers 0 and 1. A column
    that is all null fits every kind. An embedding is one column, whose width is part of its kind; the lengths of a text
    are told by the text alone.
    """
    found = {column.name: column for column in table.columns}
    there, wanted = _widths(table.columns), _widths(profile.columns)
    missing, extra = [name for name in wanted if name not in there], [name for name in there if name not in wanted]
    renamed = {old: new for old in missing if (new := _renamed(old, missing, extra))}
    faults = [
        f"column {name!r} is missing"
        + (f"; is the new column {renamed[name]!r} its new name?" if name in renamed else "")
        for name in missing
    ]
    faults += [f"column {name!r} is not in the profile" for name in extra if name not in renamed.values()]
    faults += [
        f"column {name!r} holds {_told_width(there[name])}, the profile {_told_width(width)}"
        for name, width in wanted.items()
        if name in there and there[name] != width and (name not in found or found[name].kind is not None)
    ]
    pairs = []
    for expected in profile.columns:
        column = found.get(expected.name) or _null_part(expected, found)
        if column is None:
            continue
        if fault := _other_kind(column, expected):
            faults.append(fault)
        else:
            pairs.append((column, expected))
    return Matching(tuple(pairs), tuple(faults))


def _null_part(expected: ProfiledColumn, found: Mapping[str, Column]) -> Column | None:
    """One number of an embedding that is null in every row, and has no width then."""
    whole = found.get(expected.source) if expected.source is not None else None
    if whole is None or whole.kind is not None:
        return None
    return Column(expected.name, None, whole.values, expected.source)


def _widths(columns: Iterable[Column | ProfiledColumn]) -> dict[str, int | None]:
    """The columns as the data bring them, and of the embeddings the numbers in a row."""
    widths: dict[str, int | None] = {}
    for column in columns:
        if column.source is None:
            widths[column.name] = None
        elif not is_length(column):
            widths[column.source] = (widths.get(column.source) or 0) + 1
    return widths


def _told_width(width: int | None) -> str:
    return "one value a row" if width is None else f"embeddings of {width} numbers"


def matched(table: Table, profile: ReferenceProfile) -> tuple[tuple[Column, ProfiledColumn], ...]:
    """The pairs of columns where all match; InputError that says what does not."""
    matching = match_columns(table, profile)
    if matching.faults:
        raise InputError(f"{table.name} does not fit the profile {profile.name!r}: {'; '.join(matching.faults)}")
    return matching.pairs


def _renamed(old: str, missing: Sequence[str], extra: Sequence[str]) -> str | None:
    """The additional column that `old` was probably renamed to: one of a like name, or the only candidate."""
    by_letters = {name.strip().casefold(): name for name in extra}
    near = difflib.get_close_matches(old.strip().casefold(), list(by_letters), n=1)
    if near:
        return by_letters[near[0]]
    return extra[0] if len(missing) == len(extra) == 1 else None


def _other_kind(column: Column, expected: ProfiledColumn) -> str | None:
    """What is wrong with the kind of `column`, None where nothing is."""
    if column.kind is None:
        return None
    if column.kind != expected.kind and {column.kind, expected.kind} & {"category", "datetime"}:
        return f"column {column.name!r} holds {KIND_WORDS[column.kind]}, the profile {KIND_WORDS[expected.kind]}"
    stranger = None
    if expected.kind == "integer" and column.kind == "float":
        stranger = _first(column.values, lambda values: np.isfinite(values) & (values != np.floor(values)))
    if expected.kind == "boolean" and column.kind != "boolean":
        stranger = _first(column.values, lambda values: ~np.isnan(values) & (values != 0) & (values != 1))
    if stranger is None:
        return None
    return f"column {column.name!r} holds {stranger:g}, the profile {KIND_WORDS[expected.kind]}"


def _first(values: NDArray[Any], strange: Any) -> float | None:
    for rows in chunks(len(values)):
        found = values[rows][strange(values[rows])]
        if found.size:
            return float(found[0])
    return None
