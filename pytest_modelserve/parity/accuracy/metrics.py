"""Task metrics: how each reads outputs, scores rows and estimates its value. A new metric is a class and an entry."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.metrics import (
    ClassRows,
    Decoded,
    Output,
    class_labels,
    class_pairs,
    class_rows,
    correct_rows,
    decode,
    positive_label,
    positive_rows,
    positive_scores,
    roc_curve,
    row_brier_scores,
    row_log_losses,
    row_losses,
    row_squares,
    top_k_rows,
)
from pytest_modelserve.parity.accuracy.estimates import DeltaMethod, Estimate, PairedProportions, Proportion
from pytest_modelserve.stats import Linearized, SamplingUnits, auc_of, average_of, mean_of, ratio_of, root_of

if TYPE_CHECKING:
    from pytest_modelserve.evidence import Unit

_LabelMetric = Literal["accuracy", "balanced_accuracy", "precision", "recall", "f1", "f0.5", "f2"]
_MacroMetric = Literal["precision_macro", "recall_macro", "f1_macro"]
_ScoreMetric = Literal["top_2_accuracy", "top_3_accuracy", "top_5_accuracy", "top_10_accuracy", "roc_auc"]
_Error = Literal["log_loss", "brier_score", "mae", "rmse", "r2"]
MetricFunction = Callable[[NDArray[Any], NDArray[Any]], float]
MetricChoice = _LabelMetric | _MacroMetric | _ScoreMetric | _Error | str | MetricFunction
"""A name, another k or beta in the place of those listed ("top_20_accuracy", "f3_macro"), or a callable."""

Mask = NDArray[np.bool_]
Weights = NDArray[np.float64] | None
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Rows(Generic[T]):
    """What a metric has read of one model's output: `data` for its estimate, and the numbers of `invalid` rows.

    `losses` (n,) are the losses of metrics that are means of them. `finding` describes the invalid rows.
    """

    data: T
    invalid: NDArray[np.intp]
    losses: NDArray[np.float64] | None = None
    finding: str = ""


class Metric(ABC, Generic[T]):
    """A task metric: how to read one model's outputs, and how to estimate its level and its change with bounds."""

    title: str
    """Its name in evidence."""
    unit: Unit = ""
    higher_is_better = True
    limits: tuple[float, float] = (0.0, 1.0)
    """The range of its values."""
    options: frozenset[str] = frozenset({"decode", "sample_weight"})
    """Which options of `Output` and `Sampling` apply: decode, scores, pos_label, sample_weight."""
    of_targets = False
    """Whether the labels are numbers, whose rows may be a series in time."""
    nan_is_wrong = False
    """Whether a row with NaN outputs counts as wrong; else it is a failure of its own."""
    invalid_values = "NaN"
    has_exact_change = False
    """Whether two models are compared as paired proportions, whose drop has a budget above 0."""
    reduces_rows = False
    """Whether `reduce` is defined: what the metric needs of a row's outputs follows from that row alone."""

    @abstractmethod
    def read(self, outputs: NDArray[Any], labels: NDArray[Any], output: Output) -> Rows[T]:
        """Return what the metric needs of one model's outputs (n, ...); raise InputError for data that do not fit."""

    def reduce(self, outputs: NDArray[Any], labels: NDArray[Any], output: Output) -> tuple[NDArray[Any], ...]:
        """Return what is left of the outputs of some rows, as arrays (n,); `read_reduced` reads those of all rows."""
        raise NotImplementedError

    def read_reduced(self, reduced: tuple[NDArray[Any], ...], labels: NDArray[Any], output: Output) -> Rows[T]:
        """Return what `read` returns for the outputs that were reduced."""
        raise NotImplementedError

    @abstractmethod
    def level(self, rows: Rows[T], units: SamplingUnits) -> Estimate:
        """Return the metric of one model, with bounds."""

    @abstractmethod
    def change(self, reference: Rows[T], candidate: Rows[T], units: SamplingUnits) -> Estimate:
        """Return by how much the candidate is worse than the reference, with bounds."""


