"""A counterexample in words: which few features changed, from what to what, and what that did to the answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.metrics.elementwise import is_numpys_own
from pytest_modelserve.robustness.coordinates import Coordinates, flatten_rows, row_count, take_rows

if TYPE_CHECKING:
    from pytest_modelserve.robustness.batched_predictor import BatchedPredictor
    from pytest_modelserve.robustness.minimizer import Counterexample

_LINES = 12
_NUMBERS = 8
_LITERAL_ELEMENTS = 64
"""Inputs of more elements are pasted as a file."""


def change_lines(found: Counterexample, names: Sequence[str] | None) -> Iterator[str]:
    """How many features changed, and then each of the first twelve: "x[3]   0.25 → 0.9"."""
    layout = Coordinates.of(found.rows)
    rows = row_count(found.rows)
    size = layout.size * rows
    where = f"base row {found.base_row}" if rows == 1 else "the base rows"
    if not found.changes:
        own = f"base row {found.base_row} itself breaks" if rows == 1 else f"{rows} base rows together break"
        yield f"{own} it: nothing had to be changed"
        return
    differ = "differs" if len(found.changes) == 1 else "differ"
    before = f"{found.initial_changes:,} before minimization"
    yield f"{len(found.changes)} of {size:,} features {differ} from {where} ({before})"
    told = [_change(found, layout, row, index, names, rows) for row, index in found.changes[:_LINES]]
    wide = max(len(place) for place, _ in told)
    for place, change in told:
        yield f"  {place:<{wide}}   {change}"
    if len(found.changes) > _LINES:
        yield f"  and {len(found.changes) - _LINES:,} more"


def answer_lines(found: Counterexample, predictor: BatchedPredictor) -> Iterator[str]:
    """Every output of the first row before the changes and after: "output 'y'  0.1 0.9 → 0.8 0.2"."""
    if not found.changes:
        for name, array in predictor.predict(found.rows).items():
            yield f"output {name!r}  {_numbers(array[0])}"
        return
    before, after = predictor.predict(found.base), predictor.predict(found.rows)
    row = found.changes[0][0]
    for name in after:
        yield f"output {name!r}  {_numbers(before[name][row])} → {_numbers(after[name][row])}"


def literal(inputs: Mapping[str, NDArray[Any]]) -> str | None:
    """Python that makes these inputs again, None where that would be too long to paste."""
    if sum(array.size for array in inputs.values()) > _LITERAL_ELEMENTS:
        return None
    return "{" + ", ".join(f"{name!r}: {array_literal(array)}" for name, array in inputs.items()) + "}"


def array_literal(array: NDArray[Any]) -> str:
    """`np.array(...)` with its dtype; NaN and infinities are spelled so that Python reads them."""
    dtype = "object" if array.dtype.kind in "OUT" else array.dtype.name
    values = _spelled(array.tolist() if is_numpys_own(array.dtype) else array.astype(np.float64).tolist(), array)
    shape = f".reshape({array.shape})" if array.size == 0 and array.shape != (0,) else ""
    return f"np.array({values}, dtype={dtype!r}){shape}"


def _spelled(values: Any, array: NDArray[Any]) -> str:
    if isinstance(values, list):
        return "[" + ", ".join(_spelled(value, array) for value in values) + "]"
    if isinstance(values, float):
        if not np.isfinite(values):
            return "np.nan" if values != values else ("np.inf" if values > 0 else "-np.inf")
        return _shortest(array.dtype.type(values))
    return repr(values)


def _shortest(number: Any) -> str:
    """The fewest digits that give the number in its own dtype: 0.1 of float32 is 0.10000000149011612 as a float."""
    text = str(number)
    return text if any(mark in text for mark in ".en") else f"{text}.0"


def _change(
    found: Counterexample, layout: Coordinates, row: int, index: int, names: Sequence[str] | None, rows: int
) -> tuple[str, str]:
    part, place = layout.locate(index)
    at = f"[{', '.join(map(str, place))}]" if place else ""
    told = f"{part.name}{at}" if names is None else f"{names[index]}"
    before, after = (
        flatten_rows(take_rows(feed, [row]))[part.name][0, index - part.offset] for feed in (found.base, found.rows)
    )
    return (f"row {row}, {told}" if rows > 1 else told), f"{_number(before)} → {_number(after)}"


def _number(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)


def _numbers(array: NDArray[Any]) -> str:
    values = np.ravel(array)
    shown = [_short(value) for value in values[:_NUMBERS]]
    return " ".join([*shown, *([f"… ({values.size} in all)"] if values.size > _NUMBERS else [])])


def _short(value: Any) -> str:
    return f"{float(value):.4g}" if isinstance(value, np.floating) else _number(value)
