"""Conditions on columns as text, `age > 61 and region == "north"`: parsed, and evaluated row by row."""

from __future__ import annotations

import ast
import json
import keyword
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.monitoring.columns import Column
from pytest_modelserve.monitoring.readers import Frame, read_table
from pytest_modelserve.serving.conversion import Frame as ServedFrame
from pytest_modelserve.serving.inputs import as_batch

Mask = NDArray[np.bool_]
Literal = str | float | bool

_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_SWAPPED = {ast.Gt: ast.Lt, ast.GtE: ast.LtE, ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Eq: ast.Eq, ast.NotEq: ast.NotEq}
_QUOTED = re.compile(r""" "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' | `([^`]+)` """, re.VERBOSE)
_PLAIN_NAME = re.compile(r"([A-Za-z_]\w*)(\[\d+\])?")


@dataclass(frozen=True)
class where:  # noqa: N801 (called like a function)
    """Rows that meet a condition, as a column of `slices=`.

    A condition compares columns with values, joined by `and`: `age > 61`, `18 < age <= 61`, `region == "north"`,
    `day >= "2026-03-01"` (UTC), `retired == True`, `income is missing`, `income is not missing`. Names that are not
    plain words stand in backquotes: `` `hours per week` > 40 ``. The columns of an array are `column_0`, `column_1`;
    those of an array (n, d) called `x` in a mapping are `x[0]`, `x[1]`. A missing value meets no comparison.

    Args:
        condition: The condition.
        features: Columns beside those of the gate's inputs: a frame, a mapping of columns, or an array.

    Raises:
        UsageError: The condition cannot be read.
        InputError: On use, for an unknown column and for a value of another kind than the column's.

    Example:
        >>> import numpy as np
        >>> from pytest_modelserve import where
        >>> people = {"age": np.array([70.0, 70.0, 30.0, np.nan]), "region": ["north", "south", "north", "north"]}
        >>> where('age > 61 and region == "north"')(people).tolist()
        [True, False, False, False]
    """

    condition: str
    features: Any = None

    def __post_init__(self) -> None:
        self._terms  # noqa: B018 (a condition that cannot be read is an error here)

    def __call__(self, inputs: Any) -> Mask:
        """Return which rows of `inputs` and `features` meet the condition, (n,)."""
        names = self.names
        columns: dict[str, Column | None] = {} if inputs is None else feature_columns(inputs, names)
        if self.features is not None:
            columns |= feature_columns(self.features, names)
        return self.rows(columns)

    def __repr__(self) -> str:
        """Return the code that makes it."""
        features = "" if self.features is None else ", features"
        return f"ms.where({self.condition!r}{features})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, where) and self.condition == other.condition and self.features is other.features

    def __hash__(self) -> int:
        return hash(self.condition)

    @property
    def names(self) -> list[str]:
        """The names of the columns that it compares."""
        return [term.column for term in self._terms]

    @cached_property
    def _terms(self) -> tuple[_Term, ...]:
        return tuple(_parsed(self.condition))

    def rows(self, columns: Mapping[str, Column | None]) -> Mask:
        """Return which rows of these columns meet the condition, (n,)."""
        found: Mask | None = None
        for term in self._terms:
            if (column := columns.get(term.column)) is None:
                raise InputError(f"{self.condition!r}: {unknown_choice('column', term.column, columns)}")
            rows = term.rows(column)
            found = rows if found is None else found & rows
        assert found is not None
        return found


def feature_columns(data: Any, names: Iterable[str] | None = None) -> dict[str, Column | None]:
    """Return the columns of inputs or features by name; those of arrays with more than two axes are left out.

    Only the columns that `names` need are read, the others of a frame or mapping are None. A column that cannot be
    read holds its error.
    """
    batch = data if hasattr(data, "columns") else as_batch(data)
    if isinstance(batch, ServedFrame):
        batch = batch.native
    if isinstance(batch, np.ndarray):
        if batch.ndim > 2:
            return {}
        batch = batch.reshape(len(batch), -1)
        present: list[str] = []
    else:
        present = list(batch) if isinstance(batch, Mapping) else list(batch.columns)
    wanted = present if names is None else {part for name in names for part in (name, name.partition("[")[0])}
    if present:
        kept = [name for name in present if name in wanted]
        if isinstance(batch, Mapping):
            batch = {name: batch[name] for name in kept if np.ndim(batch[name]) <= 2}
        elif names is not None:
            batch = _selected(batch, kept)
        if not kept or (isinstance(batch, Mapping) and not batch):
            return dict.fromkeys(present)
    columns = read_table(batch, kinds={}).columns
    return {**dict.fromkeys(present), **{column.name: column for column in columns}}


