"""How an interval is held against a budget: the one place where PASS, FAIL and INCONCLUSIVE are decided."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

from pytest_modelserve.errors import UsageError


class Verdict(StrEnum):
    """What the evidence says of a budget."""

    PASS = "PASS"
    INCONCLUSIVE = "INCONCLUSIVE"
    FAIL = "FAIL"

    @property
    def severity(self) -> int:
        """0 for PASS, 1 for INCONCLUSIVE, 2 for FAIL: the worst of several is the one with the highest."""
        return ("PASS", "INCONCLUSIVE", "FAIL").index(self.value)


class HasBounds(Protocol):
    """What a statistic returns: two one-sided bounds with their levels."""

    @property
    def low(self) -> float:
        """The lower bound."""

    @property
    def high(self) -> float:
        """The upper bound."""

    @property
    def low_level(self) -> float:
        """The one-sided level of `low`."""

    @property
    def high_level(self) -> float:
        """The one-sided level of `high`."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Two one-sided bounds, each with a level of its own.

    `low` lies below the true value with probability `low_level`, `high` above it with probability `high_level`.
    An end that the data cannot bound is infinite. Neither end may be NaN.
    """

    low: float
    high: float
    low_level: float
    high_level: float

    @classmethod
    def of(cls, bounds: HasBounds) -> Interval:
        """The interval between the bounds that a statistic found."""
        return cls(bounds.low, bounds.high, bounds.low_level, bounds.high_level)

    def __post_init__(self) -> None:
        if math.isnan(self.low) or math.isnan(self.high) or self.low > self.high:
            raise ValueError(f"not an interval: [{self.low}, {self.high}]")
        if not (0 < self.low_level < 1 and 0 < self.high_level < 1):
            raise ValueError(f"levels lie between 0 and 1, not {self.low_level} and {self.high_level}")


@dataclass(frozen=True, slots=True)
class Budget:
    """The values a quantity may take: at most, or at least, `limit`; the limit itself is inside."""

    kind: Literal["at most", "at least"]
    limit: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.limit):
            raise UsageError(f"a budget is a finite number, not {self.limit}")

    def allows(self, value: float) -> bool:
        """Whether `value` is inside; NaN never is."""
        return value <= self.limit if self.kind == "at most" else value >= self.limit

    def judge(self, value: float, interval: Interval | None = None) -> Verdict:
        """The verdict over `interval`, or over `value` alone where it is exact.

        PASS when every value of the interval is inside the budget, FAIL when none is, else INCONCLUSIVE.
        """
        if interval is None:
            return Verdict.PASS if self.allows(value) else Verdict.FAIL
        low, high = self.allows(interval.low), self.allows(interval.high)
        if low and high:
            return Verdict.PASS
        return Verdict.INCONCLUSIVE if low or high else Verdict.FAIL


def levels_for(budget: Budget, *, confidence: float, alpha: float) -> tuple[float, float]:
    """The levels (low end, high end) that say PASS at `confidence` and FAIL at error rate `alpha`.

    For an "at most" budget PASS rests on the high end and FAIL on the low one; for "at least" the other way round.
    """
    return (1 - alpha, confidence) if budget.kind == "at most" else (confidence, 1 - alpha)


def check_error_rates(*, confidence: float, alpha: float) -> None:
    """Raise UsageError unless both are probabilities that leave room for a verdict."""
    if not 0.5 < confidence < 1:
        raise UsageError(f"confidence is a probability above 0.5 and below 1 (0.95, say), not {confidence}")
    if not 0 < alpha < 0.5:
        raise UsageError(f"alpha is a probability above 0 and below 0.5 (0.001, say), not {alpha}")
