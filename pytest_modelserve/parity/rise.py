"""How much larger is the error of a candidate than its reference's on the same rows?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.evidence import Budget, Evidence, Interval, Quantity, Verdict
from pytest_modelserve.parity.judging import ROWS_LISTED, ErrorRates, Words, evidence_of
from pytest_modelserve.parity.losses import in_units, losses_of
from pytest_modelserve.parity.mean_loss import MeanLoss
from pytest_modelserve.parity.metric import ErrorMetric
from pytest_modelserve.parity.predicting import Inputs, rows_of
from pytest_modelserve.parity.slices import Slices, check_slices, highest_slice
from pytest_modelserve.parity.unanswered import evidence_of_unanswered
from pytest_modelserve.serving import Predictor
from pytest_modelserve.stats import root_mean_rise_values


@dataclass(frozen=True, slots=True)
class _Losses:
    """The losses of the reference (`before`) and of the candidate (`after`) on the same rows, (n,)."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    metric: ErrorMetric

    def rises(self) -> NDArray[np.float64]:
        """One value a row, (n,), whose mean is the rise of the error."""
        return root_mean_rise_values(self.after, self.before) if self.metric == "rmse" else self.after - self.before

    def errors(self) -> tuple[Quantity, Quantity]:
        """Both errors, for the reader."""
        before, after = (in_units(float(losses.mean()), self.metric) for losses in (self.before, self.after))
        return Quantity("reference", before, ""), Quantity("candidate", after, "")

    def rise_over(self, rows: NDArray[np.bool_]) -> float:
        """The rise over the rows that a mask (n,) picks out."""
        after, before = (float(losses[rows].mean()) for losses in (self.after, self.before))
        return in_units(after, self.metric) - in_units(before, self.metric)

    def counts(self, groups: Slices) -> str:
        """In how many rows the error moved which way, and where it rose most."""
        rose, fell = int((self.after > self.before).sum()), int((self.after < self.before).sum())
        told = f"the error rose in {rose} rows and fell in {fell}"
        worst = highest_slice(groups, self.rise_over)
        return f"{told}; worst slice {worst.label}: +{worst.value:.3g}" if worst and worst.value > 0 else told

    def worst_rows(self) -> list[int]:
        """The rows in which the error rose most, worst first."""
        worst = np.argsort(self.before - self.after, kind="stable")[:ROWS_LISTED]
        return [int(row) for row in worst if self.after[row] > self.before[row]]


def measure_rise(
    candidate: Predictor,
    reference: Predictor,
    inputs: Inputs,
    targets: NDArray[Any],
    *,
    metric: ErrorMetric,
    max_rise: float,
    rates: ErrorRates,
    output: str | None,
    slices: Slices | None,
    block: int | None,
) -> Evidence:
    """Evidence that the error rises by at most `max_rise`; see `measure_accuracy_parity`."""
    started = time.perf_counter()
    n = rows_of(inputs)
    groups = check_slices(slices, n)
    gate = f"{metric.upper()} parity"
    before = losses_of(reference, inputs, targets, metric=metric, output=output, may_be_broken=False)
    after = losses_of(candidate, inputs, targets, metric=metric, output=output)
    if after.broken:
        return evidence_of_unanswered(gate, candidate.subject, after, started=started, reference=reference.subject)
    losses = _Losses(before.values, after.values, metric)
    sample = MeanLoss.of(losses.rises(), limit=max_rise, block=block, rates=rates)
    bounds = sample.bounds()
    rise = Quantity("rise", bounds.estimate, "", Interval.of(bounds), Budget("at most", max_rise))
    return evidence_of(
        gate,
        candidate.subject,
        rise,
        reference=reference.subject,
        context=losses.errors(),
        n=n,
        method=sample.method(),
        rates=rates,
        words=_words(candidate, sample),
        findings=(*sample.findings(), losses.counts(groups), *_equal_model(sample, rise)),
        details={
            "equal_model_inconclusive": sample.power(0.0).inconclusive,
            "rows_needed": sample.rows_needed(),
            "blocks": sample.blocks,
            "worst_rows": losses.worst_rows(),
        },
        started=started,
    )


def _equal_model(sample: MeanLoss, rise: Quantity) -> tuple[str, ...]:
    """What INCONCLUSIVE would have been for a model that is truly equal, where such a model is inside the budget."""
    if rise.verdict is not Verdict.INCONCLUSIVE or sample.limit <= 0 or not sample.is_bounded:
        return ()
    n, chance, needed = sample.values.size, sample.power(0.0).inconclusive, sample.rows_needed(0.0)
    told = f"a model as good as its reference would be INCONCLUSIVE with these {n} rows in {chance:.0%} of samples"
    more = f"; with about {needed:,} rows it passes 9 times in 10" if needed is not None and needed > n else ""
    return (told + more,)


def _words(candidate: Predictor, sample: MeanLoss) -> dict[Verdict, Words]:
    return {
        Verdict.PASS: Words("the error stays within its budget"),
        Verdict.FAIL: Words(
            f"the error of {candidate.subject.variant or 'the candidate'} rises more than its budget",
            "look at the rows where it rose most, keep the layers at fault in full precision, or retrain",
        ),
        Verdict.INCONCLUSIVE: sample.undecided(
            "the rise of the error cannot be told from its budget with these rows", "max_rise"
        ),
    }
