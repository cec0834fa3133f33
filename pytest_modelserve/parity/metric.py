"""Which metrics there are, what each reads, and which budget belongs to it: a score has a floor, an error a ceiling."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError, unknown_choice
from pytest_modelserve.evidence import Unit

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
        return "share difference" if self.unit == "share" else self.unit

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
    "accuracy": Spec("accuracy", "accuracy", "score", "answers", "share"),
    "balanced_accuracy": Spec("balanced_accuracy", "balanced accuracy", "score", "answers", "share", macro=True),
    "top_5_accuracy": Spec("top_k_accuracy", "top-5 accuracy", "score", "scores", "share", 5),
    "precision": Spec("precision", "precision", "score", "answers", "share"),
    "recall": Spec("recall", "recall", "score", "answers", "share"),
    "f1": Spec("f", "F1", "score", "answers"),
    "precision_macro": Spec("precision", "macro precision", "score", "answers", "share", macro=True),
    "recall_macro": Spec("balanced_accuracy", "macro recall", "score", "answers", "share", macro=True),
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
        return Spec("top_k_accuracy", f"top-{k} accuracy", "score", "scores", "share", k)
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
    if not math.isfinite(limit) and spec.unit != "share":
        where = " in the units of the target" if spec.reads == "targets" and not is_score else ""
        raise UsageError(f"{name} is a finite number{where}, not {limit}")
    return Limit(name, limit, is_score)


def refuse_for(metric: Metric, **arguments: bool) -> None:
    """UsageError for the first argument that was given (its value is True) and means nothing to `metric`."""
    told = f"metric={metric!r}" if isinstance(metric, str) else "a callable as metric="
    for name, given in arguments.items():
        if given:
            raise UsageError(f"{name}= means nothing for {told}: leave it out")
