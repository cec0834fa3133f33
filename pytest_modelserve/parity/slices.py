"""Where a model is worse than on average: a figure by the values of columns that the user names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError

Slices = Mapping[str, NDArray[Any]]
Figure = Callable[[NDArray[np.bool_]], float]
"""What is told of the rows that a mask (n,) picks out."""


@dataclass(frozen=True, slots=True, order=True)
class Slice:
    """The figure of `n` rows with one value in one column; `label` is "column=value"."""

    value: float
    label: str
    n: int


def check_slices(slices: Slices | None, n: int) -> dict[str, NDArray[Any]]:
    """The slices as arrays of shape (n,); InputError for another shape."""
    groups = {name: np.asarray(values) for name, values in (slices or {}).items()}
    for name, values in groups.items():
        if values.shape != (n,):
            raise InputError(f"slice {name!r} has shape {values.shape}; it needs one value for each of the {n} rows")
    return groups


def lowest_slice(groups: Slices, figure: Figure) -> Slice | None:
    """The slice with the lowest figure, or None without slices."""
    return min(_slices(groups, figure), default=None)


def highest_slice(groups: Slices, figure: Figure) -> Slice | None:
    """The slice with the highest figure, or None without slices."""
    return max(_slices(groups, figure), default=None)


def _slices(groups: Slices, figure: Figure) -> list[Slice]:
    found = []
    for name, values in groups.items():
        for value in np.unique(values):
            rows: NDArray[np.bool_] = values == value
            found.append(Slice(figure(rows), f"{name}={value}", int(rows.sum())))
    return found
