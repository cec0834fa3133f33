"""How many right answers does a candidate lose against its reference on the same rows?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Verdict
from pytest_modelserve.numerics import Decoding
from pytest_modelserve.parity.correctness import Answers, answers_of
from pytest_modelserve.parity.judging import ROWS_LISTED, ErrorRates, Words, evidence_of
from pytest_modelserve.parity.predicting import Inputs, rows_of
from pytest_modelserve.parity.slices import Slices, check_slices, highest_slice
from pytest_modelserve.serving import Predictor
from pytest_modelserve.stats import VerdictShares, noninferiority_power, paired_difference_bounds, rows_needed


@dataclass(frozen=True, slots=True)
class _Change:
    """Which rows, (n,), the candidate answers otherwise than the reference as to being right."""

    before: Answers
    after: Answers

    @property
    def lost(self) -> NDArray[np.bool_]:
        return self.before.correct & ~self.after.correct

    @property
    def gained(self) -> NDArray[np.bool_]:
        return ~self.before.correct & self.after.correct

    @property
    def discordance(self) -> float:
        """The share of changed rows, taken as (changed + 1/2)/(n + 1): none seen does not mean none ever."""
        changed = int((self.lost | self.gained).sum())
        return (changed + 0.5) / (len(self.lost) + 1)


def measure_drop(
    candidate: Predictor,
    reference: Predictor,
    inputs: Inputs,
    labels: NDArray[Any],
    *,
    max_drop: float,
    rates: ErrorRates,
    output: str | None,
    decode: Decoding,
    slices: Slices | None,
) -> Evidence:
    """Evidence that the share of right answers drops by at most `max_drop`; see `measure_accuracy_parity`."""
    if not 0 < max_drop < 1:
        raise UsageError(f"max_drop is a share between 0 and 1 (0.01 is one percentage point), not {max_drop}")
    started = time.perf_counter()
    n = rows_of(inputs)
    groups = check_slices(slices, n)
    change = _Change(
        answers_of(reference, inputs, labels, output=output, decode_as=decode, may_be_nan=False),
        answers_of(candidate, inputs, labels, output=output, decode_as=decode),
    )
    lost, gained = np.flatnonzero(change.lost), np.flatnonzero(change.gained)
    budget = Budget("at most", max_drop)
    bounds = paired_difference_bounds(lost.size, gained.size, n, **rates.levels(budget))
    drop = Quantity("drop", bounds.estimate, "share difference", Interval.of(bounds), budget)
    needed = rows_needed(discordance=change.discordance, margin=max_drop, confidence=rates.confidence)
    equal = noninferiority_power(
        n,
        discordance=change.discordance,
        difference=0.0,
        margin=max_drop,
        confidence=rates.confidence,
        alpha=rates.alpha,
    )
    return evidence_of(
        "accuracy parity",
        candidate.subject,
        drop,
        reference=reference.subject,
        context=(
            Quantity("reference", change.before.right / n, "share"),
            Quantity("candidate", change.after.right / n, "share"),
        ),
        n=n,
        method=_TANGO,
        rates=rates,
        words=_drop_words(candidate, needed),
        findings=(
            *change.after.findings,
            _counts(change, groups),
            *([_equal_model(n, equal, needed)] if drop.verdict is Verdict.INCONCLUSIVE else ()),
        ),
        details={
            "equal_model_inconclusive": equal.inconclusive,
            "rows_needed": needed,
            "lost_rows": lost[:ROWS_LISTED].tolist(),
            "gained_rows": gained[:ROWS_LISTED].tolist(),
        },
        started=started,
    )


_TANGO = Method(
    "Tango paired score",
    "Tango 1998, Statistics in Medicine 17:891-908",
    "independent rows; levels are asymptotic: a model exactly on its budget, with about ten rows changed, "
    "fails up to 4 times as often as alpha says and passes with up to 7 % instead of 5 %",
)


def _drop_words(candidate: Predictor, needed: int) -> dict[Verdict, Words]:
    return {
        Verdict.PASS: Words("accuracy stays within its budget"),
        Verdict.FAIL: Words(
            f"{candidate.subject.variant or 'the candidate'} loses more accuracy than its budget",
            "look at the lost rows, keep the layers at fault in full precision, or retrain",
        ),
        Verdict.INCONCLUSIVE: Words(
            "the loss of accuracy cannot be told from its budget with these rows",
            f"give about {needed:,} labelled rows, or a larger max_drop",
        ),
    }


def _counts(change: _Change, groups: Slices) -> str:
    def drop(rows: NDArray[np.bool_]) -> float:
        return float(change.before.correct[rows].mean() - change.after.correct[rows].mean())

    lost, gained = int(change.lost.sum()), int(change.gained.sum())
    worst = highest_slice(groups, drop)
    told = f"{lost + gained} rows changed correctness: {lost} lost, {gained} gained"
    return f"{told}; worst slice {worst.label}: {100 * worst.value:.1f} points" if worst and worst.value > 0 else told


def _equal_model(n: int, equal: VerdictShares, needed: int) -> str:
    return (
        f"a model equal to its reference would be INCONCLUSIVE with these {n} rows in {equal.inconclusive:.0%} of "
        f"samples; with about {needed:,} rows it passes 9 times in 10"
    )
