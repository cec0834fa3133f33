"""Scores as ranks: is the label among the highest k, and which number a ROC curve is drawn over."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.numerics.decoding import Decoded
from pytest_modelserve.numerics.metrics import class_pairs


def top_k_rows(scores: NDArray[Any], labels: ArrayLike, k: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each row's label is among its `k` highest scores, (n,), and which rows hold NaN and are therefore wrong.

    `scores` `(n, classes)` with more than `k` classes; of equal scores the first column is the higher one. `labels`
    `(n,)` are column numbers. Raises InputError for other shapes, a label without a column, and as `correct_rows` does.
    """
    if scores.ndim != 2 or scores.dtype.kind not in "fiu":
        raise InputError(f"top-{k} accuracy needs scores of shape (rows, classes), not {scores.shape} {scores.dtype}")
    classes = scores.shape[1]
    if classes <= k:
        raise InputError(f"among the {k} highest of {classes} classes every label is found: top-{k} says nothing here")
    invalid = np.isnan(scores).any(axis=1) if scores.dtype.kind == "f" else np.zeros(len(scores), dtype=np.bool_)
    highest = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :k]
    truth, _ = class_pairs(Decoded(highest[:, 0], invalid), labels)
    outside = np.flatnonzero((truth < 0) | (truth >= classes))
    if outside.size:
        raise InputError(
            f"label {truth[outside[0]]} in row {outside[0]} has no column: the model scores the classes 0 to "
            f"{classes - 1}"
        )
    return np.asarray((highest == truth[:, None]).any(axis=1) & ~invalid), np.asarray(invalid)


def positive_scores(scores: NDArray[Any]) -> NDArray[np.float64]:
    """One number a row, (n,), that rises with the belief in class 1: a single column, or the second less the first.

    The order is that of the probability of class 1, for logits and probabilities alike. Raises InputError for scores
    that are not `(n,)`, `(n, 1)` or `(n, 2)` numbers.
    """
    if scores.dtype.kind not in "fiu" or scores.ndim not in (1, 2) or (scores.ndim == 2 and scores.shape[1] > 2):
        raise InputError(
            f"an area under the ROC curve needs one score a row or one for each of two classes, not shape "
            f"{scores.shape} of {scores.dtype}; of more classes pick one in the model, or give a callable as metric="
        )
    values = scores.astype(np.float64).reshape(len(scores), -1)
    if values.shape[1] == 1:
        return values[:, 0]
    with np.errstate(invalid="ignore"):
        return np.asarray(values[:, 1] - values[:, 0])
