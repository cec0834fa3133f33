"""Where a model is worse than on average: parts of the rows by a column's values, by bins, or by a predicate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Quantity, Verdict, holm_step_down
from pytest_modelserve.parity.accuracy.estimates import ErrorRates
from pytest_modelserve.stats import block_ids, unit_values

if TYPE_CHECKING:
    from pytest_modelserve.parity.accuracy.metrics import Limit
    from pytest_modelserve.serving.inputs import Inputs

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


# A verdict for every slice and for the whole, with one error rate for all of them.


Judge = Callable[[NDArray[np.bool_], float, ErrorRates], Quantity]
"""The quantity over the rows of a mask (n,), held against a limit at error rates; UsageError where it has no value."""
Needed = Callable[[float], int | None]
"""About how many rows decide on a limit, were the model as it is on all rows; None where that is not told."""

_SHOWN = 30
"""Slices that travel with the evidence, the worst: each takes some 300 of its 16,384 bytes."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The headline, the judged slices, worst first, and a sentence on those that are not shown."""

    headline: Quantity
    slices: tuple[Quantity, ...] = ()
    findings: tuple[str, ...] = ()

    @property
    def of_slices(self) -> Verdict | None:
        """The worst verdict of the slices where it is worse than the headline's."""
        assert self.headline.verdict is not None
        worst = max((q.verdict for q in self.slices if q.verdict is not None), key=_severity, default=None)
        return worst if worst is not None and worst.severity > self.headline.verdict.severity else None


def verdicts_of(
    rules: SliceRules, judge: Judge, *, n: int, limit: float, rates: ErrorRates, needed: Needed | None = None
) -> Verdicts:
    """The verdict over all `n` rows and, where `rules` judge them, over every slice.

    PASS of the gate needs PASS of every slice, which takes no correction. FAIL takes Holm's, so that a model inside all
    of its budgets fails at most with probability alpha.

    InputError for a slice with fewer than the least number of rows, saying how many it would take, and for one over
    which the metric has no value.
    """
    whole = Part("", np.ones(n, dtype=np.bool_))
    if rules.limit is None:
        return Verdicts(judge(whole.rows, limit, rates))
    _check_sizes(rules, rules.limit, needed)
    parts = {part.label: part for part in (whole, *rules.parts)}
    limits = dict.fromkeys(parts, rules.limit.value) | {"": limit}

    def at(label: str) -> Callable[[float], Quantity]:
        return lambda alpha: _judged(judge, parts[label], limits[label], replace(rates, alpha=alpha))

    found = holm_step_down({label: at(label) for label in parts}, alpha=rates.alpha)
    headline = found.pop("")
    named = [replace_name(quantity, f"{quantity.name} {label}") for label, quantity in found.items()]
    named.sort(key=_severity_of, reverse=True)
    left = len(named) - _SHOWN
    told = (f"{len(rules.parts)} slices judged; the {left} best are not shown",) if left > 0 else ()
    return Verdicts(headline, tuple(named[:_SHOWN]), told)


def replace_name(quantity: Quantity, name: str) -> Quantity:
    """The same quantity under another name; its verdict follows from the rest."""
    return Quantity(name, quantity.value, quantity.unit, quantity.interval, quantity.budget)


def refuse_judged_slices(rules: SliceRules, why: str) -> None:
    """UsageError where slices are to be judged, which the metric does not allow."""
    if rules.limit is not None:
        raise UsageError(f"{rules.limit.name}= {why}")


def _judged(judge: Judge, part: Part, limit: float, rates: ErrorRates) -> Quantity:
    try:
        return judge(part.rows, limit, rates)
    except UsageError as error:
        if not part.label:
            raise
        raise InputError(f"slice {part.label} cannot be judged: {error}") from None


