"""How far each row's prediction lies from its target."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice

Loss = Literal["absolute", "squared"]


def row_losses(predictions: NDArray[Any], targets: ArrayLike, loss: Loss) -> NDArray[np.float64]:
    """The absolute or squared error of each row, (n,), in the units of the target or their square.

    `predictions` and `targets` are numbers of one shape (n, ...); a row of several is averaged. Differences are taken
    in float64. A row in which a prediction is not finite has a loss that is not finite.

    InputError for arrays of another dtype, for shapes that differ or hold nothing, and for targets that are not finite;
    UsageError for an unknown loss.
    """
    if loss not in get_args(Loss):
        raise UsageError(unknown_choice("loss", loss, get_args(Loss)))
    answers, truth = paired_numbers(predictions, targets)
    with np.errstate(over="ignore", invalid="ignore"):
        errors = np.abs(answers - truth).reshape(len(truth), -1)
        losses: NDArray[np.float64] = (errors if loss == "absolute" else errors**2).mean(axis=1)
    return losses


def row_squares(
    predictions: NDArray[Any], targets: ArrayLike, weights: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each row, (n,), the squared error and the squared distance of its target from the mean target, added up.

    1 less the ratio of their sums is R², the coefficient of determination; of several numbers a row the mean is taken
    number by number (R² weighted by variance). The mean counts rows `weights` (n,) times. Raises InputError as
    `row_losses` does, and for targets that are all equal, which leave nothing to explain.
    """
    answers, truth = paired_numbers(predictions, targets)
    answers, truth = answers.reshape(len(truth), -1), truth.reshape(len(truth), -1)
    spread = ((truth - np.average(truth, axis=0, weights=weights)) ** 2).sum(axis=1)
    if not np.ptp(truth, axis=0).any():
        raise InputError(f"all {len(truth)} targets are equal: R² is the share of their variance that is explained")
    with np.errstate(over="ignore", invalid="ignore"):
        return ((answers - truth) ** 2).sum(axis=1), spread


def paired_numbers(predictions: NDArray[Any], targets: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predictions and targets of one shape (n, ...) in float64; InputError as `row_losses` says."""
    truth = _numbers("targets", np.asarray(targets))
    answers = _numbers("predictions", predictions)
    if truth.shape != answers.shape:
        raise InputError(
            f"targets have shape {truth.shape} where the predictions have {answers.shape}: give one target for each "
            f"number that is predicted{_hint(truth, answers)}"
        )
    if not truth.ndim or not truth.size:
        raise InputError(f"targets have shape {truth.shape}: there is no row to judge by")
    _check_finite(truth)
    return answers, truth


def _numbers(what: str, values: NDArray[Any]) -> NDArray[np.float64]:
    if values.dtype.kind not in "fiu":
        raise InputError(f"{what} have dtype {values.dtype}: an error is taken of numbers")
    return values.astype(np.float64)


def _hint(truth: NDArray[Any], answers: NDArray[Any]) -> str:
    return f", targets.reshape{answers.shape}" if truth.size == answers.size and truth.size else ""


def _check_finite(truth: NDArray[np.float64]) -> None:
    bad = np.flatnonzero(~np.isfinite(truth).reshape(len(truth), -1).all(axis=1))
    if bad.size:
        raise InputError(
            f"targets hold NaN or infinities in {bad.size} of {len(truth)} rows, first in row {bad[0]}: leave out the "
            "rows that have no target"
        )
