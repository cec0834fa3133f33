"""Rows that are rare in examples and common where models break: nothing but padding, zeros, extremes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.training.tracing import Tracing

Array = NDArray[Any]

# How far outside its example a floating input is tried, as a multiple of the largest magnitude there: enough to
# saturate every activation and to overflow an exponential that was written without care, and inside float16's range
# for inputs up to 6.
_LARGE = 1e4
_PADDING_ADVICE = (
    "give such rows one position to attend to, set their outputs (masked_fill), or build nn.TransformerEncoder with "
    "enable_nested_tensor=False, so that the module in eager torch answers as it exports"
)
_EXTREME_ADVICE = "clip such inputs in the module, or write the step that overflows in a stable form"


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to replace a row: `name` as reports say it, and what to do where an exported model fails on it.

    `rounded` says that the values are so large that rounding decides about the answers.
    """

    name: str
    advice: str
    rounded: bool = False


def breaking_rows(tracing: Tracing) -> Iterator[tuple[Kind, dict[str, Array]]]:
    """The traced inputs with their last row replaced in the inputs of one sort, for each sort that is there.

    Integers become 0, and the smallest and the largest of the example; bools True and False; floats 0, and values of
    either sign 10,000 times as large as the largest of the example. What the example holds anyway is left out.
    """
    seen: list[dict[str, Array]] = [dict(tracing.inputs)]
    for dtypes, kind, value_of in _KINDS:
        inputs = dict(tracing.inputs)
        for name, array in tracing.inputs.items():
            axis = _row_axis(tracing, name)
            if axis is not None and array.dtype.kind in dtypes:
                inputs[name] = _replaced(array, axis, value_of(array), signs=kind.rounded)
        if not any(_equal(inputs, other) for other in seen):
            seen.append(inputs)
            yield kind, inputs


def _equal(one: dict[str, Array], other: dict[str, Array]) -> bool:
    return all(np.array_equal(one[name], other[name], equal_nan=one[name].dtype.kind == "f") for name in one)


def _row_axis(tracing: Tracing, name: str) -> int | None:
    """The first free axis of an input; of a model without any free axis the first one; None where rows are shared."""
    if tracing.axes[name]:
        return min(tracing.axes[name])
    return 0 if tracing.inputs[name].ndim and not tracing.sizes else None


def _replaced(array: Array, axis: int, value: float, *, signs: bool) -> Array:
    """`array` with `value` in its last row along `axis`; with `signs` of either sign in turn, so that a sum of them
    does not run off to one side."""
    changed = np.moveaxis(array.copy(), axis, 0)
    row = changed[-1:]
    turns = np.where(np.arange(row.size).reshape(row.shape) % 2, -1, 1) if signs else 1
    with np.errstate(over="ignore"):  # float16
        row[...] = np.asarray(value * turns).astype(array.dtype)
    return np.moveaxis(changed, 0, axis)


def _large(array: Array) -> float:
    finite = np.abs(array[np.isfinite(array)])
    return _LARGE * (float(finite.max(initial=0.0)) or 1.0)


_KINDS: tuple[tuple[str, Kind, Callable[[Array], Any]], ...] = (
    ("iu", Kind("an all-padding row (integers 0)", _PADDING_ADVICE), lambda _: 0),
    ("iu", Kind("an all-padding row (the smallest integer)", _PADDING_ADVICE), np.min),
    ("iu", Kind("a row of the largest integer", _EXTREME_ADVICE), np.max),
    ("b", Kind("an all-padding row (True)", _PADDING_ADVICE), lambda _: 1),
    ("b", Kind("an all-padding row (False)", _PADDING_ADVICE), lambda _: 0),
    ("f", Kind("a row of zeros", _EXTREME_ADVICE), lambda _: 0),
    ("f", Kind("a row of large values", _EXTREME_ADVICE, rounded=True), _large),
)
