"""Which columns of the data answer to those of a profile, and what is wrong with the others."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.monitoring.binning import chunks
from pytest_modelserve.monitoring.columns import Column, Table
from pytest_modelserve.monitoring.profiled import ProfiledColumn
from pytest_modelserve.monitoring.reference import ReferenceProfile

_WORDS = {"float": "numbers", "integer": "whole numbers", "boolean": "booleans", "category": "categories"}


@dataclass(frozen=True, slots=True)
class Matching:
    """The columns that can be compared, in the profile's order, and a sentence on each that cannot."""

    pairs: tuple[tuple[Column, ProfiledColumn], ...]
    faults: tuple[str, ...]


def match_columns(table: Table, profile: ReferenceProfile) -> Matching:
    """The columns of `table` beside those of `profile`: missing, additional and retyped ones are faults.

    Whole numbers may come as floats (a null among them makes them so) and booleans as the numbers 0 and 1. A column
    that is all null fits every kind.
    """
    found = {column.name: column for column in table.columns}
    missing = [name for name in profile.names if name not in found]
    extra = [name for name in found if name not in profile.names]
    renamed = {old: new for old in missing if (new := _renamed(old, missing, extra))}
    faults = [
        f"column {name!r} is missing"
        + (f"; is the new column {renamed[name]!r} its new name?" if name in renamed else "")
        for name in missing
    ]
    faults += [f"column {name!r} is not in the profile" for name in extra if name not in renamed.values()]
    pairs = []
    for expected in profile.columns:
        column = found.get(expected.name)
        if column is None:
            continue
        if fault := _other_kind(column, expected):
            faults.append(fault)
        else:
            pairs.append((column, expected))
    return Matching(tuple(pairs), tuple(faults))


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
    if (column.kind == "category") != (expected.kind == "category"):
        return f"column {column.name!r} holds {_WORDS[column.kind]}, the profile {_WORDS[expected.kind]}"
    stranger = None
    if expected.kind == "integer" and column.kind == "float":
        stranger = _first(column.values, lambda values: np.isfinite(values) & (values != np.floor(values)))
    if expected.kind == "boolean" and column.kind != "boolean":
        stranger = _first(column.values, lambda values: ~np.isnan(values) & (values != 0) & (values != 1))
    if stranger is None:
        return None
    return f"column {column.name!r} holds {stranger:g}, the profile {_WORDS[expected.kind]}"


def _first(values: NDArray[Any], strange: Any) -> float | None:
    for rows in chunks(len(values)):
        found = values[rows][strange(values[rows])]
        if found.size:
            return float(found[0])
    return None
