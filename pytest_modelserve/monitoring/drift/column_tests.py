"""How far one column lies from its profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from pytest_modelserve.evidence import Interval
from pytest_modelserve.stats import holm
from pytest_modelserve.stats.proportions import fisher_p_value
from pytest_modelserve.stats.two_sample_tests import (
    distance_bound,
    distribution_distance,
    effective_rows,
    kolmogorov_p_value,
)


@dataclass(frozen=True, slots=True)
class Blocks:
    """How many neighbouring rows may depend on each other, in the profile and in the data: n rows count as n/block."""

    reference: int = 1
    current: int = 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """One column against its profile: the distance, 0 to 1, its chance if nothing changed, and the rows behind it.

    Both numbers of rows are those that are not null, divided by their block.
    """

    name: str
    distance: float
    p_value: float
    reference_rows: float
    current_rows: float

    @property
    def value(self) -> float:
        """The distance."""
        return self.distance

    @property
    def effective(self) -> float:
        """The rows that the comparison is worth."""
        return effective_rows(self.reference_rows, self.current_rows)

    @property
    def high(self) -> float:
        """The bound that the true distance exceeds in fewer than 5 % of samples."""
        return distance_bound(self.distance, self.effective)


def compare_numbers(name: str, reference: ArrayLike, current: ArrayLike, *, blocks: Blocks) -> Comparison:
    """The comparison of two counts (bins,) between the same edges: the difference of the distribution functions."""
    then, now = np.asarray(reference, dtype=np.float64), np.asarray(current, dtype=np.float64)
    rows = float(then.sum()) / blocks.reference, float(now.sum()) / blocks.current
    distance = distribution_distance(then, now)
    return Comparison(name, distance, kolmogorov_p_value(distance, effective_rows(*rows)), *rows)


def compare_categories(name: str, reference: ArrayLike, current: ArrayLike, *, blocks: Blocks) -> Comparison:
    """The comparison of two counts (categories,) of the same categories: the largest difference of their shares.

    Its chance is Fisher's for that category, two-sided by doubling, times the number of categories that it is the
    largest of (Bonferroni). With blocks, whole counts that make the difference no larger stand for the shares.
    """
    then, now = np.asarray(reference, dtype=np.int64), np.asarray(current, dtype=np.int64)
    of_then, of_now = int(then.sum()), int(now.sum())
    apart = np.abs(then / of_then - now / of_now)
    worst = int(apart.argmax())
    shares = [(int(now[worst]), of_now, blocks.current), (int(then[worst]), of_then, blocks.reference)]
    higher, lower = sorted(shares, key=lambda share: share[0] / share[1], reverse=True)
    seen = int(((then > 0) | (now > 0)).sum())
    chance = 2 * fisher_p_value(*in_blocks(*higher, up=False), *in_blocks(*lower, up=True))
    return Comparison(
        name=name,
        distance=float(apart[worst]),
        p_value=min(chance * (seen if seen > 2 else 1), 1.0),  # of two shares one is the other's complement
        reference_rows=of_then / blocks.reference,
        current_rows=of_now / blocks.current,
    )


def in_blocks(successes: int, n: int, block: int, *, up: bool) -> tuple[int, int]:
    """(successes, n) counted in blocks: n // block, at least 1, of which about the same share, rounded up or down."""
    whole = max(n // block, 1)
    return (-(-successes * whole // n) if up else successes * whole // n), whole


# Many columns, one verdict: what all of them together say of one budget, within one error rate.


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
