"""Is the model as good at its task as it must be: by itself, and against the model it replaces?

A score (accuracy, F1, AUC, R²) has a floor; an error (log loss, MAE, RMSE) has a ceiling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.evidence import Evidence
from pytest_modelserve.parity.accuracy.custom_metric import measure_own_change, measure_own_level
from pytest_modelserve.parity.accuracy.estimates import ErrorRates
from pytest_modelserve.parity.accuracy.evaluation import (
    measure_change,
    measure_drop,
    measure_level,
    measure_share,
    question_of,
)
from pytest_modelserve.parity.accuracy.metrics import Limit, Metric, limit_of, spec_of
from pytest_modelserve.parity.accuracy.slices import Slices
from pytest_modelserve.serving.inputs import Inputs

if TYPE_CHECKING:
    from pytest_modelserve.metrics import Decoding, Scores
    from pytest_modelserve.serving import Predictor

# What a call of an accuracy gate asks: the metric, its budget, and how answers and rows are to be taken.


def measure_accuracy(
    predictor: Predictor,
    inputs: Inputs,
    labels: NDArray[Any],
    *,
    metric: Metric = "accuracy",
    min_value: float | None = None,
    max_value: float | None = None,
    confidence: float = 0.95,
    alpha: float = 0.001,
    output: str | None = None,
    decode: Decoding | None = None,
    scores: Scores | None = None,
    pos_label: int | str | None = None,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    block: int | None = None,
    slices: Slices | None = None,
    min_slice_value: float | None = None,
    max_slice_value: float | None = None,
    min_slice_rows: int | None = None,
) -> Evidence:
    """Evidence that `predictor` is good enough: a score of at least `min_value`, or an error of at most `max_value`.

    **Metrics.** "accuracy", "balanced_accuracy" (the mean recall of the classes), "precision", "recall" and "f1" (or
    "f0.5", "f2", any beta) of the class `pos_label` (by default 1 where labels are 0 and 1), and "precision_macro",
    "recall_macro", "f1_macro", their mean over the classes of `labels`, read labels: `decode` ("argmax" by default)
    turns the scores of `output` (required where there are several) into them. "top_5_accuracy" (any k) and "roc_auc"
    read the order of scores. "log_loss" and "brier_score" read probabilities, and `scores` says whether the model
    answers them or logits. "mae", "rmse" and "r2" read numbers: `labels` are then targets of the output's shape. Else
    `labels` are (n,), for "log_loss", "brier_score" and "top_5_accuracy" column numbers. A callable is given labels and
    outputs (with `decode`, labels) of any rows and returns a float; its budget says whether higher is better.

    **Intervals.** Accuracy, top-k accuracy, precision and recall have exact binomial bounds (Clopper-Pearson). Log
    loss, Brier score, MAE and RMSE have those of a mean loss (`stats.mean_bounds`, for the RMSE under a root). The
    others are linearized row by row (`stats.delta_method_bounds`; for the AUC by DeLong's components), and allow for
    kinds of rows that were not seen. At their budget they pass in up to 6 % instead of 5 % (the AUC in 7 %; R² in 8 %
    with 50 rows, and with heavy-tailed errors in 12 %, of 1,000 rows in 8 %) and fail in at most 0.1 %. A callable
    takes the BCa bootstrap with 10/alpha resamples (10,000), seeded.

    **Rows** are taken to be independent unless `groups` (n,) gives those that belong together one id (patients, users)
    or `block` says how many consecutive ones depend on each other (52 for weekly rows with a yearly season): one or the
    other. Then whole groups or blocks are the sample, and fifty or more are worth having: where all rows of a group may
    err together, 20 groups pass in up to 15 %, 50 in 8 %. Errors of targets, and blocks, that show dependence
    nevertheless (`stats.serial_dependence`) are never judged: INCONCLUSIVE; fewer than about 200 rows may hide it.
    `weights` (n,) count rows several times. With any of these three, shares are linearised as well.

    **NaN.** A row whose scores hold NaN counts as wrong for accuracy (balanced and top-k, too) and recall, and is told;
    for every other metric it is a FAIL of its own.

    **Slices** map a name to one value a row (`ms.bins` makes them of numbers) or to a predicate over the inputs. They
    inform; with `min_slice_value` or `max_slice_value`, and `min_slice_rows`, every slice is judged as well: PASS needs
    all of them, FAIL takes Holm's correction over the slices and the whole.

    Raises InputError for labels, targets, scores, groups or weights that do not fit, labels all of one class, targets
    that are not finite, zero rows, and a judged slice that is too small; UsageError for an unknown metric, the budget
    of the other kind of metric, one out of range, and for arguments that mean nothing to the metric.
    """
    spec = spec_of(metric)
    limit = limit_of(metric, spec, score={"min_value": min_value}, error={"max_value": max_value})
    question = question_of(
        metric,
        spec,
        limit,
        ErrorRates(confidence, alpha),
        inputs,
        labels,
        output=output,
        decode=decode,
        scores=scores,
        pos_label=pos_label,
        groups=groups,
        weights=weights,
        block=block,
        slices=slices,
        slice_limits=_slice_limits(min_slice_value=min_slice_value, max_slice_value=max_slice_value),
        min_slice_rows=min_slice_rows,
    )
    if spec.function is not None:
        return measure_own_level(predictor, question)
    if question.are_plain_rows and (spec.is_exact or (spec.name == "precision" and not spec.macro)):
        return measure_share(predictor, question)
    return measure_level(predictor, question)


def measure_accuracy_parity(
    candidate: Predictor,
    reference: Predictor,
    inputs: Inputs,
    labels: NDArray[Any],
    *,
    metric: Metric = "accuracy",
    max_drop: float | None = None,
    max_rise: float | None = None,
    confidence: float = 0.95,
    alpha: float = 0.001,
    output: str | None = None,
    decode: Decoding | None = None,
    scores: Scores | None = None,
    pos_label: int | str | None = None,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    block: int | None = None,
    slices: Slices | None = None,
    max_slice_drop: float | None = None,
    max_slice_rise: float | None = None,
    min_slice_rows: int | None = None,
) -> Evidence:
    """Evidence that `candidate` loses at most `max_drop` of the reference's score, or adds `max_rise` to its error.

    Both answer the same rows and are judged in pairs; metrics and arguments as in `measure_accuracy`, with
    `max_slice_drop` and `max_slice_rise` as the budgets of slices.

    Accuracy, top-k accuracy and recall: `max_drop` is a difference of shares (0.01 is one percentage point), above 0.
    Only the rows on which one is right and the other wrong say anything (of recall those of the positive class): an
    interval for the difference of paired proportions, `paired_difference_bounds`.

    Every other metric: the interval is that of the difference of what each row contributes to the two. At a budget of 0
    the candidate has to be shown no worse than its reference, below 0 better by that much; an equal model is
    INCONCLUSIVE there. Two models that rank every row alike have no difference of AUC, and no interval knows what none
    of the rows shows; metrics that count answers allow for it. A callable is resampled in pairs.

    Raises InputError where the reference answers with NaN, or for an error metric infinities (it cannot judge), and
    otherwise as `measure_accuracy` does.
    """
    spec = spec_of(metric)
    limit = limit_of(metric, spec, score={"max_drop": max_drop}, error={"max_rise": max_rise})
    question = question_of(
        metric,
        spec,
        limit,
        ErrorRates(confidence, alpha),
        inputs,
        labels,
        output=output,
        decode=decode,
        scores=scores,
        pos_label=pos_label,
        groups=groups,
        weights=weights,
        block=block,
        slices=slices,
        slice_limits=_slice_limits(max_slice_drop=max_slice_drop, max_slice_rise=max_slice_rise),
        min_slice_rows=min_slice_rows,
    )
    if spec.function is not None:
        return measure_own_change(candidate, reference, question)
    if question.are_plain_rows and spec.is_exact:
        return measure_drop(candidate, reference, question)
    return measure_change(candidate, reference, question)


def _slice_limits(**given: float | None) -> tuple[Limit | None, Limit | None]:
    """The budgets of slices, of a score and of an error, in that order."""
    (score, score_limit), (error, error_limit) = given.items()
    return (
        None if score_limit is None else Limit(score, score_limit, is_score=True),
        None if error_limit is None else Limit(error, error_limit, is_score=False),
    )


# The one verdict that needs no statistics: a predictor whose answers are no numbers has no error to judge.
