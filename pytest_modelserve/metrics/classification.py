"""Classification: labels, decoding of scores, and the rows that count for accuracy, precision and recall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice


def class_labels(values: NDArray[Any], *, what: str, blank: NDArray[np.bool_] | None = None) -> NDArray[Any]:
    """Return class labels `(n,)` as integers or numpy strings.

    Booleans become 0 and 1, and integral floats integers; floats in rows marked in `blank` `(n,)` are ignored and
    become 0. InputError, starting with `what`, for another shape, NaN, fractions, and elements that are neither numbers
    nor strings.
    """
    if values.ndim != 1:
        raise InputError(f"{what} must have shape (rows,), one label per row; got {values.shape}{_hint(values)}")
    if values.dtype.kind in "iu":
        return values
    if values.dtype.kind == "b":
        return values.astype(np.int64)
    if values.dtype.kind == "f":
        return _whole(values, what, np.zeros(len(values), dtype=np.bool_) if blank is None else blank)
    if values.dtype.kind == "U":
        return values
    if values.dtype.kind in "OT":  # strings of onnxruntime, and numpy's variable-width text
        return _strings(values.astype(object), what)
    raise InputError(f"{what} must be integers or strings; got dtype {values.dtype}")


def _hint(values: NDArray[Any]) -> str:
    if values.ndim != 2:
        return ""
    return "; use labels.ravel()" if values.shape[1] == 1 else "; for one column per class use labels.argmax(axis=1)"


def _whole(values: NDArray[Any], what: str, blank: NDArray[np.bool_]) -> NDArray[Any]:
    missing = np.flatnonzero(np.isnan(values) & ~blank)
    if missing.size:
        raise InputError(
            f"{what} hold NaN in {missing.size} of {len(values)} rows, first in row {missing[0]}: "
            "leave out rows without a label"
        )
    known = np.where(blank, 0, values)
    fractions = np.flatnonzero((np.trunc(known) != known) | (np.abs(known) >= 2.0**63))
    if fractions.size:
        raise InputError(
            f"{what} hold {known[fractions[0]]} in row {fractions[0]}: class labels are whole numbers or strings"
        )
    return known.astype(np.int64)


def _strings(values: NDArray[Any], what: str) -> NDArray[Any]:
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise InputError(
                f"{what} hold {value!r} ({type(value).__name__}) in row {row}: class labels are all integers or all "
                "strings"
            )
    return values.astype(np.str_)


DecodingName = Literal["argmax", "threshold", "labels"]
Decoding = DecodingName | Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Decoded:
    """One label per row, integers or strings `(n,)`; rows marked in `invalid` `(n,)` had NaN scores."""

    labels: NDArray[Any]
    invalid: NDArray[np.bool_]


def decode(scores: NDArray[Any], how: Decoding | None = None) -> Decoded:
    """Decode `scores` to one label per row, and mark the rows with NaN.

    None: "labels" for integers, booleans and text with one value a row, which can be nothing else; otherwise "argmax".
    "argmax": scores `(n, classes)` with at least two classes; the label is the column of the highest score, the first
    of equals. "threshold": `(n,)` or `(n, 1)`, the probability of class 1; the label is 1 from 0.5 on and 0 below. For
    logits, whose threshold is 0, give a callable: `lambda scores: (scores > 0).astype(int)`. "labels": `(n,)` or
    `(n, 1)` labels; floats must be integral. A callable takes `scores` unchanged and returns the labels `(n,)`.

    Zero rows decode to zero labels. UsageError for an unknown name; InputError for a shape or dtype that does not fit,
    and for labels that are neither integers, booleans, integral floats nor strings.
    """
    if not isinstance(scores, np.ndarray):
        raise InputError(f"scores must be a numpy array; got {type(scores).__name__}")
    if scores.ndim == 0:
        raise InputError("scores must have one row for each input; got a single number")
    if how is None:
        is_column = scores.ndim == 1 or scores.shape[1:] == (1,)
        how = "labels" if is_column and scores.dtype.kind in "iubUOT" else "argmax"
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
    return Decoded(class_labels(_one_a_row(labels, scores), what="predictions", blank=invalid), invalid)


def _argmax(scores: NDArray[Any]) -> NDArray[Any]:
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise InputError(
            f"decode='argmax' needs scores of shape (rows, classes) with at least two classes, not {scores.shape}; "
            "for one score per row use output=ms.Output(decode='threshold'), for labels ms.Output(decode='labels')"
        )
    if scores.dtype.kind not in "fiub":
        raise InputError(f"decode='argmax' needs numbers, not {scores.dtype}; for labels use decode='labels'")
    labels: NDArray[Any] = scores.argmax(axis=1)
    return labels


def _column(scores: NDArray[Any], how: str) -> NDArray[Any]:
    if scores.ndim > 2 or (scores.ndim == 2 and scores.shape[1] != 1):
        raise InputError(
            f"decode={how!r} needs one value per row, shape (rows,) or (rows, 1), not {scores.shape}; "
            "for one score per class use decode='argmax'"
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
    """Check the length of decoded labels, as a user's callable may return anything."""
    if not isinstance(labels, np.ndarray):
        raise InputError(f"decode= must return a numpy array with one label per row; got {type(labels).__name__}")
    if labels.shape[:1] != scores.shape[:1]:
        raise InputError(f"decode= must return one label per row; got shape {labels.shape} for {len(scores)} rows")
    return labels


