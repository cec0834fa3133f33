"""How far a predictor's answers lie from their targets, row by row, and which of them are no numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.numerics import Loss, row_losses
from pytest_modelserve.parity.metric import ErrorMetric
from pytest_modelserve.parity.predicting import Inputs, chosen_output, rows_with_nan
from pytest_modelserve.serving import Predictor

LOSS_OF: dict[ErrorMetric, Loss] = {"mae": "absolute", "rmse": "squared"}


@dataclass(frozen=True, slots=True)
class Losses:
    """The loss of each row, (n,); how many of them are not finite, and the sentence on those."""

    values: NDArray[np.float64]
    broken: int = 0
    told: str = ""


def losses_of(
    predictor: Predictor,
    inputs: Inputs,
    targets: NDArray[Any],
    *,
    metric: ErrorMetric,
    output: str | None,
    may_be_broken: bool = True,
) -> Losses:
    """The losses that `metric` takes the mean of: absolute errors for the MAE, squared ones for the RMSE.

    InputError for targets that do not fit and, unless `may_be_broken`, for predictions that are not finite.
    """
    name, predictions = chosen_output(predictor, inputs, output)
    losses = row_losses(predictions, targets, LOSS_OF[metric])
    bad = np.flatnonzero(~np.isfinite(losses))
    if not bad.size:
        return Losses(losses)
    told = (
        f"output {name!r} of {predictor.subject} holds NaN or infinities in {bad.size} of {losses.size} rows, first in "
        f"row {bad[0]} ({rows_with_nan(inputs)} rows of the inputs hold NaN)"
    )
    if not may_be_broken:
        raise InputError(f"{told}: a reference without an answer cannot judge; clean the inputs or mend the reference")
    return Losses(losses, int(bad.size), told)


def in_units(mean_loss: float, metric: ErrorMetric) -> float:
    """A mean loss in the units of the target: the root of a mean square for the RMSE, itself for the MAE."""
    return math.sqrt(mean_loss) if metric == "rmse" else mean_loss
