"""Task metrics: what share of a model's answers is right."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.numerics.decoding import Decoded
from pytest_modelserve.numerics.labels import class_labels


def correct_rows(decoded: Decoded, labels: ArrayLike) -> NDArray[np.bool_]:
    """Whether each row's answer is its label, `(n,)`; a row whose scores held NaN is wrong.

    `labels` `(n,)`: integers, booleans, floats that are whole numbers, or strings. Raises InputError for zero rows,
    another length than the answers', NaN, a single class (a model that always gives that answer would be perfect), and
    numbers beside strings.
    """
    truth, answers = class_pairs(decoded, labels)
    correct: NDArray[np.bool_] = (answers == truth) & ~decoded.invalid
    return correct


def class_pairs(decoded: Decoded, labels: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Labels and answers that can be compared, (n,) each; raises InputError as `correct_rows` says."""
    truth = class_labels(np.asarray(labels), what="labels")
    answers = decoded.labels
    if len(truth) == 0 and len(answers) == 0:
        raise InputError("there are no rows: accuracy needs at least one row of each of two classes")
    if len(truth) != len(answers):
        raise InputError(f"there are {len(truth)} labels for {len(answers)} rows of outputs")
    if (truth.dtype.kind == "U") != (answers.dtype.kind == "U"):
        raise InputError(
            f"labels are {_told(truth)} and the model's answers are {_told(answers)}: give labels as the model answers "
            "them, or a callable as decode= that answers as the labels do"
        )
    if (truth == truth[0]).all():
        raise InputError(
            f"all {len(truth)} labels are {truth[0].item()!r}: on one class alone a model that always gives that "
            "answer is perfect; add rows of another class"
        )
    return truth, answers


def accuracy(decoded: Decoded, labels: ArrayLike) -> float:
    """The share of rows whose answer is the label, from 0 to 1; see `correct_rows`."""
    return float(correct_rows(decoded, labels).mean())


def _told(labels: NDArray[Any]) -> str:
    kind = "strings" if labels.dtype.kind == "U" else "integers"
    return f"{kind} (first {labels[0].item()!r})"
