"""A metric of one predictor, as an estimate over any of its rows that knows how each row pulls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.numerics import (
    ClassRows,
    Decoded,
    Decoding,
    Scores,
    class_labels,
    class_pairs,
    class_rows,
    decode,
    positive_label,
    positive_rows,
    positive_scores,
    row_brier_scores,
    row_log_losses,
    row_losses,
    row_squares,
    top_k_rows,
)
from pytest_modelserve.parity.metric import Spec
from pytest_modelserve.parity.predicting import Inputs, broken_reference, chosen_output, told_broken
from pytest_modelserve.serving import Predictor
from pytest_modelserve.stats import Linearised, auc_linearised, average_of, mean_of, ratio_of

Rows = NDArray[np.bool_]
Weights = NDArray[np.float64] | None


@dataclass(frozen=True, slots=True)
class Reading:
    """How answers are read: which output, decoded how, which kind of scores, which positive class, which weights."""

    output: str | None = None
    decode: Decoding = "argmax"
    scores: Scores | None = None
    pos_label: int | str | None = None
    weights: Weights = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """The metric `over` the rows that a mask (n,) picks out; UsageError where it has no value there.

    `losses` (n,) are the losses of the rows, for metrics that are means of them. `broken` rows are not answered with
    numbers, and `told` is the sentence on those; `findings` say what was counted as wrong.
    """

    over: Callable[[Rows], Linearised]
    losses: NDArray[np.float64] | None = None
    broken: int = 0
    told: str = ""
    findings: tuple[str, ...] = ()


def estimate_of(
    spec: Spec,
    predictor: Predictor,
    inputs: Inputs,
    labels: NDArray[Any],
    reading: Reading,
    *,
    may_be_broken: bool = True,
) -> Estimate:
    """The estimate of `spec` for the answers of `predictor`.

    NaN counts as wrong where only right answers are counted, and otherwise breaks its row. InputError for labels,
    targets or scores that do not fit and, unless `may_be_broken`, for rows with NaN.
    """
    name, scores = chosen_output(predictor, inputs, reading.output)
    if spec.reads == "answers" or spec.name == "top_k_accuracy":
        over, bad = _counted(spec, scores, labels, reading)
        losses = None
    elif spec.name == "roc_auc":
        over, bad = _area(scores, labels, reading)
        losses = None
    elif spec.name == "r2":
        over, bad = _explained(scores, labels, reading.weights)
        losses = None
    else:
        losses = _losses(spec, scores, labels, reading)
        over, bad = _mean(losses, reading.weights), np.flatnonzero(~np.isfinite(losses))
    if not bad.size:
        return Estimate(over, losses)
    what = "NaN" if spec.is_counted or spec.name == "roc_auc" else "NaN or infinities"
    told = told_broken(predictor, name, scores, bad, inputs, what=what)
    if not may_be_broken:
        raise broken_reference(told, does="that answers NaN" if what == "NaN" else "without an answer")
    if spec.name in ("accuracy", "top_k_accuracy", "balanced_accuracy", "recall"):
        return Estimate(over, losses, findings=(f"{told}: counted as wrong",))
    return Estimate(over, losses, int(bad.size), told)


def _counted(
    spec: Spec, scores: NDArray[Any], labels: NDArray[Any], reading: Reading
) -> tuple[Callable[[Rows], Linearised], NDArray[np.intp]]:
    weights = reading.weights
    if spec.name == "top_k_accuracy":
        hits, invalid = top_k_rows(scores, labels, int(spec.parameter))
        return _share(hits, weights), np.flatnonzero(invalid)
    decoded = decode(scores, reading.decode)
    bad = np.flatnonzero(decoded.invalid)
    if spec.name == "accuracy":
        truth, answers = class_pairs(decoded, labels)
        return _share((answers == truth) & ~decoded.invalid, weights), bad
    ratio = _RATIOS[spec.name]
    if not spec.macro:
        chosen = positive_rows(decoded, labels, reading.pos_label)
        return (lambda rows: ratio(chosen, rows, weights, spec.parameter)), bad
    classes = class_rows(decoded, labels)
    # A wrong answer is a miss of one class and, except for recall, a false alarm of another.
    touched = 1 if spec.name == "balanced_accuracy" else 2

    def over(rows: Rows) -> Linearised:
        present = (one for one in classes if _weighed(one.actual[rows], weights, rows) > 0)
        return average_of((ratio(one, rows, weights, spec.parameter) for one in present), touched=touched)

    return over, bad


def _share(hits: NDArray[np.bool_], weights: Weights) -> Callable[[Rows], Linearised]:
    return lambda rows: mean_of(hits[rows].astype(np.float64), _of(weights, rows), largest=1.0)


def _recall(one: ClassRows, rows: Rows, weights: Weights, _beta: float) -> Linearised:
    return ratio_of(_float(one.hits[rows]), _float(one.actual[rows]), _of(weights, rows), spread=1.0)


def _precision(one: ClassRows, rows: Rows, weights: Weights, _beta: float) -> Linearised:
    """Without a row that is answered so, 0, as uncertain as if the class were answered as often as it occurs."""
    if _weighed(one.predicted[rows], weights, rows) > 0:
        return ratio_of(_float(one.hits[rows]), _float(one.predicted[rows]), _of(weights, rows), spread=1.0)
    never = ratio_of(np.zeros(int(rows.sum())), _float(one.actual[rows]), _of(weights, rows), spread=1.0)
    return Linearised(0.0, never.influence, never.largest)


def _f(one: ClassRows, rows: Rows, weights: Weights, beta: float) -> Linearised:
    """(1 + β²)·hits over β²·actual + predicted: van Rijsbergen, Information Retrieval, 2nd ed. 1979, chapter 7."""
    square = beta**2
    found = ratio_of(
        (1 + square) * _float(one.hits[rows]),
        square * _float(one.actual[rows]) + _float(one.predicted[rows]),
        _of(weights, rows),
        spread=1.0,
    )
    # Between a hit, (1 + β²)(1 − F), and the worse of a miss, −β²F, and a false alarm, −F.
    spread = (1 + square) * (1 - found.value) + found.value * max(1.0, square)
    return Linearised(found.value, found.influence, found.largest * spread)


_RATIOS = {"balanced_accuracy": _recall, "recall": _recall, "precision": _precision, "f": _f}


def _area(
    scores: NDArray[Any], labels: NDArray[Any], reading: Reading
) -> tuple[Callable[[Rows], Linearised], NDArray[np.intp]]:
    values = positive_scores(scores)
    truth = class_labels(np.asarray(labels), what="labels")
    class_pairs(Decoded(truth, np.zeros(len(truth), dtype=np.bool_)), truth)
    if len(truth) != len(values):
        raise InputError(f"there are {len(truth)} labels for {len(values)} rows of outputs")
    if (classes := len(np.unique(truth))) > 2:
        raise InputError(
            f"labels are of {classes} classes: an area under the ROC curve is of two; give a callable as metric= for "
            "more"
        )
    positive = truth == positive_label(truth, reading.pos_label)
    bad = np.flatnonzero(np.isnan(values))
    return (lambda rows: auc_linearised(values[rows], positive[rows], _of(reading.weights, rows))), bad


def _explained(
    predictions: NDArray[Any], targets: NDArray[Any], weights: Weights
) -> tuple[Callable[[Rows], Linearised], NDArray[np.intp]]:
    errors, _ = row_squares(predictions, targets, weights)

    def over(rows: Rows) -> Linearised:
        part, spread = row_squares(predictions[rows], np.asarray(targets)[rows], _of(weights, rows))
        ratio = ratio_of(part, spread, _of(weights, rows))
        return Linearised(1 - ratio.value, -ratio.influence)

    return over, np.flatnonzero(~np.isfinite(errors))


def _losses(spec: Spec, scores: NDArray[Any], labels: NDArray[Any], reading: Reading) -> NDArray[np.float64]:
    if spec.reads == "targets":
        return row_losses(scores, labels, "absolute" if spec.name == "mae" else "squared")
    assert reading.scores is not None
    of_row = row_log_losses if spec.name == "log_loss" else row_brier_scores
    return of_row(scores, labels, reading.scores)


def _mean(losses: NDArray[np.float64], weights: Weights) -> Callable[[Rows], Linearised]:
    return lambda rows: mean_of(losses[rows], _of(weights, rows))


def _of(weights: Weights, rows: Rows) -> Weights:
    return None if weights is None else weights[rows]


def _weighed(picked: NDArray[np.bool_], weights: Weights, rows: Rows) -> float:
    return float(picked.sum() if weights is None else weights[rows] @ picked)


def _float(rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    return rows.astype(np.float64)
