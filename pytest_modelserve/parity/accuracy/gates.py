"""Accuracy gates: a task metric of one model, and its change against a reference, within a budget.

A score (accuracy, F1, AUC, R²) has a floor and a largest drop; an error (log loss, MAE) a ceiling and a largest rise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_modelserve.evidence import Evidence
from pytest_modelserve.parity.accuracy.estimates import ErrorRates
from pytest_modelserve.parity.accuracy.evaluation import Evaluation
from pytest_modelserve.parity.accuracy.metrics import MetricChoice
from pytest_modelserve.serving.labels import labeled_rows
from pytest_modelserve.serving.serve import open_models

if TYPE_CHECKING:
    from pytest_modelserve.metrics import Column, Output, Slices
    from pytest_modelserve.serving import Servable
    from pytest_modelserve.stats import Sampling


def measure_accuracy(
    predictor: Servable,
    inputs: Any = None,
    labels: Any = None,
    *,
    metric: MetricChoice = "accuracy",
    min_value: float | None = None,
    max_value: float | None = None,
    confidence: float = 0.95,
    alpha: float = 0.001,
    output: Output | str | None = None,
    sampling: Sampling | None = None,
    slices: Slices | Mapping[str, Column] | None = None,
) -> Evidence:
    """Measure a task metric of one model against a budget: a minimum for scores, a maximum for errors.

    Choose one metric. Metrics of class labels: "accuracy", "balanced_accuracy" (mean recall of the classes), of the
    positive class "precision", "recall", "f1" (any beta: "f0.5", "f2"), and over all classes "precision_macro",
    "recall_macro", "f1_macro". Metrics of scores: "top_5_accuracy" (any k), "roc_auc". Of probabilities: "log_loss",
    "brier_score". Of numbers: "mae", "rmse", "r2". A callable of labels and outputs returns one float.

    Accuracy, top-k accuracy, precision and recall have exact binomial bounds (Clopper-Pearson). The other named metrics
    have Student t and Hall bounds of the linearized metric, and AUC uses DeLong's components. At its budget such a
    metric passes in up to 6 % of samples instead of 5 % (AUC 7 %; R² 8 %, heavy-tailed errors 12 %) and fails in at
    most 0.1 %. A callable takes the BCa bootstrap with 10/alpha resamples and a fixed seed.

    With groups, blocks or weights every named metric is linearized. Have fifty groups or more: where all rows of a
    group may err together, 20 groups pass in up to 15 % of samples and 50 in 8 %. Targets or blocks whose errors still
    depend on their neighbors are INCONCLUSIVE; fewer than about 200 rows may hide such dependence.

    Args:
        predictor: The model to test, or its ready outputs: whatever `ms.serve` takes.
        inputs: An array, a tensor or a list (n, ...), a frame, or a mapping of input names to arrays; leave it out for
            ready outputs. A DataLoader of pairs holds inputs and labels. More than 1,024 rows are predicted in parts,
            if each row has outputs of its own.
        labels: Class labels (n,): integers, booleans, whole floats or strings; a file or frame with one column; or the
            name of a column of `inputs`, or of an entry of its batches. Column numbers for "top_5_accuracy", "log_loss"
            and "brier_score". Targets of the output's shape for "mae", "rmse" and "r2".
        metric: A metric's name, or a callable.
        min_value: Lowest score that passes; a fraction between 0 and 1 (R²: below 1).
        max_value: Highest error that passes, in the units of the target for "mae" and "rmse".
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        output: The output to read, by name or as `ms.Output`, which also says how labels are decoded, whether scores
            are logits, and which class is positive. Required where the model has several outputs, unless
            they are the labels and probabilities of a scikit-learn classifier.
        sampling: Groups or blocks of dependent rows, and sample weights, as `ms.Sampling`.
        slices: Names to columns: the evidence names the worst slice. `ms.Slices` with a budget tests each slice.

    Returns:
        The evidence. A row with NaN outputs counts as wrong for accuracy, balanced accuracy, top-k accuracy and recall;
        for every other metric it is a FAIL of its own.

    Raises:
        UsageError: For an unknown metric, a missing budget or one that belongs to the other kind of metric, values out
            of range, and arguments that do not apply to the metric.
        InputError: For labels, groups or weights that do not fit, labels of one class, targets that are not finite,
            zero rows, and a tested slice that is too small.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> labels = np.arange(200) % 2
        >>> model = ms.serve(lambda x: np.eye(2)[labels])
        >>> ms.measure_accuracy(model, np.zeros((200, 1)), labels, min_value=0.9).verdict.name
        'PASS'

        Predictions that are ready need no model:

        >>> ms.measure_accuracy(labels, labels=labels, min_value=0.9).verdict.name
        'PASS'
    """
    data, labels = labeled_rows(inputs, labels)
    with open_models(predictor, inputs=data, ready=True) as (batch, (model,)):
        evaluation = Evaluation.of(
            metric,
            batch,
            labels,
            score_budget=("min_value", min_value),
            error_budget=("max_value", max_value),
            rates=ErrorRates(confidence, alpha),
            output=output,
            sampling=sampling,
            slices=slices,
            data=data,
        )
        rows = evaluation.read(model)
    if (invalid := evaluation.invalid_evidence(rows, model.subject)) is not None:
        return invalid
    return evaluation.evidence(evaluation.estimate(rows), rows, model.subject)


def measure_accuracy_parity(
    candidate: Servable,
    reference: Servable,
    inputs: Any = None,
    labels: Any = None,
    *,
    metric: MetricChoice = "accuracy",
    max_drop: float | None = None,
    max_rise: float | None = None,
    confidence: float = 0.95,
    alpha: float = 0.001,
    output: Output | str | None = None,
    sampling: Sampling | None = None,
    slices: Slices | Mapping[str, Column] | None = None,
) -> Evidence:
    """Measure how much worse a candidate is than its reference on the same rows, against a budget.

    The budget bounds the drop of a score or the rise of an error; metrics are those of `measure_accuracy`. Accuracy,
    top-k accuracy and recall take Tango's interval for paired proportions, which only counts rows on which one model is
    right and the other wrong. Every other named metric takes the interval of the difference of what each row
    contributes to both. Two models that rank every row alike have no difference of AUC. A callable is resampled in
    pairs.

    Args:
        candidate: The model to test, or its ready outputs: whatever `ms.serve` takes.
        reference: The model that it replaces, or its ready outputs.
        inputs: As in `measure_accuracy`; given to both models.
        labels: As in `measure_accuracy`.
        metric: A metric's name, or a callable.
        max_drop: Largest drop of a score that passes: 0.01 is one percentage point. Above 0 for accuracy, top-k
            accuracy and recall. For the others 0 demands a candidate that is shown to be no worse, and a negative
            budget one that is better by that much.
        max_rise: Largest rise of an error that passes, in the units of the error.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        output: The output to read, by name or as `ms.Output`.
        sampling: Groups or blocks of dependent rows, and sample weights, as `ms.Sampling`.
        slices: Names to columns: the evidence names the worst slice. `ms.Slices` with a budget tests each slice.

    Returns:
        The evidence; NaN outputs of the candidate as in `measure_accuracy`.

    Raises:
        UsageError: As `measure_accuracy`.
        InputError: As `measure_accuracy`, and for NaN outputs of the reference (infinite ones too, for metrics of
            numbers and probabilities).

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> labels = np.arange(2000) % 2
        >>> model = ms.serve(lambda x: np.eye(2)[labels])
        >>> ms.measure_accuracy_parity(model, model, np.zeros((2000, 1)), labels, max_drop=0.01).verdict.name
        'PASS'
    """
    data, labels = labeled_rows(inputs, labels)
    with open_models(candidate, reference, inputs=data, ready=True) as (batch, (new, old)):
        evaluation = Evaluation.of(
            metric,
            batch,
            labels,
            score_budget=("max_drop", max_drop),
            error_budget=("max_rise", max_rise),
            rates=ErrorRates(confidence, alpha),
            output=output,
            sampling=sampling,
            slices=slices,
            data=data,
        )
        before = evaluation.read(old, is_reference=True)
        after = evaluation.read(new)
    if (invalid := evaluation.invalid_evidence(after, new.subject, old.subject)) is not None:
        return invalid
    return evaluation.evidence(evaluation.estimate(after, before), after, new.subject, old.subject)
