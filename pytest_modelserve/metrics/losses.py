"""Losses of each row: absolute and squared errors, log loss and Brier score."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.metrics.classification import class_labels

Loss = Literal["absolute", "squared"]


def row_losses(predictions: NDArray[Any], targets: ArrayLike, loss: Loss) -> NDArray[np.float64]:
    """Return the absolute or squared error of each row, (n,), in the units of the target or their square.

    `predictions` and `targets` are numbers of one shape (n, ...); a row of several is averaged. Differences are taken
    in float64. A row in which a prediction is not finite has a loss that is not finite.

    InputError for arrays of another dtype, for shapes that differ or hold nothing, and for targets that are not finite;
    UsageError for an unknown loss.
    """
    if loss not in get_args(Loss):
        raise UsageError(unknown_choice("loss", loss, get_args(Loss)))
    predictions, truth = paired_numbers(predictions, targets)
    with np.errstate(over="ignore", invalid="ignore"):
        errors = np.abs(predictions - truth).reshape(len(truth), -1)
        losses: NDArray[np.float64] = (errors if loss == "absolute" else errors**2).mean(axis=1)
    return losses


def row_squares(
    predictions: NDArray[Any], targets: ArrayLike, weights: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the squared error of each row and the squared distance of its target from the mean target, both (n,).

    R², the coefficient of determination, is 1 less the ratio of their sums; with several numbers a row it is weighted
    by variance. The mean target counts rows `weights` (n,) times. InputError as for `row_losses`, and for targets that
    are all equal.
    """
    predictions, truth = paired_numbers(predictions, targets)
    predictions, truth = predictions.reshape(len(truth), -1), truth.reshape(len(truth), -1)
    spread = ((truth - np.average(truth, axis=0, weights=weights)) ** 2).sum(axis=1)
    if not np.ptp(truth, axis=0).any():
        raise InputError(f"all {len(truth)} targets are equal: R² is undefined without variance")
    with np.errstate(over="ignore", invalid="ignore"):
        return ((predictions - truth) ** 2).sum(axis=1), spread


