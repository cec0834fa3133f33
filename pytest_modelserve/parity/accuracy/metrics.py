"""Which metrics there are, what each reads, and which budget belongs to it: a score has a floor, an error a ceiling."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.metrics import (
    ClassRows,
    Decoded,
    Decoding,
    Scores,
    class_labels,
    class_pairs,
    class_rows,
    correct_rows,
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
from pytest_modelserve.serving.inputs import Inputs, describe_invalid_rows, invalid_reference, select_output
from pytest_modelserve.stats import Linearized, auc_of, average_of, mean_of, ratio_of

if TYPE_CHECKING:
    from pytest_modelserve.evidence import Unit
    from pytest_modelserve.parity.accuracy.evaluation import Question
    from pytest_modelserve.serving import Predictor

MetricName = Literal[
    "accuracy",
    "balanced_accuracy",
    "top_2_accuracy",
    "top_3_accuracy",
    "top_5_accuracy",
    "top_10_accuracy",
    "precision",
    "recall",
    "f1",
    "f0.5",
    "f2",
    "precision_macro",
    "recall_macro",
    "f1_macro",
    "roc_auc",
    "log_loss",
    "brier_score",
    "mae",
    "rmse",
    "r2",
]
MetricFunction = Callable[[NDArray[Any], NDArray[Any]], float]
Metric = MetricName | str | MetricFunction
"""A name, any other k or beta in the place of those listed ("top_20_accuracy", "f3_macro"), or a callable."""

Reads = Literal["answers", "scores", "probabilities", "targets", "anything"]


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric: its family, what evidence calls it, which budget it has and what it reads of the output.

    `unit` is that of its value; a difference of shares is told in points. `parameter` is the k of top-k and the beta of
    F-beta. `function` is the user's own metric.
    """

    name: str
    title: str
    kind: Literal["score", "error", "either"]
    reads: Reads
    unit: Unit = ""
    parameter: float = 1
    macro: bool = False
    function: MetricFunction | None = None

    @property
    def difference_unit(self) -> Unit:
        """The unit of a difference of two values."""
        return "proportion_difference" if self.unit == "proportion" else self.unit

    @property
    def is_counted(self) -> bool:
        """Whether the metric counts right and wrong answers."""
        return self.reads == "answers" or self.name == "top_k_accuracy"

    @property
    def is_exact(self) -> bool:
        """Whether two models are compared by a share of right answers over the same rows."""
        return self.name in ("accuracy", "top_k_accuracy", "recall") and not self.macro

    @property
    def has_positive_class(self) -> bool:
        """Whether one class is the positive one."""
        return not self.macro and self.name in ("precision", "recall", "f", "roc_auc")


_TABLE: Mapping[str, Spec] = {
    "accuracy": Spec("accuracy", "accuracy", "score", "answers", "proportion"),
    "balanced_accuracy": Spec("balanced_accuracy", "balanced accuracy", "score", "answers", "proportion", macro=True),
    "top_5_accuracy": Spec("top_k_accuracy", "top-5 accuracy", "score", "scores", "proportion", 5),
    "precision": Spec("precision", "precision", "score", "answers", "proportion"),
    "recall": Spec("recall", "recall", "score", "answers", "proportion"),
    "f1": Spec("f", "F1", "score", "answers"),
    "precision_macro": Spec("precision", "macro precision", "score", "answers", "proportion", macro=True),
    "recall_macro": Spec("balanced_accuracy", "macro recall", "score", "answers", "proportion", macro=True),
    "f1_macro": Spec("f", "macro F1", "score", "answers", macro=True),
    "roc_auc": Spec("roc_auc", "AUC", "score", "scores"),
    "log_loss": Spec("log_loss", "log loss", "error", "probabilities"),
    "brier_score": Spec("brier_score", "Brier score", "error", "probabilities"),
    "mae": Spec("mae", "MAE", "error", "targets"),
    "rmse": Spec("rmse", "RMSE", "error", "targets"),
    "r2": Spec("r2", "R²", "score", "targets"),
}


