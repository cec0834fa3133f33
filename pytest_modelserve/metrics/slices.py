"""Slices: parts of the rows by a column's values, by bins or by a predicate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError

Column = NDArray[Any] | Callable[[Any], NDArray[Any]]
"""One value a row, (n,), or a function of the inputs that returns one; booleans of a function mark its rows."""

MAX_VALUES = 100
"""Of a column with more values most slices are single rows: it wants bins."""


@dataclass(frozen=True, slots=True, eq=False)
class Slices:
    """Named columns that divide the rows into slices, and the budget of each slice.

    Without a budget slices only inform: the evidence names the worst. With one of the budgets and `min_rows` every
    slice is tested like the whole. PASS then needs all of them to pass; FAIL takes Holm's correction.

    A gate that takes `slices=` also takes the plain mapping: `slices={"site": site}`.

    Args:
        columns: Name to one value a row, (n,), or to a function of the inputs that returns such a column; or a frame
            of such columns. A function that returns booleans makes one slice: the rows where it holds. Columns of more
            than 100 values are refused: see `ms.bins`.
        min_value: Lowest score that each slice may have (`assert_accuracy`).
        max_value: Highest error that each slice may have (`assert_accuracy`).
        max_drop: Largest drop of a score that each slice may have (`assert_accuracy_parity`).
        max_rise: Largest rise of an error that each slice may have (`assert_accuracy_parity`).
        max_lost: Largest proportion of lost rows that each slice may have (`assert_few_lost_rows`).
        min_rows: Fewest rows that a tested slice may have; a smaller one is an InputError.

    Raises:
        UsageError: For a budget without `min_rows` or columns, for `min_rows` without a budget or below 1, and for
            several budgets.

    Example:
        >>> slices = Slices({"age": bins([17, 30, 70], [18, 65])}, max_drop=0.05, min_rows=1)
        >>> for part in slices.parts(None, 3):
        ...     print(part.label, part.n)
        age=< 18 1
        age=>= 65 1
        age=[18, 65) 1
    """

    columns: Mapping[str, Column]
    _: KW_ONLY
    min_value: float | None = None
    max_value: float | None = None
    max_drop: float | None = None
    max_rise: float | None = None
    max_lost: float | None = None
    min_rows: int | None = None

    def __post_init__(self) -> None:
        """Check that the arguments belong together."""
        if not isinstance(self.columns, Mapping):
            if not hasattr(self.columns, "columns"):
                raise UsageError(
                    f"slices must be a frame, or map names to columns, got {type(self.columns).__name__}: pass "
                    '{"site": column}'
                )
            frame: Any = self.columns
            object.__setattr__(self, "columns", {name: np.asarray(frame[name]) for name in frame.columns})
        budgets = self.budgets
        if len(budgets) > 1:
            raise UsageError(f"Slices: {' and '.join(f'{name}=' for name in budgets)} exclude each other: give one")
        if bool(budgets) is not (self.min_rows is not None):
            given, missing = (f"{next(iter(budgets))}=", "min_rows=") if budgets else ("min_rows=", "a budget")
            raise UsageError(f"Slices: {given} needs {missing}: give both to test slices, or neither to report them")
        if budgets and not self.columns:
            raise UsageError(f"Slices: {next(iter(budgets))}= is a budget of slices, but there are no columns")
        if self.min_rows is not None and self.min_rows < 1:
            raise UsageError(f"Slices: min_rows must be a count of at least 1, got {self.min_rows}")

    @classmethod
    def of(cls, slices: Slices | Mapping[str, Column] | None) -> Slices:
        """Return `slices` itself, or the slices of a plain mapping that only inform."""
        return slices if isinstance(slices, Slices) else cls({} if slices is None else slices)

    @property
    def budgets(self) -> dict[str, float]:
        """The budgets that were given, by name: none or one."""
        given = {"min_value": self.min_value, "max_value": self.max_value}
        given |= {"max_drop": self.max_drop, "max_rise": self.max_rise, "max_lost": self.max_lost}
        return {name: limit for name, limit in given.items() if limit is not None}

    def parts(self, inputs: Any, n: int) -> tuple[Part, ...]:
        """Return the slices of `n` rows.

        Raises:
            InputError: For a column of another shape, one with more than 100 values, and a predicate that holds for
                no row.
        """
        return tuple(part for name, column in self.columns.items() for part in _parts(name, column, inputs, n))


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one slice as a mask (n,); `label` is "column=value", or the predicate's name."""

    label: str
    rows: NDArray[np.bool_]

    @property
    def n(self) -> int:
        """The number of rows."""
        return int(self.rows.sum())


@dataclass(frozen=True, slots=True, order=True)
class SliceFigure:
    """A figure of the `n` rows of one slice."""

    value: float
    label: str
    n: int


def slice_figures(parts: Iterable[Part], figure: Callable[[NDArray[np.bool_]], float]) -> list[SliceFigure]:
    """Return the figure of every slice, without those over which it has no value (it raises UsageError)."""
    found = []
    for part in parts:
        try:
            found.append(SliceFigure(figure(part.rows), part.label, part.n))
        except UsageError:  # an area over one class, a precision without a positive prediction: nothing to inform about
            continue
    return found


def bins(values: ArrayLike, edges: ArrayLike) -> NDArray[np.str_]:
    """Return a column for `slices=`: the bin of each value, as a text such as "[18, 40)".

    Args:
        values: Numbers, (n,). NaN is a bin of its own, "NaN".
        edges: Strictly rising numbers. Values below the first edge and from the last one on have bins of their own.

    Returns:
        The names of the bins, (n,).

    Raises:
        InputError: For values that are no numbers on one axis, and for edges that do not rise.

    Example:
        >>> bins([17, 18, 70], [18, 65]).tolist()
        ['< 18', '[18, 65)', '>= 65']
    """
    numbers, steps = np.asarray(values), np.asarray(edges)
    if numbers.ndim != 1 or numbers.dtype.kind not in "fiub":
        raise InputError(f"values must be numbers of shape (rows,); got shape {numbers.shape} of {numbers.dtype}")
    if steps.ndim != 1 or steps.dtype.kind not in "fiu" or not steps.size or not (np.diff(steps) > 0).all():
        raise InputError(f"edges must be strictly increasing numbers; got {edges!r}")
    texts = [f"{edge:g}" for edge in steps]
    names = [f"< {texts[0]}", *(f"[{low}, {high})" for low, high in pairwise(texts)), f">= {texts[-1]}"]
    found = np.array(names)[np.searchsorted(steps, numbers, side="right")]
    missing = np.isnan(numbers) if numbers.dtype.kind == "f" else np.zeros(len(numbers), dtype=np.bool_)
    return np.where(missing, "NaN", found)


def _parts(name: str, column: Column, inputs: Any, n: int) -> list[Part]:
    values = np.asarray(column(inputs) if callable(column) else column)
    if values.shape != (n,):
        raise InputError(f"slice {name!r} has shape {values.shape}; it needs one value for each of the {n} rows")
    if callable(column) and values.dtype.kind == "b":
        if not values.any():
            raise InputError(f"slice {name!r} has none of the {n} rows")
        return [Part(name, values)]
    kinds, inverse = np.unique(values.astype(str) if values.dtype.kind == "O" else values, return_inverse=True)
    if len(kinds) > MAX_VALUES:
        raise InputError(
            f"slice {name!r} has {len(kinds)} different values: put them into bins, {name!r}: ms.bins(values, edges)"
        )
    return [Part(f"{name}={kind}", inverse.reshape(-1) == number) for number, kind in enumerate(kinds)]
