"""Where a model is worse than on average: parts of the rows by a column's values, by bins, or by a predicate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.parity.metric import Limit
from pytest_modelserve.parity.predicting import Inputs

Slices = Mapping[str, NDArray[Any] | Callable[[Any], NDArray[Any]]]
"""A column of one value a row, (n,), or a function of the inputs that returns one, of booleans where it holds."""
Figure = Callable[[NDArray[np.bool_]], float]
"""What is told of the rows that a mask (n,) picks out; UsageError where it has no value."""

MOST_VALUES = 100
"""Of a column with more values most slices are single rows: it wants bins."""


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one slice as a mask (n,); `label` is "column=value", or the predicate's name."""

    label: str
    rows: NDArray[np.bool_]

    @property
    def n(self) -> int:
        """How many rows it has."""
        return int(self.rows.sum())


@dataclass(frozen=True, slots=True, order=True)
class Slice:
    """The figure of the `n` rows of one slice."""

    value: float
    label: str
    n: int


@dataclass(frozen=True, slots=True)
class SliceRules:
    """The slices, and the budget that each has to keep where they are judged."""

    parts: tuple[Part, ...] = ()
    limit: Limit | None = None
    min_rows: int = 1

    def counting(self, rows: NDArray[np.bool_]) -> SliceRules:
        """The same slices without the rows that a metric does not count, given a mask (n,) of those that it does."""
        return replace(self, parts=tuple(Part(part.label, part.rows & rows) for part in self.parts))


def bins(values: ArrayLike, edges: ArrayLike) -> NDArray[np.str_]:
    """A column for `slices=`: the bin of each of `values` (n,), as a text such as "[18, 40)".

    `edges` rise strictly; values below the first or from the last one on have bins of their own ("< 18", ">= 65"), and
    NaN is "NaN". InputError for values that are no numbers on one axis and for edges that do not rise.
    """
    numbers, steps = np.asarray(values), np.asarray(edges)
    if numbers.ndim != 1 or numbers.dtype.kind not in "fiub":
        raise InputError(f"values to bin are numbers, one a row, not shape {numbers.shape} of {numbers.dtype}")
    if steps.ndim != 1 or steps.dtype.kind not in "fiu" or not steps.size or not (np.diff(steps) > 0).all():
        raise InputError(f"edges of bins are numbers that rise, not {edges!r}")
    told = [f"{edge:g}" for edge in steps]
    names = [f"< {told[0]}", *(f"[{low}, {high})" for low, high in pairwise(told)), f">= {told[-1]}"]
    found = np.array(names)[np.searchsorted(steps, numbers, side="right")]
    missing = np.isnan(numbers) if numbers.dtype.kind == "f" else np.zeros(len(numbers), dtype=np.bool_)
    return np.where(missing, "NaN", found)


def slice_rules(
    slices: Slices | None, inputs: Inputs, n: int, *, limits: Iterable[Limit | None], min_rows: int | None
) -> SliceRules:
    """The slices of `n` rows, judged where one of `limits` and `min_rows` are given.

    InputError for a column of another shape, one with more than 100 values, and a predicate that holds for no row;
    UsageError for half of the pair, and for a budget without slices.
    """
    limit = next((given for given in limits if given is not None), None)
    if (limit is None) is not (min_rows is None):
        have, lack = ("min_slice_rows", "the budget of a slice") if limit is None else (limit.name, "min_slice_rows=")
        raise UsageError(f"{have}= judges slices only together with {lack}: give both, or neither to be informed only")
    if limit is not None and not slices:
        raise UsageError(f"{limit.name}= is the budget of a slice, and there are none: give slices=")
    if min_rows is not None and min_rows < 1:
        raise UsageError(f"min_slice_rows is a count of at least 1, not {min_rows}")
    parts = [part for name, column in (slices or {}).items() for part in _parts(name, column, inputs, n)]
    return SliceRules(tuple(parts), limit, min_rows or 1)


def lowest_slice(parts: Iterable[Part], figure: Figure) -> Slice | None:
    """The slice with the lowest figure, or None without slices that have one."""
    return min(_figures(parts, figure), default=None)


def highest_slice(parts: Iterable[Part], figure: Figure) -> Slice | None:
    """The slice with the highest figure, or None without slices that have one."""
    return max(_figures(parts, figure), default=None)


def _figures(parts: Iterable[Part], figure: Figure) -> list[Slice]:
    found = []
    for part in parts:
        try:
            found.append(Slice(figure(part.rows), part.label, part.n))
        except UsageError:  # an area over one class, a precision without a positive answer: nothing to inform about
            continue
    return found


def _parts(name: str, column: NDArray[Any] | Callable[[Any], NDArray[Any]], inputs: Inputs, n: int) -> list[Part]:
    values = np.asarray(column(inputs) if callable(column) else column)
    if values.shape != (n,):
        raise InputError(f"slice {name!r} has shape {values.shape}; it needs one value for each of the {n} rows")
    if callable(column) and values.dtype.kind == "b":
        if not values.any():
            raise InputError(f"slice {name!r} holds for none of the {n} rows")
        return [Part(name, values)]
    kinds, inverse = np.unique(values.astype(str) if values.dtype.kind == "O" else values, return_inverse=True)
    if len(kinds) > MOST_VALUES:
        raise InputError(
            f"slice {name!r} has {len(kinds)} different values: put them into bins, {name!r}: ms.bins(values, edges)"
        )
    return [Part(f"{name}={kind}", inverse.reshape(-1) == number) for number, kind in enumerate(kinds)]