def _selected(frame: Any, names: list[str]) -> Frame:
    selected: Frame = frame.select(names) if hasattr(frame, "select") else frame[names]
    return selected


def column_text(name: str) -> str:
    """Return the name of a column as a condition writes it."""
    match = _PLAIN_NAME.fullmatch(name)
    plain = match is not None and not keyword.iskeyword(match[1]) and match[1] != "missing"
    return name if plain else f"`{name}`"


def literal_text(value: Literal) -> str:
    """Return a value as a condition writes it."""
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


@dataclass(frozen=True, slots=True)
class _Term:
    """One comparison of a column; `compare` is None for a test of missing values, whose `value` says whether."""

    column: str
    compare: Callable[[Any, Any], Any] | None
    value: Literal

    def rows(self, column: Column) -> Mask:
        if column.error:
            raise InputError(column.error)
        values, is_text = column.values, column.values.dtype.kind == "O"
        null = np.array([value is None for value in values], dtype=np.bool_) if is_text else values != values
        if self.compare is None:
            return np.asarray(null if self.value else ~null)
        if column.kind is None:
            return np.zeros(len(values), dtype=np.bool_)
        if is_text:
            if not isinstance(self.value, str) or self.compare not in (operator.eq, operator.ne):
                raise InputError(f"column {self.column!r} holds text: compare it with == or !=, and a text in quotes")
            return np.asarray(self.compare(values, self.value) & ~null, dtype=np.bool_)
        number = self._number(column)
        if values.dtype.kind in "iu" and number == number // 1:  # exact beyond 2⁵³
            return np.asarray(self.compare(values, int(number)))
        return np.asarray(self.compare(values.astype(np.float64), number) & ~null)

    def _number(self, column: Column) -> float:
        if not isinstance(self.value, str):
            return self.value
        if column.kind == "datetime":
            try:
                return float(np.datetime64(self.value, "us").astype(np.int64)) / 1e6
            except ValueError:
                raise InputError(
                    f"column {self.column!r} holds dates, and {self.value!r} is none: write it as '2026-03-01' or "
                    "'2026-03-01 12:00:00'"
                ) from None
        raise InputError(f"column {self.column!r} holds numbers, and {self.value!r} is text: remove the quotes")


def _parsed(condition: str) -> Iterable[_Term]:
    if not isinstance(condition, str):
        raise UsageError(f"a condition must be text, such as 'age > 61'; got {type(condition).__name__}")
    names: list[str] = []

    def named(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        names.append(match[1])
        return f"_column_{len(names) - 1}_"

    try:
        tree = ast.parse(_QUOTED.sub(named, condition).strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise _unreadable(condition) from None
    parts = tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]
    for part in parts:
        if not isinstance(part, ast.Compare):
            raise _unreadable(condition)
        yield from _comparisons(part, condition, names)


def _comparisons(part: ast.Compare, condition: str, names: list[str]) -> Iterable[_Term]:
    """Yield the terms of `column > 1`, of `0 < column <= 1` and of `column is missing`."""
    sides = [part.left, *part.comparators]
    for left, compared, right in zip(sides, part.ops, sides[1:], strict=False):
        name, other, kind = _name(left, names), _name(right, names), type(compared)
        if kind in (ast.Is, ast.IsNot) and name is not None and other == "missing" and len(sides) == 2:
            yield _Term(name, None, kind is ast.Is)
            continue
        column, value = (name, right) if name is not None else (other, left)
        if kind not in _COMPARISONS or column is None or (name is not None and other is not None):
            raise _unreadable(condition)
        yield _Term(column, _COMPARISONS[kind if name is not None else _SWAPPED[kind]], _value(value, condition))


def _name(node: ast.expr, names: list[str]) -> str | None:
    if isinstance(node, ast.Name):
        placed = re.fullmatch(r"_column_(\d+)_", node.id)
        return names[int(placed[1])] if placed and int(placed[1]) < len(names) else node.id
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and isinstance(node.slice, ast.Constant):
        return f"{node.value.id}[{node.slice.value!r}]"
    return None


def _value(node: ast.expr, condition: str) -> Literal:
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = -1, node.operand
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, str) and sign == 1:
        return value
    if isinstance(value, (int, float)) and math.isfinite(value):
        return sign * value if sign == -1 else value
    raise _unreadable(condition)


def _unreadable(condition: str) -> UsageError:
    return UsageError(
        f"the condition {condition!r} cannot be read: join comparisons of a column with a value by `and`, as in "
        "'age > 61 and region == \"north\" and income is missing'. Other names than plain words stand in backquotes"
    )
