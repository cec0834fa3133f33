"""Arrays that name classes: integers or strings, one a row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError


def class_labels(values: NDArray[Any], *, what: str, blank: NDArray[np.bool_] | None = None) -> NDArray[Any]:
    """`values` `(n,)` as integers or as numpy strings, in which equal classes are equal elements.

    Booleans become 0 and 1, floats that are whole numbers become integers; floats in rows marked in `blank` `(n,)` may
    be anything and become 0. Raises InputError, beginning with `what`, for another number of dimensions, NaN,
    fractions, and elements that are neither numbers nor strings.
    """
    if values.ndim != 1:
        raise InputError(f"{what} have shape {values.shape}: one label a row is needed, shape (rows,){_hint(values)}")
    if values.dtype.kind in "iu":
        return values
    if values.dtype.kind == "b":
        return values.astype(np.int64)
    if values.dtype.kind == "f":
        return _whole(values, what, np.zeros(len(values), dtype=np.bool_) if blank is None else blank)
    if values.dtype.kind == "U":
        return values
    if values.dtype.kind in "OT":  # what onnxruntime answers, and numpy's text of variable width
        return _strings(values.astype(object), what)
    raise InputError(f"{what} have dtype {values.dtype}: class labels are integers or strings")


def _hint(values: NDArray[Any]) -> str:
    if values.ndim != 2:
        return ""
    return "; use labels.ravel()" if values.shape[1] == 1 else "; for one column a class use labels.argmax(axis=1)"


def _whole(values: NDArray[Any], what: str, blank: NDArray[np.bool_]) -> NDArray[Any]:
    missing = np.flatnonzero(np.isnan(values) & ~blank)
    if missing.size:
        raise InputError(
            f"{what} hold NaN in {missing.size} of {len(values)} rows, first in row {missing[0]}: "
            "leave out the rows that have no label"
        )
    kept = np.where(blank, 0, values)
    fractions = np.flatnonzero((np.trunc(kept) != kept) | (np.abs(kept) >= 2.0**63))
    if fractions.size:
        raise InputError(
            f"{what} hold {kept[fractions[0]]} in row {fractions[0]}: class labels are whole numbers or strings"
        )
    return kept.astype(np.int64)


def _strings(values: NDArray[Any], what: str) -> NDArray[Any]:
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise InputError(
                f"{what} hold {value!r} ({type(value).__name__}) in row {row}: class labels are all integers or all "
                "strings"
            )
    return values.astype(np.str_)