def spec_of(metric: Metric) -> Spec:
    """What `metric` names; UsageError for an unknown name and for a k or beta that is none."""
    if callable(metric):
        name = getattr(metric, "__name__", "metric")
        return Spec("custom", "metric" if name == "<lambda>" else name, "either", "anything", function=metric)
    if metric in _TABLE:
        return _TABLE[metric]
    if isinstance(metric, str) and (found := re.fullmatch(r"top_([1-9]\d*)_accuracy", metric)):
        k = int(found[1])
        return Spec("top_k_accuracy", f"top-{k} accuracy", "score", "scores", "proportion", k)
    if isinstance(metric, str) and (found := re.fullmatch(r"f(\d*\.?\d+)(_macro)?", metric)) and float(found[1]) > 0:
        told = f"{'macro ' if found[2] else ''}F{found[1]}"
        return Spec("f", told, "score", "answers", "", float(found[1]), bool(found[2]))
    raise UsageError(f"{unknown_choice('metric', metric, _TABLE)}, or a callable of labels and predictions")


@dataclass(frozen=True, slots=True)
class Limit:
    """A budget as the user gave it: its argument's name, its value, and whether it bounds a score."""

    name: str
    value: float
    is_score: bool


def limit_of(
    metric: Metric, spec: Spec, *, score: Mapping[str, float | None], error: Mapping[str, float | None]
) -> Limit:
    """The budget that `spec` takes, out of the one name and value in `score` and the one in `error`.

    A callable may be either, and the budget says which. UsageError for the budget of the other kind, for none, for both
    and for one that is not finite.
    """
    told = f"metric={metric!r}" if spec.function is None else f"metric={spec.title}"
    ((score_name, score_limit),), ((error_name, error_limit),) = score.items(), error.items()
    is_score = score_limit is not None if spec.kind == "either" else spec.kind == "score"
    name, limit, other, misplaced = (
        (score_name, score_limit, error_name, error_limit)
        if is_score
        else (error_name, error_limit, score_name, score_limit)
    )
    if spec.kind == "either" and (score_limit is None) == (error_limit is None):
        raise UsageError(f"{told} needs one budget: {score_name}= if higher is better, {error_name}= if lower is")
    if misplaced is not None:
        kind = "a score" if is_score else "an error"
        raise UsageError(f"{told} is {kind}, whose budget is {name}=, not {other}=")
    if limit is None:
        raise UsageError(f"{told} needs its budget: give {name}=")
    if not math.isfinite(limit) and spec.unit != "proportion":
        where = " in the units of the target" if spec.reads == "targets" and not is_score else ""
        raise UsageError(f"{name} is a finite number{where}, not {limit}")
    return Limit(name, limit, is_score)


def refuse_for(metric: Metric, **arguments: bool) -> None:
    """UsageError for the first argument that was given (its value is True) and means nothing to `metric`."""
    told = f"metric={metric!r}" if isinstance(metric, str) else "a callable as metric="
    for name, given in arguments.items():
        if given:
            raise UsageError(f"{name}= means nothing for {told}: leave it out")


# A metric of one predictor, as an estimate over any of its rows that knows how each row pulls it.


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

    over: Callable[[Rows], Linearized]
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
    name, scores = select_output(predictor, inputs, reading.output)
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
    told = describe_invalid_rows(predictor, name, scores, bad, inputs, what=what)
    if not may_be_broken:
        raise invalid_reference(told, does="that answers NaN" if what == "NaN" else "without an answer")
    if spec.name in ("accuracy", "top_k_accuracy", "balanced_accuracy", "recall"):
        return Estimate(over, losses, findings=(f"{told}: counted as wrong",))
    return Estimate(over, losses, int(bad.size), told)