class LinearizedMetric(Metric[T]):
    """A metric that is a smooth function of means: bounded by the delta method, for any groups, blocks and weights.

    `read` and `estimate` are all that a new one has to define.
    """

    interval_method: tuple[str, str, str] = (
        "delta method, Student t and Hall",
        "the delta method by influence functions, Hampel 1974, JASA 69:383-393; the outer of Student 1908, with "
        "degrees of freedom by Satterthwaite 1946, and Hall 1992, Journal of the Royal Statistical Society B "
        "54:221-228; rows not seen by Clopper & Pearson 1934",
        "levels are asymptotic: a model exactly on its budget passes in up to 6 % instead of 5 %",
    )
    """Name, source and error rates of the interval."""
    is_mean_loss = False
    """Whether the metric is the mean of `Rows.losses`, or its root: nothing bounds what an unseen row may add."""

    @abstractmethod
    def estimate(self, data: T, mask: Mask, weights: Weights) -> Linearized:
        """Return the metric over the rows of a mask (n,); raise UsageError where it has no value."""

    def bounded_estimate(self, data: T, mask: Mask, weights: Weights) -> Linearized:
        """Return the estimate whose mean is bounded: the metric itself, or what `from_bounded` makes the metric of."""
        return self.estimate(data, mask, weights)

    def to_bounded(self, value: float) -> float:
        """Return a value of the metric on the scale of `bounded_estimate`."""
        return value

    def from_bounded(self, value: float) -> float:
        """Return a value of `bounded_estimate` on the metric's scale."""
        return value

    def curve(self, data: T, mask: Mask, weights: Weights) -> dict[str, list[float]]:
        """Return what reports draw of one model, as coordinates; {} if there is nothing."""
        return {}

    def level(self, rows: Rows[T], units: SamplingUnits) -> Estimate:
        return DeltaMethod(self, units, rows)

    def change(self, reference: Rows[T], candidate: Rows[T], units: SamplingUnits) -> Estimate:
        return DeltaMethod(self, units, candidate, reference)


class LabelMetric(LinearizedMetric[T]):
    """A metric of the predicted labels: `count` compares them with the true ones."""

    reduces_rows = True

    @abstractmethod
    def count(self, decoded: Decoded, labels: NDArray[Any], output: Output) -> T:
        """Return what the metric needs of predicted and true labels, (n,) each."""

    def read(self, outputs: NDArray[Any], labels: NDArray[Any], output: Output) -> Rows[T]:
        return self.read_reduced(self.reduce(outputs, labels, output), labels, output)

    def reduce(self, outputs: NDArray[Any], labels: NDArray[Any], output: Output) -> tuple[NDArray[Any], ...]:
        decoded = decode(outputs, output.decode)
        return decoded.labels, decoded.invalid

    def read_reduced(self, reduced: tuple[NDArray[Any], ...], labels: NDArray[Any], output: Output) -> Rows[T]:
        decoded = Decoded(*reduced)
        return Rows(self.count(decoded, labels, output), np.flatnonzero(decoded.invalid))


class _ProportionMetric(LinearizedMetric[T]):
    """A proportion of rows that are right: exact bounds where every row is independent and counts once."""

    unit: Unit = "proportion"
    has_exact_change = True
    assumption = "independent rows"

    @abstractmethod
    def trials(self, data: T) -> tuple[Mask, Mask]:
        """Return which rows are right and which count, (n,) each."""

    def level(self, rows: Rows[T], units: SamplingUnits) -> Estimate:
        if not units.is_plain:
            return super().level(rows, units)
        correct, counted = self.trials(rows.data)
        if not counted.any():
            raise InputError(
                f"the model predicts the positive class in no row: {self.title} is the proportion of those predictions "
                "that are right, and has no value"
            )
        return Proportion(correct, counted, self.assumption)

    def change(self, reference: Rows[T], candidate: Rows[T], units: SamplingUnits) -> Estimate:
        if not (units.is_plain and self.has_exact_change):
            return super().change(reference, candidate, units)
        before, counted = self.trials(reference.data)
        return PairedProportions(before, self.trials(candidate.data)[0], counted)


class Accuracy(LabelMetric[Mask], _ProportionMetric[Mask]):
    """The proportion of rows whose label is predicted."""

    title = "accuracy"
    nan_is_wrong = True

    def count(self, decoded: Decoded, labels: NDArray[Any], output: Output) -> Mask:
        return correct_rows(decoded, labels)

    def estimate(self, data: Mask, mask: Mask, weights: Weights) -> Linearized:
        return mean_of(data[mask].astype(np.float64), _masked(weights, mask), largest=1.0)

    def trials(self, data: Mask) -> tuple[Mask, Mask]:
        return data, np.ones(len(data), dtype=np.bool_)