def correct_rows(decoded: Decoded, labels: ArrayLike, *, allow_one_class: bool = False) -> NDArray[np.bool_]:
    """Return whether each row's prediction is its label, `(n,)`; a row with NaN scores is wrong.

    `labels` `(n,)`: integers, booleans, integral floats, or strings. InputError for zero rows, another length than that
    of the predictions, NaN, a single class (a constant model would be perfect) unless it is allowed, and numbers mixed
    with strings.
    """
    truth, predictions = class_pairs(decoded, labels, allow_one_class=allow_one_class)
    correct: NDArray[np.bool_] = (predictions == truth) & ~decoded.invalid
    return correct


def class_pairs(
    decoded: Decoded, labels: ArrayLike, *, allow_one_class: bool = False
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return comparable labels and predictions, (n,) each; InputError as for `correct_rows`."""
    truth = class_labels(np.asarray(labels), what="labels")
    predictions = decoded.labels
    if len(truth) == 0 and len(predictions) == 0:
        raise InputError("there are no rows: accuracy needs at least one row of each of two classes")
    if len(truth) != len(predictions):
        raise InputError(f"there are {len(truth)} labels for {len(predictions)} rows of outputs")
    if (truth.dtype.kind == "U") != (predictions.dtype.kind == "U"):
        raise InputError(
            f"labels are {_label_kind(truth)} and predictions are {_label_kind(predictions)}: give labels of the same "
            "kind, or output=ms.Output(decode=) with a function that returns it, such as "
            "lambda scores: sorted_classes[scores.argmax(axis=1)]"
        )
    if not allow_one_class and (truth == truth[0]).all():
        raise InputError(
            f"all {len(truth)} labels are {truth[0].item()!r}, so a constant model would be perfect: "
            "add rows of another class"
        )
    return truth, predictions


def accuracy(decoded: Decoded, labels: ArrayLike) -> float:
    """Return the proportion of rows whose prediction is the label; see `correct_rows`."""
    return float(correct_rows(decoded, labels).mean())


def _label_kind(labels: NDArray[Any]) -> str:
    kind = "strings" if labels.dtype.kind == "U" else "integers"
    return f"{kind} (first {labels[0].item()!r})"


@dataclass(frozen=True, slots=True)
class ClassRows:
    """Rows of the class `label` among the labels `truth` and the `predictions`, (n,) each.

    Where `is_valid` (n,) is False the scores held NaN, and the row is predicted to be of no class.
    """

    label: int | str
    truth: NDArray[Any]
    predictions: NDArray[Any]
    is_valid: NDArray[np.bool_]

    @property
    def actual(self) -> NDArray[np.bool_]:
        """Rows with this label."""
        return np.asarray(self.truth == self.label)

    @property
    def predicted(self) -> NDArray[np.bool_]:
        """Rows predicted as this class."""
        return np.asarray((self.predictions == self.label) & self.is_valid)

    @property
    def hits(self) -> NDArray[np.bool_]:
        """True positives: rows with this label that are predicted as this class."""
        return self.actual & self.predicted


def class_rows(decoded: Decoded, labels: ArrayLike) -> tuple[ClassRows, ...]:
    """Return the rows of each class that occurs in `labels` (n,), in sorted order.

    A class that is only predicted is left out, so that two models are averaged over the same classes. InputError as for
    `correct_rows`.
    """
    truth, predictions = class_pairs(decoded, labels)
    return tuple(ClassRows(value.item(), truth, predictions, ~decoded.invalid) for value in np.unique(truth))


def positive_rows(decoded: Decoded, labels: ArrayLike, pos_label: int | str | None) -> ClassRows:
    """Return the rows of the class `pos_label`, by default 1 where the labels are 0 and 1.

    InputError as for `correct_rows`, for other labels without `pos_label`, and for a `pos_label` that is not a label.
    """
    truth, predictions = class_pairs(decoded, labels)
    positive = positive_label(truth, pos_label)
    return ClassRows(positive, truth, predictions, ~decoded.invalid)


def positive_label(truth: NDArray[Any], pos_label: int | str | None) -> int | str:
    """Return `pos_label` if it is among the labels `truth` (n,), by default 1 for labels 0 and 1; else InputError."""
    classes = [value.item() for value in np.unique(truth)]
    if pos_label is None:
        if classes == [0, 1]:
            return 1
        raise InputError(
            f"labels are {_format_labels(classes)}: give the positive class, such as "
            f"output=ms.Output(pos_label={classes[-1]!r}); precision, recall and F1 also have macro averages"
        )
    if isinstance(pos_label, str) is not isinstance(classes[0], str) or pos_label not in classes:
        raise InputError(f"pos_label={pos_label!r} is none of the labels, which are {_format_labels(classes)}")
    return pos_label


def _format_labels(classes: list[int | str]) -> str:
    text = ", ".join(map(repr, classes[:5]))
    return f"{text} and {len(classes) - 5} more" if len(classes) > 5 else text


def top_k_rows(scores: NDArray[Any], labels: ArrayLike, k: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return whether each row's label is among its `k` highest scores, and which rows hold NaN, (n,) each.

    `scores` `(n, classes)` with more than `k` classes; of equal scores the first column is the higher one. `labels`
    `(n,)` are column numbers. A row with NaN is wrong. InputError for other shapes, a label without a column, and as
    for `correct_rows`.
    """
    if scores.ndim != 2 or scores.dtype.kind not in "fiu":
        raise InputError(f"top-{k} accuracy needs scores of shape (rows, classes), not {scores.shape} {scores.dtype}")
    classes = scores.shape[1]
    if classes <= k:
        raise InputError(f"top-{k} accuracy needs more than {k} classes, got {classes}: use a smaller number")
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
    """Return one score per row for class 1, (n,): a single column, or the second column less the first.

    Its order is that of the probability of class 1, for logits and probabilities alike. InputError for scores that are
    not `(n,)`, `(n, 1)` or `(n, 2)` numbers.
    """
    if scores.dtype.kind not in "fiu" or scores.ndim not in (1, 2) or (scores.ndim == 2 and scores.shape[1] > 2):
        raise InputError(
            f"roc_auc needs one score per row, or one for each of two classes; got shape {scores.shape} of "
            f"{scores.dtype}: for more classes, return the score of one class, or pass a callable as metric="
        )
    values = scores.astype(np.float64).reshape(len(scores), -1)
    if values.shape[1] == 1:
        return values[:, 0]
    with np.errstate(invalid="ignore"):
        return np.asarray(values[:, 1] - values[:, 0])


def roc_curve(
    scores: NDArray[np.float64],
    positive: NDArray[np.bool_],
    weights: NDArray[np.float64] | None = None,
    *,
    points: int = 33,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return false and true positive rates (k,) over falling thresholds, from (0, 0) to (1, 1), k at most `points`.

    Rows of equal scores enter together; points are spread evenly along the curve. `scores` and `positive` are (n,),
    with at least one row of each class. Source: Fawcett (2006), Pattern Recognition Letters 27, 861-874.
    """
    order = np.argsort(-scores, kind="stable")
    weight = np.ones(len(scores)) if weights is None else weights
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    rates = []
    for rows in (~positive, positive):
        counted = np.cumsum((weight * rows)[order])
        rates.append(np.append(0.0, counted[last] / counted[-1]))
    along = rates[0] + rates[1]
    kept = np.unique(np.searchsorted(along, np.linspace(0, along[-1], points)).clip(max=along.size - 1))
    return rates[0][kept], rates[1][kept]
