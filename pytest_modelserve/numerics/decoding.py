"""From a model's scores to class labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.numerics.labels import class_labels

DecodingName = Literal["argmax", "threshold", "labels"]
Decoding = DecodingName | Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Decoded:
    """One label a row, integers or strings `(n,)`; where `invalid` `(n,)` is True the scores held NaN and the label
    means nothing."""

    labels: NDArray[Any]
    invalid: NDArray[np.bool_]


def decode(scores: NDArray[Any], how: Decoding) -> Decoded:
    """The label of every row of `scores`, and which rows hold NaN.

    "argmax": scores `(n, classes)` with at least two classes; the label is the column of the highest score, the first
    of equals. "threshold": `(n,)` or `(n, 1)`, the probability of class 1; the label is 1 from 0.5 on and 0 below. For
    logits, whose threshold is 0, give a callable: `lambda scores: (scores > 0).astype(int)`. "labels": `(n,)` or
    `(n, 1)`, labels already; floats have to be whole numbers. A callable is given `scores` as they are and returns the
    labels `(n,)`.

    Zero rows decode to zero labels. Raises UsageError for an unknown name, InputError for a shape or dtype that does
    not fit, and for labels that are neither integers, booleans, whole numbers nor strings.
    """
    if not isinstance(scores, np.ndarray):
        raise InputError(f"scores to decode are a numpy array, not {type(scores).__name__}")
    if scores.ndim == 0:
        raise InputError("scores to decode have one row an input: a single number has none")
    if callable(how):
        labels = how(scores)
    elif how == "argmax":
        labels = _argmax(scores)
    elif how == "threshold":
        labels = (_column(scores, how) >= 0.5).astype(np.int64)
    elif how == "labels":
        labels = _column(scores, how)
    else:
        raise UsageError(unknown_choice("decode", how, get_args(DecodingName)) + ", or a callable")
    invalid = _rows_with_nan(scores)
    return Decoded(class_labels(_one_a_row(labels, scores), what="answers", blank=invalid), invalid)


def _argmax(scores: NDArray[Any]) -> NDArray[Any]:
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise InputError(
            f"decode='argmax' needs scores of shape (rows, classes) with at least two classes, not {scores.shape}; "
            "for one score a row use decode='threshold', for labels decode='labels'"
        )
    if scores.dtype.kind not in "fiub":
        raise InputError(f"decode='argmax' needs numbers, not {scores.dtype}; for labels use decode='labels'")
    labels: NDArray[Any] = scores.argmax(axis=1)
    return labels


def _column(scores: NDArray[Any], how: str) -> NDArray[Any]:
    if scores.ndim > 2 or (scores.ndim == 2 and scores.shape[1] != 1):
        raise InputError(
            f"decode={how!r} needs one value a row, shape (rows,) or (rows, 1), not {scores.shape}; "
            "for one score a class use decode='argmax'"
        )
    if how == "threshold" and scores.dtype.kind != "f":
        raise InputError(f"decode='threshold' needs probabilities, not {scores.dtype}; for labels use decode='labels'")
    return scores.reshape(-1)


def _rows_with_nan(scores: NDArray[Any]) -> NDArray[np.bool_]:
    if scores.dtype.kind != "f":
        return np.zeros(len(scores), dtype=np.bool_)
    rows: NDArray[np.bool_] = np.isnan(scores).any(axis=tuple(range(1, scores.ndim)))
    return rows


def _one_a_row(labels: object, scores: NDArray[Any]) -> NDArray[Any]:
    """What a decoding returned, checked for its length; a user's callable may return anything."""
    if not isinstance(labels, np.ndarray):
        raise InputError(f"decode= returned {type(labels).__name__}: a numpy array of one label a row is needed")
    if labels.shape[:1] != scores.shape[:1]:
        raise InputError(f"decode= returned shape {labels.shape} for {len(scores)} rows: one label a row is needed")
    return labels