class TopKAccuracy(Accuracy):
    """The proportion of rows whose label is among the k highest scores."""

    options = frozenset({"sample_weight"})

    def __init__(self, k: int) -> None:
        self.k, self.title = k, f"top-{k} accuracy"

    def reduce(self, outputs: NDArray[Any], labels: NDArray[Any], output: Output) -> tuple[NDArray[Any], ...]:
        return top_k_rows(outputs, labels, self.k)

    def read_reduced(self, reduced: tuple[NDArray[Any], ...], labels: NDArray[Any], output: Output) -> Rows[Mask]:
        hits, invalid = reduced
        return Rows(hits, np.flatnonzero(invalid))


class _OneClass(LabelMetric[ClassRows]):
    """A metric of one class, the positive one; `Macro` averages it over all."""

    options = frozenset({"decode", "pos_label", "sample_weight"})

    def count(self, decoded: Decoded, labels: NDArray[Any], output: Output) -> ClassRows:
        return positive_rows(decoded, labels, output.pos_label)


class Recall(_OneClass, _ProportionMetric[ClassRows]):
    """The proportion of the rows of a class that are predicted as it."""

    title = "recall"
    nan_is_wrong = True
    assumption = "independent rows; given the number of rows of the positive class"

    def estimate(self, data: ClassRows, mask: Mask, weights: Weights) -> Linearized:
        return ratio_of(_float(data.hits[mask]), _float(data.actual[mask]), _masked(weights, mask), spread=1.0)

    def trials(self, data: ClassRows) -> tuple[Mask, Mask]:
        return data.hits, data.actual


class Precision(_OneClass, _ProportionMetric[ClassRows]):
    """The proportion of the rows predicted as a class that are of it."""

    title = "precision"
    has_exact_change = False  # two models predict the class in different rows
    assumption = "independent rows; given the number of rows that are predicted as positive"

    def estimate(self, data: ClassRows, mask: Mask, weights: Weights) -> Linearized:
        predicted, weight = data.predicted[mask], _masked(weights, mask)
        if _weight_of(predicted, weight) > 0:
            return ratio_of(_float(data.hits[mask]), _float(predicted), weight, spread=1.0)
        # Never predicted: 0, as uncertain as if the class were predicted as often as it occurs.
        never = ratio_of(np.zeros(len(predicted)), _float(data.actual[mask]), weight, spread=1.0)
        return Linearized(0.0, never.influence, never.largest)

    def trials(self, data: ClassRows) -> tuple[Mask, Mask]:
        return data.hits, data.predicted


class FBeta(_OneClass):
    """(1 + β²)·hits over β²·actual + predicted: van Rijsbergen, Information Retrieval, 2nd ed. 1979, chapter 7."""

    def __init__(self, beta: str = "1") -> None:
        self.beta, self.title = float(beta), f"F{beta}"

    def estimate(self, data: ClassRows, mask: Mask, weights: Weights) -> Linearized:
        square = self.beta**2
        found = ratio_of(
            (1 + square) * _float(data.hits[mask]),
            square * _float(data.actual[mask]) + _float(data.predicted[mask]),
            _masked(weights, mask),
            spread=1.0,
        )
        # Between a hit, (1 + β²)(1 − F), and the worse of a miss, −β²F, and a false alarm, −F.
        spread = (1 + square) * (1 - found.value) + found.value * max(1.0, square)
        return Linearized(found.value, found.influence, found.largest * spread)


class Macro(LabelMetric[tuple[ClassRows, ...]]):
    """The mean of a metric over the classes of the labels."""

    def __init__(self, of_class: Recall | Precision | FBeta, title: str) -> None:
        self.of_class, self.title, self.unit, self.nan_is_wrong = of_class, title, of_class.unit, of_class.nan_is_wrong
        # A wrong prediction is a miss of one class and, except for recall, a false alarm of another.
        self.touched = 1 if isinstance(of_class, Recall) else 2

    def count(self, decoded: Decoded, labels: NDArray[Any], output: Output) -> tuple[ClassRows, ...]:
        return class_rows(decoded, labels)

    def estimate(self, data: tuple[ClassRows, ...], mask: Mask, weights: Weights) -> Linearized:
        present = (one for one in data if _weight_of(one.actual[mask], _masked(weights, mask)) > 0)
        return average_of((self.of_class.estimate(one, mask, weights) for one in present), touched=self.touched)


