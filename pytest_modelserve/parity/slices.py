"""Where a model is worse than on average: accuracy by the values of columns that the user names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError


def check_slices(slices: Mapping[str, NDArray[Any]] | None, n: int) -> dict[str, NDArray[Any]]:
    """The slices as arrays of shape (n,); InputError for another shape."""
    groups = {name: np.asarray(values) for name, values in (slices or {}).items()}
    for name, values in groups.items():
        if values.shape != (n,):
            raise InputError(f"slice {name!r} has shape {values.shape}; it needs one value for each of the {n} rows")
    return groups


def accuracy_by_slice(groups: Mapping[str, NDArray[Any]], correct: NDArray[np.bool_]) -> tuple[str, ...]:
    """A sentence on the slice with the lowest accuracy, or none without slices."""
    found = [(float(correct[rows].mean()), label, int(rows.sum())) for label, rows in _slices(groups)]
    if not found:
        return ()
    share, label, rows = min(found)
    return (f"worst slice {label}: {100 * share:.1f} % of {rows} rows",)


def drop_by_slice(groups: Mapping[str, NDArray[Any]], before: NDArray[np.bool_], after: NDArray[np.bool_]) -> str:
    """A clause on the slice that lost the most accuracy, or "" without slices or without a loss."""
    found = [(float(before[rows].mean() - after[rows].mean()), label) for label, rows in _slices(groups)]
    drop, label = max(found, default=(0.0, ""))
    return f"worst slice {label}: {100 * drop:.1f} points" if drop > 0 else ""


def _slices(groups: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    for name, values in groups.items():
        for value in np.unique(values):
            yield f"{name}={value}", values == value
