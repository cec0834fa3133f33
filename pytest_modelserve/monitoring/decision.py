"""One verdict from many tests within one error rate, and row counts of dependent rows in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pytest_modelserve.evidence import Interval
from pytest_modelserve.stats import holm

CONFIDENCE = 0.95
"""The level of each upper bound. PASS needs every upper bound within the budget."""


class Outcome(Protocol):
    """The result of a test of one difference between the data and the profile."""

    @property
    def distance(self) -> float:
        """The observed difference."""

    @property
    def p_value(self) -> float:
        """The probability of at least this difference if nothing changed."""

    @property
    def upper(self) -> float:
        """The upper bound of the true difference at 95 %."""


AnyOutcome = TypeVar("AnyOutcome", bound=Outcome)


@dataclass(frozen=True, slots=True)
class DriftResult(Generic[AnyOutcome]):
    """The decision on one budget from all tests.

    `headline` is the test that decides; its `interval` against the budget gives the verdict. `beyond` are the tests
    that are significant and exceed the budget, `significant` all significant ones; both are sorted by distance.
    """

    headline: AnyOutcome
    interval: Interval
    beyond: tuple[AnyOutcome, ...]
    significant: tuple[AnyOutcome, ...]


def decide(
    groups: Sequence[tuple[float, Sequence[AnyOutcome]]], *, budget: float, alpha: float
) -> DriftResult[AnyOutcome]:
    """Decide one budget from groups of tests, each with its proportion of `alpha`; the proportions add up to 1.

    Holm's correction holds each group's part of `alpha`, whatever the other groups do. FAIL needs a significant test
    with a distance beyond `budget`; PASS needs every upper bound within it, without a correction.

    The low end of the interval is the observed distance if that is significant, otherwise at most 0: it is a test of
    no change and not a bound. Raises UsageError for a NaN p-value.
    """
    tested = [
        (test, differs)
        for proportion, tests in groups
        for test, differs in zip(tests, holm([test.p_value for test in tests]) <= alpha * proportion, strict=True)
    ]
    ranked = sorted(tested, key=lambda pair: -pair[0].distance)
    significant = tuple(test for test, differs in ranked if differs)
    beyond = tuple(test for test in significant if test.distance > budget)
    headline = beyond[0] if beyond else max((test for test, _ in tested), key=lambda test: test.upper)
    differs = any(headline is test for test in significant)
    low = headline.distance if differs else min(headline.distance, 0.0)
    return DriftResult(headline, Interval(low, headline.upper, 1 - alpha, CONFIDENCE), beyond, significant)


@dataclass(frozen=True, slots=True)
class Blocks:
    """The number of neighboring rows that may depend on each other: n rows then count as n/block."""

    reference: int = 1
    current: int = 1


@dataclass(frozen=True, slots=True)
class Inflations:
    """The estimated variance inflation of each side: n rows count as n/inflation."""

    reference: float = 1.0
    current: float = 1.0


def in_blocks(successes: int, n: int, block: float, *, up: bool) -> tuple[int, int]:
    """Return (successes, n) in blocks: n // block, at least 1, with the same proportion rounded up or down."""
    blocks = max(int(n // block), 1)
    return (-(-successes * blocks // n) if up else successes * blocks // n), blocks
