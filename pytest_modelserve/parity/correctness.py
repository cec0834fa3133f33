"""Which rows a predictor answers rightly, and what has to be said about how it answered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.numerics import correct_rows, decode, positive_rows, top_k_rows
from pytest_modelserve.parity.asking import Question
from pytest_modelserve.parity.predicting import broken_reference, chosen_output, told_broken
from pytest_modelserve.serving import Predictor


@dataclass(frozen=True, slots=True)
class Answers:
    """Which of the rows that count are answered rightly, (counted,), and `rows`, their numbers among all.

    `findings` are sentences on rows whose scores hold NaN, which are wrong; where they cannot be counted so, they are
    `broken`.
    """

    correct: NDArray[np.bool_]
    rows: NDArray[np.intp]
    findings: tuple[str, ...] = ()
    broken: int = 0

    @property
    def right(self) -> int:
        """The number of right answers."""
        return int(self.correct.sum())

    def counted(self, n: int) -> NDArray[np.bool_]:
        """Which of all `n` rows count, (n,)."""
        mask = np.zeros(n, dtype=np.bool_)
        mask[self.rows] = True
        return mask

    def over(self, part: NDArray[np.bool_]) -> Answers:
        """The answers to the rows that a mask over all rows picks out."""
        kept = part[self.rows]
        return Answers(self.correct[kept], self.rows[kept], self.findings, self.broken)


def answers_of(predictor: Predictor, question: Question, *, may_be_nan: bool = True) -> Answers:
    """The answers of `predictor` held against the labels, over the rows that the metric counts.

    Accuracy and top-k accuracy count every row, recall those of the positive class, precision those that are answered
    as it. A row whose scores hold NaN is wrong, and broken for precision, which would not count it. InputError for
    labels that do not fit and, unless `may_be_nan`, for scores that hold NaN.
    """
    spec, reading, labels = question.spec, question.reading, question.labels
    name, scores = chosen_output(predictor, question.inputs, reading.output)
    if spec.name == "top_k_accuracy":
        correct, invalid = top_k_rows(scores, labels, int(spec.parameter))
        counted = np.ones(len(correct), dtype=np.bool_)
    else:
        decoded = decode(scores, reading.decode)
        correct, invalid = correct_rows(decoded, labels), decoded.invalid
        counted = np.ones(len(correct), dtype=np.bool_)
        if spec.name != "accuracy":
            positive = positive_rows(decoded, labels, reading.pos_label)
            counted = positive.actual if spec.name == "recall" else positive.predicted
    rows = np.flatnonzero(counted)
    if not invalid.any():
        return Answers(correct[rows], rows)
    bad = np.flatnonzero(invalid)
    told = told_broken(predictor, name, scores, bad, question.inputs)
    if not may_be_nan:
        raise broken_reference(told)
    if spec.name == "precision":
        return Answers(correct[rows], rows, (told,), len(bad))
    return Answers(correct[rows], rows, (f"{told}: counted as wrong",))