def paired_numbers(predictions: NDArray[Any], targets: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return predictions and targets of one shape (n, ...) in float64; InputError as for `row_losses`."""
    truth = _numbers("targets", np.asarray(targets))
    predictions = _numbers("predictions", predictions)
    if truth.shape != predictions.shape:
        raise InputError(
            f"targets have shape {truth.shape} where the predictions have {predictions.shape}: give one target for "
            f"each predicted number{_hint(truth, predictions)}"
        )
    if not truth.ndim or not truth.size:
        raise InputError(f"targets must have at least one row; got shape {truth.shape}")
    _check_finite(truth)
    return predictions, truth


def _numbers(what: str, values: NDArray[Any]) -> NDArray[np.float64]:
    if values.dtype.kind not in "fiu":
        raise InputError(f"{what} must be numbers; got dtype {values.dtype}")
    return values.astype(np.float64)


def _hint(truth: NDArray[Any], predictions: NDArray[Any]) -> str:
    return f", targets.reshape{predictions.shape}" if truth.size == predictions.size and truth.size else ""


def _check_finite(truth: NDArray[np.float64]) -> None:
    bad = np.flatnonzero(~np.isfinite(truth).reshape(len(truth), -1).all(axis=1))
    if bad.size:
        raise InputError(
            f"targets hold NaN or infinities in {bad.size} of {len(truth)} rows, first in row {bad[0]}: leave out the "
            "rows without a target"
        )


Scores = Literal["logits", "probabilities"]

# How much the sum of the probabilities of a row may differ from 1. In simulations, float16 differs by less than 0.001,
# and ten classes in 255 steps by up to 0.012, or 0.036 where the calibrated scale clips the highest.
SUM_TOLERANCE = 0.05


def row_log_losses(scores: NDArray[Any], labels: ArrayLike, kind: Scores) -> NDArray[np.float64]:
    """Return the log loss of each row, (n,): minus the logarithm of the probability of its label, at least 0.

    `scores` are `(n, classes)`, whose columns are the classes 0, 1, …, or `(n,)` or `(n, 1)` for class 1 of two. The
    probabilities of logits are the softmax, or the logistic function of a single column, without underflow.
    Probabilities are divided by their sums, which may differ from 1 by up to 0.05, and clipped to [ε, 1 − ε], with ε
    the epsilon of their dtype, so that a rounded 0 gives a finite loss. A row with a NaN or an infinite logit has the
    loss NaN.

    Raises InputError for labels that are not column numbers, for another number of rows and for scores that contradict
    `kind`; UsageError for an unknown `kind`. Source: the logarithmic score, Good (1952), Journal of the Royal
    Statistical Society B 14, 107–114.
    """
    values = _checked(scores, kind)
    columns = label_columns(labels, values)
    if kind == "probabilities":
        tiny = float(np.finfo(scores.dtype if scores.dtype.kind == "f" else np.float64).eps)
        logarithms = np.log(np.clip(_distributions(values), tiny, 1 - tiny))
    else:
        logarithms = _log_softmax(values)
    losses = -logarithms[np.arange(len(values)), columns]
    return np.asarray(np.where(_not_finite(values), np.nan, losses))


def row_brier_scores(scores: NDArray[Any], labels: ArrayLike, kind: Scores) -> NDArray[np.float64]:
    """Return the Brier score of each row, (n,): the squared distance of its probabilities from its label.

    (p − y)² for two classes, from 0 to 1; the sum over the classes for more, from 0 to 2. Everything else as
    `row_log_losses`. Source: Brier (1950), Monthly Weather Review 78, 1–3.
    """
    values = _checked(scores, kind)
    columns = label_columns(labels, values)
    probabilities = _probabilities(values, kind)
    hits = np.zeros_like(probabilities)
    hits[np.arange(len(values)), columns] = 1
    distances = ((probabilities - hits) ** 2).sum(axis=1)
    return np.asarray(
        np.where(_not_finite(values), np.nan, distances / 2 if probabilities.shape[1] == 2 else distances)
    )


def class_probabilities(scores: NDArray[Any], kind: Scores) -> NDArray[np.float64]:
    """Return the probability of each class, (n, classes) with at least two columns; NaN in rows that are not finite.

    `scores` are read as by `row_log_losses`, and raise the same errors. Probabilities are divided by their sums.
    """
    values = _checked(scores, kind)
    with np.errstate(invalid="ignore"):
        return np.asarray(_probabilities(values, kind))


def _probabilities(values: NDArray[np.float64], kind: Scores) -> NDArray[np.float64]:
    return _distributions(values) if kind == "probabilities" else np.exp(_log_softmax(values))


def _checked(scores: NDArray[Any], kind: Scores) -> NDArray[np.float64]:
    """Return `scores` as float64 (n, columns) after checking that they can be of `kind`."""
    if kind not in get_args(Scores):
        raise UsageError(unknown_choice("scores", kind, get_args(Scores)))
    if scores.dtype.kind not in "fiu" or scores.ndim not in (1, 2) or scores.size == 0:
        raise InputError(
            f"scores={kind!r} needs numbers of shape (rows, classes), or (rows,) for class 1 of two; got shape "
            f"{scores.shape} of {scores.dtype}"
        )
    values = scores.astype(np.float64).reshape(len(scores), -1)
    whole = values[~np.isnan(values).any(axis=1)]
    inside = bool(((whole >= 0) & (whole <= 1)).all())
    sums = whole.sum(axis=1)
    if kind == "probabilities":
        if not inside:
            row = int(np.flatnonzero(((values < 0) | (values > 1)).any(axis=1))[0])
            raise InputError(
                f"scores='probabilities', but row {row} holds "
                f"{values[row][(values[row] < 0) | (values[row] > 1)][0]:g}: "
                "probabilities lie between 0 and 1; use scores='logits', or add a Softmax to the model"
            )
        if values.shape[1] > 1 and (np.abs(sums - 1) > SUM_TOLERANCE).any():
            row = int(np.flatnonzero(np.abs(values.sum(axis=1) - 1) > SUM_TOLERANCE)[0])
            raise InputError(
                f"scores='probabilities', but row {row} adds up to {values[row].sum():.4g}: the probabilities of a row "
                "add up to 1"
            )
    elif len(whole) and inside and _are_probabilities(whole, sums):
        raise InputError(
            f"scores='logits', but all {len(whole)} rows lie from 0 to 1"
            f"{' and add up to 1' if values.shape[1] > 1 else ' and cover that range'}: these are "
            "probabilities, so use scores='probabilities'"
        )
    return values


def _are_probabilities(whole: NDArray[np.float64], sums: NDArray[np.float64]) -> bool:
    """Return whether scores in [0, 1] can hardly be logits: they add up to 1, or a single column covers the range."""
    if whole.shape[1] > 1:
        return bool((np.abs(sums - 1) <= SUM_TOLERANCE).all())
    return float(whole.min()) < 0.05 and float(whole.max()) > 0.95


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log-softmax over the last axis, of the same shape; NaN where a row is not finite."""
    with np.errstate(invalid="ignore"):
        shifted = logits - logits.max(axis=-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _distributions(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if values.shape[1] == 1:
        return np.hstack([1 - values, values])
    return np.asarray(values / values.sum(axis=1, keepdims=True))


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return log_softmax(np.hstack([np.zeros_like(values), values]) if values.shape[1] == 1 else values)


def _not_finite(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray(~np.isfinite(values).all(axis=1))


def label_columns(labels: ArrayLike, values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the column of each row's label, (n,); one column of `values` (n, columns) is class 1 of two.

    InputError for labels that are not the numbers of columns, and for another number of rows.
    """
    truth = class_labels(np.asarray(labels), what="labels")
    classes = max(values.shape[1], 2)
    if len(truth) != len(values):
        raise InputError(f"there are {len(truth)} labels for {len(values)} rows of outputs")
    if truth.dtype.kind == "U":
        raise InputError(
            f"labels must be the column numbers of their probabilities, 0 to {classes - 1}; got strings (first "
            f"{truth[0].item()!r}): encode them, such as with np.searchsorted(sorted_classes, labels)"
        )
    outside = np.flatnonzero((truth < 0) | (truth >= classes))
    if outside.size:
        raise InputError(
            f"label {truth[outside[0]]} in row {outside[0]} has no column: the model gives probabilities of the "
            f"classes 0 to {classes - 1}"
        )
    return truth.astype(np.intp)
