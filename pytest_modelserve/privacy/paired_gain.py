"""Gain of an attacker from a model: the rows that he gets right with it and without it, in pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.evidence import Budget, Interval, Quantity, levels_for
from pytest_modelserve.parity.accuracy.estimates import ErrorRates, PairedProportions
from pytest_modelserve.stats import paired_difference_bounds

TANGO = "Tango 1998, Statistics in Medicine 17:891-908"


@dataclass(frozen=True, slots=True, eq=False)
class PairedGain:
    """Rows that an attacker gets right `having` the model's answers, and `without` them, (n,) each."""

    having: NDArray[np.bool_]
    without: NDArray[np.bool_]

    def quantity(self, budget: Budget, *, confidence: float, alpha: float) -> Quantity:
        """Return the gain with Tango's paired interval and its budget."""
        low, high = levels_for(budget, confidence=confidence, alpha=alpha)
        more, fewer = int((self.having & ~self.without).sum()), int((self.without & ~self.having).sum())
        bounds = paired_difference_bounds(more, fewer, len(self.having), low_level=low, high_level=high)
        return Quantity("gain", bounds.estimate, "proportion_difference", Interval.of(bounds), budget)

    def advice(self, rows: str, max_gain: float, *, confidence: float, alpha: float) -> str:
        """Return what would decide an INCONCLUSIVE verdict; `rows` is what the rows are called."""
        counted = np.ones(len(self.having), dtype=np.bool_)
        plan = PairedProportions(self.having, self.without, counted).plan(max_gain, ErrorRates(confidence, alpha))
        if plan.rows is None:
            return "give a max_gain that differs from the measured gain"
        return f"give about {plan.rows:,} {rows}, with which the verdict is reached 9 times in 10, or a larger max_gain"
