"""A mean of one value a row held against the most that it may be, with rows that may depend on each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.evidence import Budget, Method
from pytest_modelserve.parity.judging import ErrorRates, Words
from pytest_modelserve.stats import (
    Bounds,
    SerialDependence,
    VerdictShares,
    block_means,
    mean_bounds,
    mean_power,
    serial_dependence,
    values_needed,
)

_SOURCE = (
    "the outer of Student 1908 and Hall 1992, Journal of the Royal Statistical Society B 54:221-228; batch means: Law, "
    "Simulation Modeling and Analysis, chapter 9; differences of losses: Diebold & Mariano 1995, Journal of Business & "
    "Economic Statistics 13:253-263"
)
_LIBERAL = (
    "levels are asymptotic: where the losses are squares of heavy-tailed errors, a model exactly on its budget passes "
    "in up to 14 % with 20 rows or blocks and 8 % with 1,000, instead of 5 %"
)


@dataclass(frozen=True, slots=True)
class MeanLoss:
    """The mean of `values` (n,), to be at most `limit`; `block` as the user gave it.

    `dependence` is what the units of the interval, rows or blocks, show of depending on each other. It makes both ends
    infinite: an interval that is too short would pass and fail where it must not.
    """

    values: NDArray[np.float64]
    limit: float
    block: int | None
    rates: ErrorRates
    dependence: SerialDependence | None
    blocks: int

    @classmethod
    def of(cls, values: NDArray[np.float64], *, limit: float, block: int | None, rates: ErrorRates) -> MeanLoss:
        """The mean, with its units looked at; UsageError for a block that is not a count."""
        units = block_means(values, block=1 if block is None else block)
        return cls(values, limit, block, rates, serial_dependence(units.deviations), units.blocks)

    @property
    def is_bounded(self) -> bool:
        """Whether these rows give an interval with finite ends."""
        return self.dependence is None and self.blocks > 1

    @property
    def _step(self) -> int:
        return self.block or 1

    def bounds(self) -> Bounds:
        """The mean between its bounds, which are infinite where the units depend on each other."""
        levels = self.rates.levels(Budget("at most", self.limit))
        if self.dependence is None:
            return mean_bounds(self.values, block=self._step, **levels)
        return Bounds(float(self.values.mean()), -math.inf, math.inf, **levels)

    def power(self, truth: float) -> VerdictShares:
        """The chance of each verdict with these rows, were the true mean `truth`."""
        if not self.is_bounded:
            return VerdictShares(passes=0.0, inconclusive=1.0, fails=0.0)
        rates = self.rates
        return mean_power(
            self.values, truth=truth, limit=self.limit, block=self._step, confidence=rates.confidence, alpha=rates.alpha
        )

    def rows_needed(self, truth: float | None = None) -> int | None:
        """About how many rows would decide 9 times in 10, were the true mean `truth`, by default the one measured.

        None where no number would, and where these rows do not tell.
        """
        if not self.is_bounded:
            return None
        return values_needed(
            self.values,
            truth=float(self.values.mean()) if truth is None else truth,
            limit=self.limit,
            block=self._step,
            confidence=self.rates.confidence,
            alpha=self.rates.alpha,
        )

    def method(self) -> Method:
        """How the interval was found."""
        if self.block is None:
            assumed = f"independent rows (dependence shows reliably from about 200 rows on); {_LIBERAL}"
            return Method("Student t and Hall", _SOURCE, assumed)
        return Method(
            f"Student t and Hall over {self.blocks} blocks of {self.block} rows",
            _SOURCE,
            f"rows {self.block} or more apart are nearly independent; {_LIBERAL}",
        )

    def findings(self) -> tuple[str, ...]:
        """What keeps the interval from being finite, as sentences."""
        if self.dependence is not None:
            units = "rows" if self.block is None else f"blocks of {self.block} rows"
            return (
                f"neighbouring {units} depend on each other: sums of losses over {self.dependence.span} of them vary "
                f"{self.dependence.variance_ratio:.1f} times as much as those of independent ones, so no interval is "
                "given",
            )
        if self.blocks < 2:
            return (f"{self.values.size} rows make one block of {self._step}, and an interval needs at least two",)
        return ()

    def undecided(self, summary: str, budget: str) -> Words:
        """The words of INCONCLUSIVE: what would decide."""
        if self.dependence is not None and self.block is None:
            advice = (
                "give block=, the number of consecutive rows that depend on each other (52 for weekly rows with a "
                "yearly season); independent rows that only stand in some order can be shuffled instead"
            )
        elif self.dependence is not None:
            advice = f"give a larger block than {self.block}, and more rows if few blocks remain"
        elif self.blocks < 2:
            advice = f"give rows for several blocks, {10 * self._step:,} say"
        elif (needed := self.rows_needed()) is not None:
            advice = f"give about {needed:,} rows, or a larger {budget}"
        else:
            advice = f"give a {budget} other than the very value measured"
        return Words(summary, advice)
