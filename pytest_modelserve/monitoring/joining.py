"""Columns of several files as those of one data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pytest_modelserve.errors import InputError
from pytest_modelserve.monitoring.kinds import Column, Kind
from pytest_modelserve.monitoring.telling import KIND_WORDS


def joined(parts: Sequence[tuple[str, list[Column]]]) -> list[Column]:
    """The columns of all parts, each with its name and at least one row, one after the other; of one part uncopied.

    InputError, naming the column and both parts, where one lacks a column, has another or one of another kind. Whole
    numbers join fractions, and a column that is all null joins every kind.
    """
    first_name, first = parts[0]
    if len(parts) == 1:
        return first
    found = [(name, {column.name: column for column in columns}) for name, columns in parts]
    wanted = {column.name for column in first}
    for name, columns in found[1:]:
        for missing in [column.name for column in first if column.name not in columns]:
            raise InputError(f"{name} has no column {missing!r}, which {first_name} has")
        for extra in [column for column in columns if column not in wanted]:
            raise InputError(f"{name} has a column {extra!r}, which {first_name} has not")
    return [_joined([(name, columns[column.name]) for name, columns in found]) for column in first]


def _joined(parts: Sequence[tuple[str, Column]]) -> Column:
    first = parts[0][1]
    kind = _kind(first.name, [(name, column.kind) for name, column in parts if column.kind is not None])
    nulls = np.nan if kind != "category" else None
    values = [np.full(len(c.values), nulls) if c.kind is None else c.values for _, c in parts]
    return Column(first.name, kind, np.concatenate(values), first.source)


def _kind(column: str, known: Sequence[tuple[str, Kind]]) -> Kind | None:
    """The kind of a column that is known to be of these kinds in the parts so named; None where it is in none."""
    kinds = {kind for _, kind in known}
    if not kinds:
        return None
    if kinds <= {"integer", "float"}:
        return "float" if "float" in kinds else "integer"
    name, kind = known[0]
    for other_name, other in known[1:]:
        if other != kind:
            raise InputError(
                f"column {column!r} holds {KIND_WORDS[kind]} in {name} and {KIND_WORDS[other]} in {other_name}"
            )
    return kind
