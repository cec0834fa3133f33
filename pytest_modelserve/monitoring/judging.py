"""Many columns, one verdict: what all of them together say of one budget, within one error rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pytest_modelserve.evidence import Interval
from pytest_modelserve.stats import holm

CONFIDENCE = 0.95
"""The level of each upper bound, which PASS rests on."""


class Change(Protocol):
    """How far something is seen from the profile."""

    @property
    def value(self) -> float:
        """The distance or excess as seen."""

    @property
    def p_value(self) -> float:
        """The chance of at least this value if nothing changed."""

    @property
    def high(self) -> float:
        """The upper bound of the true value at 95 %."""


AnyChange = TypeVar("AnyChange", bound=Change)


@dataclass(frozen=True, slots=True)
class Judgement(Generic[AnyChange]):
    """What the changes say of a budget.

    `headline` is the one that decides, and holding `interval` against the budget gives the verdict of all. `beyond`
    are those that went significantly and further than the budget, `significant` those that went at all; both with the
    largest first.
    """

    headline: AnyChange
    interval: Interval
    beyond: tuple[AnyChange, ...]
    significant: tuple[AnyChange, ...]


def judge(changes: Sequence[AnyChange], *, budget: float, alpha: float) -> Judgement[AnyChange]:
    """FAIL where some change is significant, within `alpha` over all (Holm), and seen beyond `budget`; PASS where the
    upper bound of every one keeps it; else neither.

    The low end of the interval is the headline's value as seen, if that is significantly different from no change, and
    otherwise 0 or what is seen below: it is a test against no change, and no bound on the value. The high end is the
    headline's upper bound. No correction is made for PASS: every change has to pass. UsageError for a NaN p-value.
    """
    return judge_families([(1.0, changes)], budget=budget, alpha=alpha)


def judge_families(
    families: Sequence[tuple[float, Sequence[AnyChange]]], *, budget: float, alpha: float
) -> Judgement[AnyChange]:
    """As `judge`, of families of changes that each take a share of `alpha` for themselves, the shares being 1 in all.

    A family whose tests hold its share of alpha whatever the others do keeps all of them together within alpha.
    """
    told = [
        (change, differs)
        for share, changes in families
        for change, differs in zip(changes, holm([change.p_value for change in changes]) <= alpha * share, strict=True)
    ]
    ranked = sorted(told, key=lambda pair: -pair[0].value)
    significant = tuple(change for change, differs in ranked if differs)
    beyond = tuple(change for change in significant if change.value > budget)
    headline = beyond[0] if beyond else max((change for change, _ in told), key=lambda change: change.high)
    differs = any(headline is change for change in significant)
    low = headline.value if differs else min(headline.value, 0.0)
    return Judgement(headline, Interval(low, headline.high, 1 - alpha, CONFIDENCE), beyond, significant)
