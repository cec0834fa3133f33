"""Verdicts over slices of the rows, with one error rate for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Quantity, Verdict, holm_step_down
from pytest_modelserve.metrics import Part
from pytest_modelserve.parity.accuracy.estimates import ErrorRates

if TYPE_CHECKING:
    from pytest_modelserve.parity.accuracy.metrics import Limit


@dataclass(frozen=True, slots=True)
class SliceRules:
    """The slices, and the budget that each has to keep where they are judged."""

    parts: tuple[Part, ...] = ()
    limit: Limit | None = None
    min_rows: int = 1

    def counting(self, rows: NDArray[np.bool_]) -> SliceRules:
        """The same slices without the rows that a metric does not count, given a mask (n,) of those that it does."""
        return replace(self, parts=tuple(Part(part.label, part.rows & rows) for part in self.parts))


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
        raise UsageError(f"Slices: {rules.limit.name}= {why}")


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
        f"slice {part.label} has {part.n} rows, fewer than min_rows={rules.min_rows}{more}: label more of it, "
        f"merge it with another, or leave it out{others}"
    )


def _severity(verdict: Verdict) -> int:
    return verdict.severity


def _severity_of(quantity: Quantity) -> tuple[int, Any]:
    assert quantity.verdict is not None
    assert quantity.budget is not None
    beyond = quantity.value - quantity.budget.limit
    return quantity.verdict.severity, beyond if quantity.budget.kind == "at_most" else -beyond
