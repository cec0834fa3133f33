"""Is the model as good at its task as it must be: by itself, and against the model it replaces?

A score, the share of right answers, has a floor; an error, MAE or RMSE, has a ceiling.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from pytest_modelserve.evidence import Evidence
from pytest_modelserve.numerics import Decoding
from pytest_modelserve.parity.drop import measure_drop
from pytest_modelserve.parity.error import measure_error
from pytest_modelserve.parity.judging import ErrorRates
from pytest_modelserve.parity.metric import Metric, limit_of, refuse_for
from pytest_modelserve.parity.predicting import Inputs
from pytest_modelserve.parity.rise import measure_rise
from pytest_modelserve.parity.share import measure_share
from pytest_modelserve.parity.slices import Slices
from pytest_modelserve.serving import Predictor


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
    decode: Decoding = "argmax",
    slices: Slices | None = None,
    block: int | None = None,
) -> Evidence:
    """Evidence that `predictor` is good enough: accuracy of at least `min_value`, or an error of at most `max_value`.

    `metric="accuracy"`: `labels` (n,), and `min_value`, a share from 0 to 1. `decode` turns the scores of `output`
    (required where there are several) into labels. Bounds are exact (Clopper-Pearson). A row whose scores hold NaN
    counts as wrong and is told. Assumes rows drawn independently from what the model will meet.

    `metric="mae"` or `"rmse"`: `labels` are targets of the output's shape (n, ...), and `max_value` is in their units.
    The bounds are those of the mean loss (`stats.mean_bounds`), for the RMSE those of the mean square, under a root.
    Rows are taken to be independent unless `block` says how many consecutive ones depend on each other (52 for weekly
    rows with a yearly season); then the means of blocks are judged, and twenty blocks or more are worth having. Losses
    that show dependence nevertheless (`stats.serial_dependence`) are never judged: INCONCLUSIVE; fewer than about 200
    rows may hide it. Levels are asymptotic, and liberal for PASS on heavy tails (see `mean_bounds`). A prediction that
    is NaN or infinite is a FAIL of its own.

    `slices` maps a name to one value a row, shape (n,); figures by slice inform and are not judged.

    Raises InputError for labels or targets that do not fit, for labels all of one class, targets that are not finite
    and zero rows; UsageError for an unknown metric, the budget of the other kind of metric, one out of range, and for
    `decode` or `block` with a metric to which they mean nothing.
    """
    limit = limit_of(metric, score={"min_value": min_value}, error={"max_value": max_value})
    rates = ErrorRates(confidence, alpha)
    if metric == "accuracy":
        refuse_for(metric, block=block is not None)
        return measure_share(
            predictor, inputs, labels, min_value=limit, rates=rates, output=output, decode=decode, slices=slices
        )
    refuse_for(metric, decode=decode != "argmax")
    return measure_error(
        predictor,
        inputs,
        labels,
        metric=metric,
        max_value=limit,
        rates=rates,
        output=output,
        slices=slices,
        block=block,
    )


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
    decode: Decoding = "argmax",
    slices: Slices | None = None,
    block: int | None = None,
) -> Evidence:
    """Evidence that `candidate` loses at most `max_drop` of the reference's accuracy, or adds `max_rise` to its error.

    Both answer the same rows and are judged in pairs; `labels`, `output`, `decode`, `slices` and `block` as in
    `measure_accuracy`.

    `metric="accuracy"`: `max_drop`, a difference of shares (0.01 is one percentage point). Only the rows on which one
    is right and the other wrong say anything: Tango's score interval for the difference of paired proportions. A row on
    which the candidate's scores hold NaN counts as wrong and is told. Assumes rows drawn independently from what the
    model will meet. The levels of a score interval are asymptotic: a model that sits exactly on its budget with about
    ten discordant rows passes with up to 7 % instead of 5 % and fails with up to 0.4 % instead of 0.1 % (see
    `paired_difference_bounds`).

    `metric="mae"` or `"rmse"`: `max_rise`, a difference of errors in the units of the target. At 0 the candidate has to
    be shown no worse than its reference, below 0 better by that much; an equal model is INCONCLUSIVE there. The
    interval is that of the mean difference of losses, row by row; for the RMSE by the delta method. Differences that
    show dependence between rows, in spite of `block` or for want of it, are never judged: INCONCLUSIVE.

    Raises InputError where the reference answers with NaN, or for an error metric infinities (it cannot judge), and
    otherwise as `measure_accuracy` does.
    """
    limit = limit_of(metric, score={"max_drop": max_drop}, error={"max_rise": max_rise})
    rates = ErrorRates(confidence, alpha)
    if metric == "accuracy":
        refuse_for(metric, block=block is not None)
        return measure_drop(
            candidate,
            reference,
            inputs,
            labels,
            max_drop=limit,
            rates=rates,
            output=output,
            decode=decode,
            slices=slices,
        )
    refuse_for(metric, decode=decode != "argmax")
    return measure_rise(
        candidate,
        reference,
        inputs,
        labels,
        metric=metric,
        max_rise=limit,
        rates=rates,
        output=output,
        slices=slices,
        block=block,
    )