class RocAuc(LinearizedMetric[tuple[NDArray[Any], Mask]]):
    """The area under the ROC curve of two classes."""

    title = "AUC"
    options = frozenset({"pos_label", "sample_weight"})
    interval_method = (
        f"DeLong, {LinearizedMetric.interval_method[0].removeprefix('delta method, ')}",
        "DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44:837-845; clusters: Obuchowski 1997; "
        f"{LinearizedMetric.interval_method[1]}",
        "levels are asymptotic: a model exactly on its budget passes in up to 7 % instead of 5 %",
    )

    def read(self, outputs: NDArray[Any], labels: NDArray[Any], output: Output) -> Rows[tuple[NDArray[Any], Mask]]:
        values = positive_scores(outputs)
        truth = class_labels(np.asarray(labels), what="labels")
        class_pairs(Decoded(truth, np.zeros(len(truth), dtype=np.bool_)), truth)
        if len(truth) != len(values):
            raise InputError(f"there are {len(truth)} labels for {len(values)} rows of outputs")
        if (classes := len(np.unique(truth))) > 2:
            raise InputError(
                f"labels have {classes} classes: the area under the ROC curve takes two; give a callable as metric= "
                "for more"
            )
        positive = truth == positive_label(truth, output.pos_label)
        return Rows((values, positive), np.flatnonzero(np.isnan(values)))

    def estimate(self, data: tuple[NDArray[Any], Mask], mask: Mask, weights: Weights) -> Linearized:
        values, positive = data
        return auc_of(values[mask], positive[mask], _masked(weights, mask))

    def curve(self, data: tuple[NDArray[Any], Mask], mask: Mask, weights: Weights) -> dict[str, list[float]]:
        values, positive = data
        false, true = roc_curve(values[mask], positive[mask], _masked(weights, mask))
        return {"false_positive_rate": false.round(4).tolist(), "true_positive_rate": true.round(4).tolist()}


class R2(LinearizedMetric[tuple[NDArray[Any], NDArray[Any]]]):
    """The coefficient of determination of real-valued predictions."""

    title = "R²"
    limits = (-math.inf, 1.0)
    options = frozenset({"sample_weight"})
    of_targets = True
    invalid_values = "NaN or infinities"
    interval_method = (
        *LinearizedMetric.interval_method[:2],
        "levels are asymptotic: a model exactly on its budget passes in up to 8 % with 50 rows and 6 % with 1,000, "
        "where errors are heavy-tailed in 12 % and 8 %, instead of 5 %",
    )

    def read(
        self, outputs: NDArray[Any], labels: NDArray[Any], output: Output
    ) -> Rows[tuple[NDArray[Any], NDArray[Any]]]:
        errors, _ = row_squares(outputs, labels)
        return Rows((outputs, np.asarray(labels)), np.flatnonzero(~np.isfinite(errors)))

    def estimate(self, data: tuple[NDArray[Any], NDArray[Any]], mask: Mask, weights: Weights) -> Linearized:
        weight = _masked(weights, mask)
        errors, spread = row_squares(data[0][mask], data[1][mask], weight)
        ratio = ratio_of(errors, spread, weight)
        return Linearized(1 - ratio.value, -ratio.influence)


class MeanLoss(LinearizedMetric[NDArray[np.float64]]):
    """The mean of a loss of each row."""

    higher_is_better = False
    reduces_rows = True
    limits = (0.0, math.inf)
    invalid_values = "NaN or infinities"
    is_mean_loss = True
    interval_method = (
        "Student t and Hall",
        "the outer of Student 1908 and Hall 1992, Journal of the Royal Statistical Society B 54:221-228; batch means: "
        "Law, Simulation Modeling and Analysis, chapter 9; differences of losses: Diebold & Mariano 1995, Journal of "
        "Business & Economic Statistics 13:253-263",
        "levels are asymptotic: where the losses are squares of heavy-tailed errors, a model exactly on its budget "
        "passes in up to 14 % with 20 rows or blocks and 8 % with 1,000, instead of 5 %",
    )

    @abstractmethod
    def losses(self, outputs: NDArray[Any], labels: NDArray[Any], output: Output) -> NDArray[np.float64]:
        """Return the loss of each row, (n,), not finite where the output is not."""

    def read(self, outputs: NDArray[Any], labels: NDArray[Any], output: Output) -> Rows[NDArray[np.float64]]:
        return self.read_reduced(self.reduce(outputs, labels, output), labels, output)

    def reduce(self, outputs: NDArray[Any], labels: NDArray[Any], output: Output) -> tuple[NDArray[Any], ...]:
        return (self.losses(outputs, labels, output),)

    def read_reduced(
        self, reduced: tuple[NDArray[Any], ...], labels: NDArray[Any], output: Output
    ) -> Rows[NDArray[np.float64]]:
        (losses,) = reduced
        return Rows(losses, np.flatnonzero(~np.isfinite(losses)), losses)

    def estimate(self, data: NDArray[np.float64], mask: Mask, weights: Weights) -> Linearized:
        return mean_of(data[mask], _masked(weights, mask))


