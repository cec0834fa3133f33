"""Faults of the rows that a data gate reads: the mutants of its window."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.monitoring.columns import Column
from pytest_modelserve.monitoring.readers import Table

SHARE = 0.3
"""Every fault changes this proportion of the rows of a column, or moves its distribution function so far. Smaller ones
are left out: the budgets of data gates are about as large."""
_TOLERANCE = 1e-9
SHIFT = 2.0
"""Standard deviations by which a column is shifted."""


@dataclass(frozen=True, slots=True)
class DataFault:
    """A fault of one column, or of all rows; `apply` returns the table that has it."""

    kind: str
    where: str
    settings: str
    apply: Callable[[Table], Table]


def data_faults(table: Table, count: int) -> Iterator[tuple[int, DataFault]]:
    """Yield up to `count` faults of each kind, in columns spread over the table, with their place in the kind.

    Faults smaller than SHARE, such as a shift of a constant column, are not among them.
    """
    for kind, (settings, change) in _KINDS.items():
        columns = [
            column.name
            for column in table.columns
            if (new := change(column)) is not None and _distance(new, column) >= SHARE - _TOLERANCE
        ]
        for place, name in enumerate(_spread(columns, count)):
            yield place, DataFault(kind, repr(name), settings, _of_column(name, change))
    pairs = [
        (first.name, second.name)
        for first, second in zip(table.columns, table.columns[1:], strict=False)
        if first.kind == second.kind and _distance(replace(first, values=second.values), first) >= SHARE
    ]
    for place, (one, other) in enumerate(_spread(pairs, count)):
        yield place, DataFault("swapped columns", f"{one!r} and {other!r}", "", _swap(one, other))
    if table.rows > 1:
        yield 0, DataFault("duplicated rows", "every second row", "", _duplicated)


def take_rows(table: Table, rows: NDArray[np.int64]) -> Table:
    """Return the rows of these numbers."""
    return Table(
        table.name,
        tuple(
            replace(c, values=c.values[rows], exact=None if c.exact is None else c.exact[rows]) for c in table.columns
        ),
    )


def _spread(items: list[Any], count: int) -> list[Any]:
    if len(items) <= count:
        return items
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, count)]


def _of_column(name: str, change: Callable[[Column], Column | None]) -> Callable[[Table], Table]:
    return lambda table: Table(table.name, tuple((change(c) or c) if c.name == name else c for c in table.columns))


def _distance(new: Column, old: Column) -> float:
    """Return the largest change of the distribution function, of the proportion of a category, or of that of nulls."""
    known = _known(new), _known(old)
    nulls = abs(float(known[0].mean()) - float(known[1].mean()))
    values, before = new.values[known[0]], old.values[known[1]]
    if not len(values) or not len(before):
        return nulls
    if old.kind == "category":
        counts, earlier = Counter(values.tolist()), Counter(before.tolist())
        names = counts.keys() | earlier.keys()
        return max(nulls, *(abs(counts[name] / len(values) - earlier[name] / len(before)) for name in names))
    points = np.unique(np.concatenate([values, before]).astype(np.float64))
    steps = [np.searchsorted(np.sort(a), points, side="right") / len(a) for a in (values, before)]
    return max(nulls, float(np.abs(steps[0] - steps[1]).max()))


def _swap(one: str, other: str) -> Callable[[Table], Table]:
    def swapped(table: Table) -> Table:
        by_name = {column.name: column for column in table.columns}
        places = {one: other, other: one}
        return Table(
            table.name,
            tuple(
                replace(c, values=by_name[places[c.name]].values, exact=by_name[places[c.name]].exact)
                if c.name in places
                else c
                for c in table.columns
            ),
        )

    return swapped


def _duplicated(table: Table) -> Table:
    return take_rows(table, np.sort(np.concatenate([np.arange(table.rows), np.arange(0, table.rows, 2)])))


def _is_number(column: Column) -> bool:
    return column.kind in ("float", "integer")


def _shifted(column: Column) -> Column | None:
    if not _is_number(column):
        return None
    finite = column.values[np.isfinite(column.values)].astype(np.float64)
    return _with(column, column.values.astype(np.float64) + SHIFT * (finite.std() if finite.size else 0.0))


def _multiplied(column: Column) -> Column | None:
    return _with(column, column.values.astype(np.float64) * 1000) if _is_number(column) else None


def _with(column: Column, values: NDArray[np.float64]) -> Column:
    """Return the column with other numbers; those of whole numbers are rounded."""
    return replace(column, values=np.rint(values) if column.kind == "integer" else values, exact=None)


def _stuck(column: Column) -> Column | None:
    known = column.values[_known(column)]
    return replace(column, values=np.full_like(column.values, known[0]), exact=None) if known.size else None


def _nulls(column: Column) -> Column | None:
    if column.kind is None:
        return None
    values = column.values.astype(object if column.kind == "category" else np.float64)
    values[_rows(len(values))] = None if column.kind == "category" else np.nan
    return replace(column, values=values, exact=None)


def _lost(column: Column) -> Column | None:
    """Give the rows of the most frequent category the next one."""
    if column.kind != "category":
        return None
    names, counts = np.unique(column.values[_known(column)].astype(str), return_counts=True)
    if len(names) < 2:
        return None
    first, second = names[np.argsort(-counts, kind="stable")[:2]].tolist()
    return replace(column, values=np.array([second if v == first else v for v in column.values], object))


def _renamed(column: Column) -> Column | None:
    """Give a part of the rows a category that the profile does not have."""
    if column.kind != "category":
        return None
    values = column.values.copy()
    values[_rows(len(values))] = "another category"
    return replace(column, values=values)


def _rows(count: int) -> NDArray[np.int64]:
    """Return the rows that a fault changes, at random and always the same."""
    return np.random.default_rng(0).permutation(count)[: math.ceil(SHARE * count)]


def _known(column: Column) -> NDArray[np.bool_]:
    if column.values.dtype.kind == "O":
        return np.array([value is not None for value in column.values], bool)
    return ~np.isnan(column.values) if column.values.dtype.kind == "f" else np.ones(len(column.values), bool)


_KINDS: dict[str, tuple[str, Callable[[Column], Column | None]]] = {
    "shifted column": (f"by {SHIFT:g} standard deviations", _shifted),
    "unit error": ("× 1000", _multiplied),
    "nulls": (f"{SHARE:.0%} of the rows", _nulls),
    "stuck column": ("every row has the first value", _stuck),
    "lost category": ("the most frequent one", _lost),
    "new category": (f"{SHARE:.0%} of the rows", _renamed),
}
