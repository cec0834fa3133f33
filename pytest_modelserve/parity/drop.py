"""How many right answers does a candidate lose against its reference on the same rows?"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Verdict
from pytest_modelserve.parity.asking import Question
from pytest_modelserve.parity.correctness import Answers, answers_of
from pytest_modelserve.parity.judging import ROWS_LISTED, ErrorRates, Words, evidence_of
from pytest_modelserve.parity.slice_verdicts import verdicts_of
from pytest_modelserve.parity.slices import SliceRules, highest_slice
from pytest_modelserve.serving import Predictor
from pytest_modelserve.stats import noninferiority_power, paired_difference_bounds, rows_needed


@dataclass(frozen=True, slots=True)
class _Change:
    """The answers of the reference (`before`) and of the candidate (`after`) to the same rows."""

    before: Answers
    after: Answers

    @property
    def n(self) -> int:
        return len(self.before.correct)

    @property
    def lost(self) -> NDArray[np.intp]:
        """The rows that only the reference answers rightly."""
        return self.before.rows[self.before.correct & ~self.after.correct]

    @property
    def gained(self) -> NDArray[np.intp]:
        """The rows that only the candidate answers rightly."""
        return self.before.rows[~self.before.correct & self.after.correct]

    def drop(self, max_drop: float, rates: ErrorRates) -> Quantity:
        """The drop, judged."""
        budget = Budget("at most", max_drop)
        bounds = paired_difference_bounds(self.lost.size, self.gained.size, self.n, **rates.levels(budget))
        return Quantity("drop", bounds.estimate, "share difference", Interval.of(bounds), budget)

    def over(self, rows: NDArray[np.bool_]) -> _Change:
        """The change over the rows that a mask over all rows picks out; UsageError where none of them counts."""
        part = _Change(self.before.over(rows), self.after.over(rows))
        if not part.n:
            raise UsageError("none of its rows is of the positive class")
        return part

    def accuracies(self) -> tuple[Quantity, Quantity]:
        """Both accuracies, for the reader."""
        before, after = (answers.right / self.n for answers in (self.before, self.after))
        return Quantity("reference", before, "share"), Quantity("candidate", after, "share")

    def counts(self, slices: SliceRules) -> str:
        """How many rows changed which way, and where accuracy dropped most."""
        lost, gained = self.lost.size, self.gained.size
        told = f"{lost + gained} rows changed correctness: {lost} lost, {gained} gained"
        worst = highest_slice(slices.parts, self._drop_over)
        return (
            f"{told}; worst slice {worst.label}: {100 * worst.value:.1f} points" if worst and worst.value > 0 else told
        )

    def _drop_over(self, rows: NDArray[np.bool_]) -> float:
        part = self.over(rows)
        return (part.before.right - part.after.right) / part.n


@dataclass(frozen=True, slots=True)
class _Plan:
    """What these rows, and how many rows, would do for a model that is truly equal to its reference."""

    n: int
    equal_model_inconclusive: float
    rows_needed: int

    @classmethod
    def of(cls, change: _Change, max_drop: float, rates: ErrorRates) -> _Plan:
        """The unknown share of changed rows is taken as (changed + 1/2)/(n + 1): none seen does not mean none ever."""
        discordance = (change.lost.size + change.gained.size + 0.5) / (change.n + 1)
        confidence = rates.confidence
        shares = noninferiority_power(
            change.n,
            discordance=discordance,
            difference=0.0,
            margin=max_drop,
            confidence=confidence,
            alpha=rates.alpha,
        )
        needed = rows_needed(discordance=discordance, margin=max_drop, confidence=confidence)
        return cls(change.n, shares.inconclusive, needed)

    def __str__(self) -> str:
        return (
            f"a model equal to its reference would be INCONCLUSIVE with these {self.n} rows in "
            f"{self.equal_model_inconclusive:.0%} of samples; with about {self.rows_needed:,} rows it passes 9 times "
            "in 10"
        )


def measure_drop(candidate: Predictor, reference: Predictor, question: Question) -> Evidence:
    """Evidence that the share of right answers drops by at most `max_drop`; see `measure_accuracy_parity`."""
    max_drop, rates = question.limit.value, question.rates
    if not 0 < max_drop < 1:
        raise UsageError(f"max_drop is a share between 0 and 1 (0.01 is one percentage point), not {max_drop}")
    started = time.perf_counter()
    change = _Change(answers_of(reference, question, may_be_nan=False), answers_of(candidate, question))
    plan = _Plan.of(change, max_drop, rates)
    slices = question.slices.counting(change.before.counted(question.n))
    verdicts = verdicts_of(
        slices,
        lambda rows, limit, rates: change.over(rows).drop(limit, rates),
        n=question.n,
        limit=max_drop,
        rates=rates,
        needed=lambda limit: _Plan.of(change, limit, rates).rows_needed,
    )
    undecided = verdicts.headline.verdict is Verdict.INCONCLUSIVE
    return evidence_of(
        f"{question.spec.title} parity",
        candidate.subject,
        verdicts,
        reference=reference.subject,
        context=change.accuracies(),
        n=change.n,
        method=_TANGO,
        rates=rates,
        words=_words(candidate, plan, question.spec.title),
        findings=(*change.after.findings, change.counts(slices), *((str(plan),) if undecided else ())),
        details={
            "equal_model_inconclusive": plan.equal_model_inconclusive,
            "rows_needed": plan.rows_needed,
            "lost_rows": change.lost[:ROWS_LISTED].tolist(),
            "gained_rows": change.gained[:ROWS_LISTED].tolist(),
        },
        started=started,
    )


_TANGO = Method(
    "Tango paired score",
    "Tango 1998, Statistics in Medicine 17:891-908; exact unconditional limits where his err too often, Buehler 1957, "
    "JASA 52:482-493, and Berger & Boos 1994, JASA 89:1012-1016",
    "independent rows; a model exactly on its budget fails, and passes, at most 1.1 times as often as the levels say",
)


def _words(candidate: Predictor, plan: _Plan, title: str) -> dict[Verdict, Words]:
    return {
        Verdict.PASS: Words(f"{title} stays within its budget"),
        Verdict.FAIL: Words(
            f"{candidate.subject.variant or 'the candidate'} loses more {title} than its budget",
            "look at the lost rows, keep the layers at fault in full precision, or retrain",
        ),
        Verdict.INCONCLUSIVE: Words(
            f"the loss of {title} cannot be told from its budget with these rows",
            f"give about {plan.rows_needed:,} labelled rows, or a larger max_drop",
        ),
    }
