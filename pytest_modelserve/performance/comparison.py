"""What paired timings say of a slowdown, and how two such statements become one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pytest_modelserve.evidence import Budget, Interval, Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """A slowdown (1: as fast) with its interval, and the log-ratios that it rests on: of pairs, or of sessions.

    `in_time` is False where too few were taken before time was up; the interval then bounds nothing.
    """

    slowdown: float
    interval: Interval
    log_ratios: tuple[float, ...]
    in_time: bool = True

    def verdict(self, budget: Budget) -> Verdict:
        """What the interval says of the budget."""
        return budget.judge(self.slowdown, self.interval)

    def widened(self, factor: float) -> Comparison:
        """With room for an error of `factor` in either direction."""
        interval = replace(self.interval, low=self.interval.low / factor, high=self.interval.high * factor)
        return replace(self, interval=interval)

    def together_with(self, other: Comparison) -> Comparison:
        """Both at once: the interval that holds either's, and the geometric mean of the slowdowns.

        It lies above a budget exactly where both do, and inside it exactly where both do.
        """
        low, high = min(self.interval.low, other.interval.low), max(self.interval.high, other.interval.high)
        return Comparison(
            math.sqrt(self.slowdown * other.slowdown),
            replace(self.interval, low=low, high=high),
            self.log_ratios + other.log_ratios,
            self.in_time and other.in_time,
        )
