"""What share of the rows that count does a predictor answer rightly?"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Verdict
from pytest_modelserve.parity.asking import Question
from pytest_modelserve.parity.correctness import Answers, answers_of
from pytest_modelserve.parity.judging import ROWS_LISTED, ErrorRates, Words, evidence_of
from pytest_modelserve.parity.slice_verdicts import verdicts_of
from pytest_modelserve.parity.slices import lowest_slice
from pytest_modelserve.parity.unanswered import evidence_of_unanswered
from pytest_modelserve.serving import Predictor
from pytest_modelserve.stats import binomial_bounds, share_rows_needed

_ASSUMED = {
    "recall": "independent rows; given the number of rows of the positive class",
    "precision": "independent rows; given the number of rows that are answered as positive",
}


def measure_share(predictor: Predictor, question: Question) -> Evidence:
    """Evidence that a share of right answers is at least `min_value`; see `measure_accuracy`."""
    min_value, rates, title = question.limit.value, question.rates, question.spec.title
    if not 0 < min_value < 1:
        raise UsageError(f"min_value is a share between 0 and 1 (0.9, say), not {min_value}")
    started = time.perf_counter()
    answers = answers_of(predictor, question)
    if answers.broken:
        return evidence_of_unanswered(
            title, predictor.subject, broken=answers.broken, told=answers.findings[0], n=question.n, started=started
        )
    if not answers.rows.size:
        raise InputError(
            f"{predictor.subject} answers the positive class in no row: precision is the share of those answers that "
            "are right, and has no value"
        )

    def judge(rows: NDArray[np.bool_], limit: float, rates: ErrorRates) -> Quantity:
        part = _counted(answers, rows)
        budget = Budget("at least", limit)
        bounds = binomial_bounds(part.right, part.rows.size, **rates.levels(budget))
        return Quantity(title, bounds.estimate, "share", Interval.of(bounds), budget)

    def needed(limit: float) -> int | None:
        return share_rows_needed(
            answers.right / answers.rows.size, limit, confidence=rates.confidence, alpha=rates.alpha
        )

    slices = question.slices.counting(answers.counted(question.n))
    verdicts = verdicts_of(slices, judge, n=question.n, limit=min_value, rates=rates, needed=needed)
    worst = lowest_slice(slices.parts, lambda rows: float(_counted(answers, rows).correct.mean()))
    advice = "retrain, look at the wrong rows, or give more labelled rows"
    return evidence_of(
        title,
        predictor.subject,
        verdicts,
        n=answers.rows.size,
        method=Method(
            "exact binomial bounds",
            "Clopper & Pearson 1934, Biometrika 26",
            _ASSUMED.get(question.spec.name, "independent rows"),
        ),
        rates=rates,
        words={
            Verdict.PASS: Words(f"at least as {'accurate' if title == 'accuracy' else f'high a {title}'} as required"),
            Verdict.FAIL: Words(
                f"{'less accurate' if title == 'accuracy' else f'a lower {title}'} than required", advice
            ),
            Verdict.INCONCLUSIVE: Words(f"{title} cannot be told from its budget with these rows", advice),
        },
        findings=(
            *answers.findings,
            *([f"worst slice {worst.label}: {100 * worst.value:.1f} % of {worst.n} rows"] if worst else ()),
        ),
        details={
            "rows_needed": needed(min_value),
            "wrong_rows": answers.rows[~answers.correct][:ROWS_LISTED].tolist(),
        },
        started=started,
    )


def _counted(answers: Answers, rows: NDArray[np.bool_]) -> Answers:
    part = answers.over(rows)
    if not part.rows.size:
        raise UsageError("none of its rows counts for this metric")
    return part
