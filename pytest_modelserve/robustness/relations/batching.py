"""A row's answer is its own: it depends neither on the rows beside it nor on their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pytest_modelserve.robustness.asking import Answering
from pytest_modelserve.robustness.coordinates import Feed, joined, row_count, taken
from pytest_modelserve.robustness.relations.tolerance import Tolerance, apart, chosen
from pytest_modelserve.robustness.relations.variants import farthest
from pytest_modelserve.robustness.violations import Violations


@dataclass(frozen=True, slots=True)
class BatchInvariance:
    """See `batch_invariance`."""

    tolerance: Tolerance
    output: str | None
    name: str = "batch invariance"
    unit: Literal["row", "batch"] = "batch"

    @property
    def definition(self) -> str:
        """What holds."""
        return f"a row has the same answer in a batch as alone, within {self.tolerance}"

    def check(self, predictor: Answering, candidates: Feed, base: Feed) -> Violations:
        """Which rows of one batch are answered otherwise alone."""
        together = chosen(predictor.predict(candidates), self.output)
        rows = range(row_count(candidates))
        alone = chosen(joined([predictor.predict(taken(candidates, slice(i, i + 1))) for i in rows]), self.output)
        found = apart(together, alone, self.tolerance, predictor.magnitudes(base))
        beside = f"in a batch of {len(rows)}"
        return Violations.beyond(found.excess, lambda row: found.sentence(row, beside, "alone"))


@dataclass(frozen=True, slots=True)
class RowPermutation:
    """See `row_permutation`."""

    tolerance: Tolerance
    output: str | None
    name: str = "row permutation"
    unit: Literal["row", "batch"] = "batch"

    @property
    def definition(self) -> str:
        """What holds."""
        return f"rows in another order have the same answers in that order, within {self.tolerance}"

    def check(self, predictor: Answering, candidates: Feed, base: Feed) -> Violations:
        """Which rows of one batch are answered otherwise when the batch is reversed, or turned by one."""
        count = row_count(candidates)
        expected = chosen(predictor.predict(candidates), self.output)
        orders = (np.arange(count)[::-1], np.roll(np.arange(count), 1))
        several = []
        for order in orders:
            answers = chosen(predictor.predict(taken(candidates, order)), self.output)
            back = taken(answers, np.argsort(order))
            several.append(apart(back, expected, self.tolerance, predictor.magnitudes(base)))
        return farthest(several, ("reversed", "turned by one place"), "in this order")


def batch_invariance(
    *, output: str | None = None, rtol: float | None = None, atol: float | None = None
) -> BatchInvariance:
    """A row has the same answer in a batch as alone.

    Holds for every model without cross-row operations. Broken by normalisation over the batch (a module exported in
    training mode), by an attention mask that is made from the whole batch, and by dynamic quantisation, whose scale is
    that of the batch. Without `rtol` and `atol` the tolerance is the room for rounding: other batch sizes take other
    kernels. Of `output` alone, or of all.
    """
    return BatchInvariance(Tolerance.of(rtol, atol), output)


def row_permutation(
    *, output: str | None = None, rtol: float | None = None, atol: float | None = None
) -> RowPermutation:
    """Rows in another order have the same answers, in that order.

    Holds wherever rows are independent, and for normalisation over the batch too; broken by whatever takes a row's
    place for a feature: a mixed-up reshape, a state that is carried from row to row. Tolerance as in
    `batch_invariance`.
    """
    return RowPermutation(Tolerance.of(rtol, atol), output)
