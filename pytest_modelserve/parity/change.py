"""How much lower is a score of a candidate than its reference's on the same rows, or how much larger its error?"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Evidence, Quantity, Verdict
from pytest_modelserve.parity.asking import Question
from pytest_modelserve.parity.estimating import Estimate, estimate_of
from pytest_modelserve.parity.judging import ROWS_LISTED, ErrorRates, Words, evidence_of
from pytest_modelserve.parity.mean_loss import MeanLoss, quantity_of, within
from pytest_modelserve.parity.slice_verdicts import verdicts_of
from pytest_modelserve.parity.slices import highest_slice
from pytest_modelserve.parity.unanswered import evidence_of_unanswered
from pytest_modelserve.serving import Predictor
from pytest_modelserve.stats import Linearised, root_of


@dataclass(frozen=True, slots=True)
class _Pair:
    """The estimates of the reference (`before`) and of the candidate (`after`) over the same rows."""

    before: Estimate
    after: Estimate
    question: Question

    def worsening(self, rows: NDArray[np.bool_]) -> Linearised:
        """By how much the candidate is worse over the rows of a mask (n,): a score's drop, an error's rise."""
        before, after = self.metric(self.before, rows), self.metric(self.after, rows)
        return before.minus(after) if self.question.limit.is_score else after.minus(before)

    def metric(self, estimate: Estimate, rows: NDArray[np.bool_]) -> Linearised:
        """The metric over the rows of a mask (n,), in the units of the target."""
        found = estimate.over(rows)
        return root_of(found) if self.question.spec.name == "rmse" else found

    def sample(self, rows: NDArray[np.bool_], limit: float, rates: ErrorRates) -> MeanLoss:
        """The worsening held against a limit."""
        question = self.question
        units = question.units if rows.all() else question.units.over(rows)
        return MeanLoss.of(self.worsening(rows), spec=question.spec, limit=limit, units=units, rates=rates)

    def quantity(self, sample: MeanLoss) -> Quantity:
        """The worsening, judged."""
        spec, bounds = self.question.spec, sample.bounds()
        if self.question.limit.is_score and spec.name != "r2":
            bounds = within(bounds, low=-1.0, high=1.0)
        name = "drop" if self.question.limit.is_score else "rise"
        return quantity_of(name, spec.difference_unit, bounds, limit=sample.limit, turned=False)

    def values(self) -> tuple[Quantity, Quantity]:
        """Both metrics, for the reader."""
        rows, unit = np.ones(self.question.n, dtype=np.bool_), self.question.spec.unit
        before, after = (self.metric(estimate, rows).value for estimate in (self.before, self.after))
        return Quantity("reference", before, unit), Quantity("candidate", after, unit)

    def counts(self) -> tuple[str, ...]:
        """In how many rows an error moved which way, and the slice that became worst."""
        told = []
        if self.before.losses is not None and self.after.losses is not None:
            rose, fell = (
                int((worse > better).sum())
                for worse, better in (
                    (self.after.losses, self.before.losses),
                    (self.before.losses, self.after.losses),
                )
            )
            told.append(f"the error rose in {rose} rows and fell in {fell}")
        worst = highest_slice(self.question.slices.parts, lambda rows: self.worsening(rows).value)
        if worst is not None and worst.value > 0:
            shares = self.question.spec.unit == "share"
            sign = "+" if not self.question.limit.is_score else ""
            figure = f"{100 * worst.value:.1f} points" if shares else f"{sign}{worst.value:.3g}"
            told.append(f"worst slice {worst.label}: {figure}")
        return ("; ".join(told),) if told else ()

    def worst_rows(self) -> dict[str, list[int]]:
        """The rows in which the error rose most, worst first."""
        if self.before.losses is None or self.after.losses is None:
            return {}
        worst = np.argsort(self.before.losses - self.after.losses, kind="stable")[:ROWS_LISTED]
        return {"worst_rows": [int(row) for row in worst if self.after.losses[row] > self.before.losses[row]]}


def measure_change(candidate: Predictor, reference: Predictor, question: Question) -> Evidence:
    """Evidence that a score drops, or an error rises, by at most its budget; see `measure_accuracy_parity`."""
    spec, limit, rates = question.spec, question.limit, question.rates
    if spec.unit == "share" and not -1 < limit.value < 1:
        raise UsageError(f"{limit.name} is a difference of two shares, above -1 and below 1, not {limit.value}")
    started = time.perf_counter()
    gate, inputs, labels, reading = f"{spec.title} parity", question.inputs, question.labels, question.reading
    before = estimate_of(spec, reference, inputs, labels, reading, may_be_broken=False)
    after = estimate_of(spec, candidate, inputs, labels, reading)
    if after.broken:
        return evidence_of_unanswered(
            gate,
            candidate.subject,
            broken=after.broken,
            told=after.told,
            n=question.n,
            started=started,
            reference=reference.subject,
        )
    pair = _Pair(before, after, question)
    whole = pair.sample(np.ones(question.n, dtype=np.bool_), limit.value, rates)
    verdicts = verdicts_of(
        question.slices,
        lambda rows, value, rates: pair.quantity(pair.sample(rows, value, rates)),
        n=question.n,
        limit=limit.value,
        rates=rates,
        needed=lambda value: whole.at(value, rates).rows_needed(),
    )
    return evidence_of(
        gate,
        candidate.subject,
        verdicts,
        reference=reference.subject,
        context=pair.values(),
        n=question.n,
        method=whole.method(),
        rates=rates,
        words=_words(candidate, whole, question),
        findings=(
            *after.findings,
            *whole.findings(),
            *pair.counts(),
            *_equal_model(whole, verdicts.headline),
        ),
        details={
            "equal_model_inconclusive": whole.power(0.0).inconclusive,
            "rows_needed": whole.rows_needed(),
            "blocks": whole.blocks,
            **pair.worst_rows(),
        },
        started=started,
    )


def _equal_model(sample: MeanLoss, headline: Quantity) -> tuple[str, ...]:
    """What INCONCLUSIVE would have been for a model that is truly equal, where such a model is inside the budget."""
    if headline.verdict is not Verdict.INCONCLUSIVE or sample.limit <= 0 or not sample.is_bounded:
        return ()
    n, chance, needed = sample.units.n, sample.power(0.0).inconclusive, sample.rows_needed(0.0)
    told = f"a model as good as its reference would be INCONCLUSIVE with these {n} rows in {chance:.0%} of samples"
    more = f"; with about {needed:,} rows it passes 9 times in 10" if needed is not None and needed > n else ""
    return (told + more,)


def _words(candidate: Predictor, sample: MeanLoss, question: Question) -> dict[Verdict, Words]:
    title, who = question.spec.title, candidate.subject.variant or "the candidate"
    if question.limit.is_score:
        return {
            Verdict.PASS: Words(f"{title} stays within its budget"),
            Verdict.FAIL: Words(
                f"{who} loses more {title} than its budget",
                "look at the rows that are lost, keep the layers at fault in full precision, or retrain",
            ),
            Verdict.INCONCLUSIVE: sample.undecided(
                f"the loss of {title} cannot be told from its budget with these rows", question.limit.name
            ),
        }
    return {
        Verdict.PASS: Words("the error stays within its budget"),
        Verdict.FAIL: Words(
            f"the error of {who} rises more than its budget",
            "look at the rows where it rose most, keep the layers at fault in full precision, or retrain",
        ),
        Verdict.INCONCLUSIVE: sample.undecided(
            "the rise of the error cannot be told from its budget with these rows", question.limit.name
        ),
    }