def _check_sizes(rules: SliceRules, limit: Limit, needed: Needed | None) -> None:
    small = [part for part in rules.parts if part.n < rules.min_rows]
    if not small:
        return
    part = min(small, key=lambda part: part.n)
    rows = needed(limit.value) if needed is not None else None
    short = rows is not None and rows > part.n
    more = f"; against {limit.name}={limit.value:g} about {rows:,} rows of it are needed" if short else ""
    others = f" ({len(small) - 1} more slices are too small)" if len(small) > 1 else ""
    raise InputError(
        f"slice {part.label} has {part.n} rows, fewer than min_slice_rows={rules.min_rows}{more}: label more of it, "
        f"merge it with another, or leave it out{others}"
    )


def _severity(verdict: Verdict) -> int:
    return verdict.severity


def _severity_of(quantity: Quantity) -> tuple[int, Any]:
    assert quantity.verdict is not None
    assert quantity.budget is not None
    beyond = quantity.value - quantity.budget.limit
    return quantity.verdict.severity, beyond if quantity.budget.kind == "at_most" else -beyond


# What is drawn independently of each other: rows, runs of consecutive rows, or groups of rows that share an id.


@dataclass(frozen=True, slots=True)
class Units:
    """The units of `n` rows: `ids` (n,) number them from 0, None where every row is one; `block` as it was given."""

    n: int
    ids: NDArray[np.intp] | None = None
    block: int | None = None

    @classmethod
    def of(cls, n: int, *, block: int | None, groups: ArrayLike | None) -> Units:
        """The units that `block=` or `groups=` make of `n` rows.

        UsageError for both and for a block that is no count; InputError for groups of another shape, or that hold NaN.
        """
        if block is not None and groups is not None:
            raise UsageError(
                "block= is for rows in a sequence and groups= for rows that share an id: give one of them (a series "
                "for each id is one group)"
            )
        if block is not None:
            return cls(n, block_ids(n, block), block)
        if groups is None:
            return cls(n)
        ids = np.asarray(groups)
        if ids.shape != (n,):
            raise InputError(f"groups have shape {ids.shape}; they need one id for each of the {n} rows")
        if ids.dtype.kind == "f" and np.isnan(ids).any():
            raise InputError(f"groups hold NaN in {int(np.isnan(ids).sum())} of {n} rows: give every row an id")
        return cls(n, _numbered(ids.astype(str) if ids.dtype.kind == "O" else ids))

    @property
    def are_rows(self) -> bool:
        """Whether every row is a unit of its own."""
        return self.ids is None

    @property
    def count(self) -> int:
        """The number of units."""
        return self.n if self.ids is None else int(self.ids.max()) + 1

    def values(self, per_row: NDArray[np.float64]) -> NDArray[np.float64]:
        """One value a unit with the same mean, (units,), of one value a row, (n,)."""
        return per_row if self.ids is None else unit_values(per_row, self.ids)

    def over(self, rows: NDArray[np.bool_]) -> Units:
        """The units of the rows that a mask (n,) picks out."""
        kept = int(rows.sum())
        return Units(kept) if self.ids is None else Units(kept, _numbered(self.ids[rows]), self.block)

    def told(self) -> str:
        """How a method is said to have used them: "over 20 blocks of 20 rows", or nothing for rows."""
        if self.ids is None:
            return ""
        return f" over {self.count} groups" if self.block is None else f" over {self.count} blocks of {self.block} rows"


def check_weights(weights: ArrayLike | None, n: int) -> NDArray[np.float64] | None:
    """The weights as (n,) floats; InputError for another shape, for NaN, infinite or negative ones, and for all 0."""
    if weights is None:
        return None
    values: NDArray[Any] = np.asarray(weights)
    if values.shape != (n,) or values.dtype.kind not in "fiub":
        raise InputError(f"weights have shape {values.shape} and dtype {values.dtype}; {n} rows need one number each")
    numbers = values.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers) | (numbers < 0))
    if bad.size:
        raise InputError(f"weights are finite and at least 0, unlike {numbers[bad[0]]:g} in row {bad[0]}")
    if not numbers.any():
        raise InputError("all weights are 0: no row counts")
    return numbers


def _numbered(ids: NDArray[Any]) -> NDArray[np.intp]:
    """The ids as numbers from 0 in the order of their first rows."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.intp)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return np.asarray(rank[inverse.reshape(-1)])