def _counted(
    spec: Spec, scores: NDArray[Any], labels: NDArray[Any], reading: Reading
) -> tuple[Callable[[Rows], Linearized], NDArray[np.intp]]:
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

    def over(rows: Rows) -> Linearized:
        present = (one for one in classes if _weighed(one.actual[rows], weights, rows) > 0)
        return average_of((ratio(one, rows, weights, spec.parameter) for one in present), touched=touched)

    return over, bad


def _share(hits: NDArray[np.bool_], weights: Weights) -> Callable[[Rows], Linearized]:
    return lambda rows: mean_of(hits[rows].astype(np.float64), _of(weights, rows), largest=1.0)


def _recall(one: ClassRows, rows: Rows, weights: Weights, _beta: float) -> Linearized:
    return ratio_of(_float(one.hits[rows]), _float(one.actual[rows]), _of(weights, rows), spread=1.0)


def _precision(one: ClassRows, rows: Rows, weights: Weights, _beta: float) -> Linearized:
    """Without a row that is answered so, 0, as uncertain as if the class were answered as often as it occurs."""
    if _weighed(one.predicted[rows], weights, rows) > 0:
        return ratio_of(_float(one.hits[rows]), _float(one.predicted[rows]), _of(weights, rows), spread=1.0)
    never = ratio_of(np.zeros(int(rows.sum())), _float(one.actual[rows]), _of(weights, rows), spread=1.0)
    return Linearized(0.0, never.influence, never.largest)


def _f(one: ClassRows, rows: Rows, weights: Weights, beta: float) -> Linearized:
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
    return Linearized(found.value, found.influence, found.largest * spread)


_RATIOS = {"balanced_accuracy": _recall, "recall": _recall, "precision": _precision, "f": _f}


def _area(
    scores: NDArray[Any], labels: NDArray[Any], reading: Reading
) -> tuple[Callable[[Rows], Linearized], NDArray[np.intp]]:
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
    return (lambda rows: auc_of(values[rows], positive[rows], _of(reading.weights, rows))), bad


def _explained(
    predictions: NDArray[Any], targets: NDArray[Any], weights: Weights
) -> tuple[Callable[[Rows], Linearized], NDArray[np.intp]]:
    errors, _ = row_squares(predictions, targets, weights)

    def over(rows: Rows) -> Linearized:
        part, spread = row_squares(predictions[rows], np.asarray(targets)[rows], _of(weights, rows))
        ratio = ratio_of(part, spread, _of(weights, rows))
        return Linearized(1 - ratio.value, -ratio.influence)

    return over, np.flatnonzero(~np.isfinite(errors))


def _losses(spec: Spec, scores: NDArray[Any], labels: NDArray[Any], reading: Reading) -> NDArray[np.float64]:
    if spec.reads == "targets":
        return row_losses(scores, labels, "absolute" if spec.name == "mae" else "squared")
    assert reading.scores is not None
    of_row = row_log_losses if spec.name == "log_loss" else row_brier_scores
    return of_row(scores, labels, reading.scores)


def _mean(losses: NDArray[np.float64], weights: Weights) -> Callable[[Rows], Linearized]:
    return lambda rows: mean_of(losses[rows], _of(weights, rows))


def _of(weights: Weights, rows: Rows) -> Weights:
    return None if weights is None else weights[rows]


def _weighed(picked: NDArray[np.bool_], weights: Weights, rows: Rows) -> float:
    return float(picked.sum() if weights is None else weights[rows] @ picked)


def _float(rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    return rows.astype(np.float64)


# Which rows a predictor answers rightly, and what has to be said about how it answered.


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
    name, scores = select_output(predictor, question.inputs, reading.output)
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
    told = describe_invalid_rows(predictor, name, scores, bad, question.inputs)
    if not may_be_nan:
        raise invalid_reference(told)
    if spec.name == "precision":
        return Answers(correct[rows], rows, (told,), len(bad))
    return Answers(correct[rows], rows, (f"{told}: counted as wrong",))