class ProbabilityLoss(MeanLoss):
    """The mean of a loss of the predicted probabilities."""

    options = frozenset({"scores", "sample_weight"})

    def __init__(self, title: str, row_losses: Callable[..., NDArray[np.float64]]) -> None:
        self.title, self.row_losses = title, row_losses

    def losses(self, outputs: NDArray[Any], labels: NDArray[Any], output: Output) -> NDArray[np.float64]:
        return self.row_losses(outputs, labels, output.scores)


class MeanAbsoluteError(MeanLoss):
    """The mean absolute error of a row."""

    title = "MAE"
    options = frozenset({"sample_weight"})
    of_targets = True

    def losses(self, outputs: NDArray[Any], labels: NDArray[Any], output: Output) -> NDArray[np.float64]:
        return row_losses(outputs, labels, "absolute")


class RootMeanSquaredError(MeanLoss):
    """The root of the mean squared error of a row: by itself bounded as a mean square."""

    title = "RMSE"
    options = frozenset({"sample_weight"})
    of_targets = True

    def losses(self, outputs: NDArray[Any], labels: NDArray[Any], output: Output) -> NDArray[np.float64]:
        return row_losses(outputs, labels, "squared")

    def estimate(self, data: NDArray[np.float64], mask: Mask, weights: Weights) -> Linearized:
        return root_of(super().estimate(data, mask, weights))

    def bounded_estimate(self, data: NDArray[np.float64], mask: Mask, weights: Weights) -> Linearized:
        return super().estimate(data, mask, weights)

    def to_bounded(self, value: float) -> float:
        return value**2

    def from_bounded(self, value: float) -> float:
        return math.sqrt(value)


METRICS: Mapping[str, Metric[Any]] = {
    "accuracy": Accuracy(),
    "balanced_accuracy": Macro(Recall(), "balanced accuracy"),
    "top_5_accuracy": TopKAccuracy(5),
    "precision": Precision(),
    "recall": Recall(),
    "f1": FBeta(),
    "precision_macro": Macro(Precision(), "macro precision"),
    "recall_macro": Macro(Recall(), "macro recall"),
    "f1_macro": Macro(FBeta(), "macro F1"),
    "roc_auc": RocAuc(),
    "log_loss": ProbabilityLoss("log loss", row_log_losses),
    "brier_score": ProbabilityLoss("Brier score", row_brier_scores),
    "mae": MeanAbsoluteError(),
    "rmse": RootMeanSquaredError(),
    "r2": R2(),
}


def metric_named(name: object) -> Metric[Any]:
    """Return the metric of a name; raise UsageError, with the nearest known name, for another one."""
    if isinstance(name, str) and name in METRICS:
        return METRICS[name]
    if isinstance(name, str) and (found := re.fullmatch(r"top_([1-9]\d*)_accuracy", name)):
        return TopKAccuracy(int(found[1]))
    if isinstance(name, str) and (found := re.fullmatch(r"f(\d*\.?\d+)(_macro)?", name)) and float(found[1]) > 0:
        of_class = FBeta(found[1])
        return Macro(of_class, f"macro {of_class.title}") if found[2] else of_class
    raise UsageError(f"{unknown_choice('metric', name, METRICS)}, or a callable of labels and predictions")


def _masked(weights: Weights, mask: Mask) -> Weights:
    return None if weights is None else weights[mask]


def _weight_of(selected: Mask, weights: Weights) -> float:
    return float(selected.sum() if weights is None else weights @ selected)


def _float(rows: Mask) -> NDArray[np.float64]:
    return rows.astype(np.float64)
