"""What attackers make of rows and answers: features, distributions and a small network, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.metrics import Scores, class_labels
from pytest_modelserve.serving.conversion import Frame

Floats = NDArray[np.float64]

_HIDDEN = 64
_PENALTY = 0.1
"""Half of the squared weights times this is added to the sum of the losses, so that it matters less with more rows."""
_ITERATIONS = 100
_LEAST_IMPROVEMENT = 1e-5
"""Copies of digits networks agree within 0.3 points of those after 300 iterations, in a quarter of the time."""
_MAX_CATEGORIES = 20
_MAX_FEATURES = 4_096


@dataclass(frozen=True, slots=True)
class _Scales:
    """Mean and standard deviation of numbers, (columns,) each, and which columns lacked some."""

    mean: Floats
    std: Floats
    lacks: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class FeatureEncoder:
    """An encoding of rows as standardized numbers (n, features), with the scales of the rows that it was made from.

    A number that is missing becomes the mean; columns that lacked numbers have an indicator. Text and booleans are
    one-hot, up to the 20 most frequent values.
    """

    columns: tuple[tuple[str, NDArray[Any] | _Scales], ...]

    @classmethod
    def of(cls, rows: Any) -> FeatureEncoder:
        """Return the encoding for rows like these: an array (n, ...), or a mapping of arrays.

        InputError for arrays that are neither numbers nor text, and for more than 4,096 numbers a row.
        """
        columns: list[tuple[str, NDArray[Any] | _Scales]] = []
        for name, values in _flat(rows).items():
            if values.dtype.kind in "iuf":
                known = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
                counts = np.isfinite(known).sum(axis=0)
                mean = np.where(counts > 0, np.nansum(known, axis=0) / np.maximum(counts, 1), 0.0)
                std = np.sqrt(np.nansum((known - mean) ** 2, axis=0) / np.maximum(counts, 1))
                columns.append((name, _Scales(mean, np.where(std > 0, std, 1.0), counts < len(known))))
            elif values.dtype.kind in "bUOT":
                for number, column in enumerate(values.T):
                    found, counts = np.unique(column.astype(np.str_), return_counts=True)
                    most = found[np.argsort(-counts, kind="stable")[:_MAX_CATEGORIES]]
                    columns.append((f"{name}\0{number}", most))
            else:
                raise InputError(f"inputs: {name!r} has dtype {values.dtype}, which is neither numbers nor text")
        width = sum(len(scales) if isinstance(scales, np.ndarray) else len(scales.mean) for _, scales in columns)
        if width > _MAX_FEATURES:
            raise InputError(
                f"inputs have {width:,} numbers a row, and the network of this attack takes {_MAX_FEATURES:,} at most"
            )
        return cls(tuple(columns))

    def encode(self, rows: Any) -> NDArray[np.float32]:
        """Return rows as (n, features)."""
        arrays, parts = _flat(rows), []
        for key, scales in self.columns:
            name, _, number = key.partition("\0")
            if isinstance(scales, np.ndarray):
                parts.append(arrays[name][:, int(number), None].astype(np.str_) == scales)
                continue
            values = arrays[name].astype(np.float64)
            known = np.isfinite(values)
            # Far outside the scale, a number would decide alone.
            parts.append(np.clip(np.where(known, (values - scales.mean) / scales.std, 0.0), -10, 10))
            parts.append(~known[:, scales.lacks])
        return np.concatenate([part.astype(np.float32) for part in parts], axis=1)


def _flat(rows: Any) -> dict[str, NDArray[Any]]:
    """Return the arrays of rows by name, each as (n, numbers)."""
    arrays = {name: np.asarray(values) for name, values in inputs_by_name(rows).items()}
    return {name: array.reshape(len(array), int(np.prod(array.shape[1:]))) for name, array in arrays.items()}


def inputs_by_name(rows: Any) -> Mapping[str, Any]:
    """Return rows as a mapping; an array alone is called ""."""
    return rows if isinstance(rows, Mapping) else {"": rows}


def take_rows(rows: Any, indices: NDArray[np.integer[Any]]) -> Any:
    """Return the rows with these numbers, of an array, a mapping of arrays or a frame."""
    if isinstance(rows, Frame):
        return rows.take(indices)
    if isinstance(rows, Mapping):
        return {name: np.asarray(values)[indices] for name, values in rows.items()}
    return np.asarray(rows)[indices]


def answer_distributions(scores: NDArray[Any], kind: Scores | None = None) -> Floats | None:
    """Return answers as distributions (n, classes), as an attacker reads them; None for labels.

    `scores` are (n, classes), or (n,) or (n, 1) for class 1 of two. Without `kind`, numbers from 0 to 1 and rows that
    add up to about 1 are probabilities, others logits.
    """
    if scores.dtype.kind != "f":
        return None
    values = scores.astype(np.float64).reshape(len(scores), -1)
    if values.shape[1] == 1:
        values = np.concatenate([np.zeros_like(values) if kind == "logits" else 1 - values, values], axis=1)
    # Answers that were rounded, cut to the highest or changed by noise are still probabilities.
    near = np.abs(values.sum(axis=1) - 1) < 0.25
    is_share = (values >= 0).all() and (values <= 1).all()
    if kind == "logits" or (kind is None and not is_share and not near.all()):
        exponentials = np.exp(values - values.max(axis=1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
    positive = np.maximum(values, 0)
    sums = positive.sum(axis=1, keepdims=True)
    return np.asarray(np.where(sums > 0, positive / np.where(sums > 0, sums, 1), 1 / values.shape[1]))


def columns_of_classes(
    labels: NDArray[Any], named: NDArray[Any], best: NDArray[np.integer[Any]], classes: int
) -> NDArray[np.intp]:
    """Return the column of probabilities of each label, (n,); a number from `classes` on for a label without one.

    A classifier of scikit-learn calls its classes by the labels of its training, in their order. `named` are its labels
    of some rows, and `best` the columns of their highest probability. InputError for labels of another kind.
    """
    answered = class_labels(named.reshape(-1), what="labels of the model")
    if (labels.dtype.kind in "iu") != (answered.dtype.kind in "iu"):
        raise InputError(
            f"labels are {labels[:1].tolist()} … and the model's are {answered[:1].tolist()} …: give labels of the "
            "same kind"
        )
    known = np.unique(np.concatenate([answered, labels]))
    if len(known) == classes:
        return np.asarray(np.searchsorted(known, labels))
    if known.dtype.kind in "iu" and known[0] >= 0 and known[-1] < classes:
        return np.asarray(labels, np.intp)
    votes = np.zeros((len(known), classes), np.intp)
    np.add.at(votes, (np.searchsorted(known, answered), best), 1)
    is_known = votes.any(axis=1)
    columns = np.where(is_known, votes.argmax(axis=1), classes - 1 + np.cumsum(~is_known))
    return np.asarray(columns[np.searchsorted(known, labels)])


@dataclass(frozen=True, slots=True)
class Surrogate:
    """A trained network: logits are linear in the features and in one hidden layer of 64 units."""

    weights: tuple[NDArray[np.float32], ...]

    def probabilities(self, features: NDArray[np.float32]) -> Floats:
        """Return the probability of each class, (n, classes)."""
        linear, bias, inner, offset, outer = self.weights
        return np.exp(_log_softmax(features @ linear + bias + np.tanh(features @ inner + offset) @ outer)).astype(
            np.float64
        )


def train_surrogate(features: NDArray[np.float32], targets: NDArray[Any], *, seed: int) -> Surrogate:
    """Return a network trained by L-BFGS on the cross-entropy with a fixed penalty on the weights.

    Args:
        features: Encoded rows (n, features).
        targets: A distribution over the classes for each row, (n, classes): one-hot labels, or probabilities.
        seed: Seed of the initial weights.
    """
    from scipy.optimize import minimize

    n, width, classes = len(features), features.shape[1], targets.shape[1]
    wanted = targets.astype(np.float32)
    rng = np.random.default_rng(seed)
    start = (
        np.zeros((width, classes)),
        np.zeros(classes),
        rng.normal(size=(width, _HIDDEN)) / np.sqrt(max(width, 1)),
        np.zeros(_HIDDEN),
        0.1 * rng.normal(size=(_HIDDEN, classes)) / np.sqrt(_HIDDEN),
    )
    shapes, ends = [part.shape for part in start], np.cumsum([part.size for part in start])[:-1]

    def split(flat: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
        parts = np.split(flat.astype(np.float32), ends)
        return tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))

    def loss(flat: NDArray[Any]) -> tuple[float, Floats]:
        linear, bias, inner, offset, outer = split(flat)
        hidden = np.tanh(features @ inner + offset)
        logarithms = _log_softmax(features @ linear + bias + hidden @ outer)
        error = np.exp(logarithms) - wanted
        back = (error @ outer.T) * (1 - hidden**2)
        gradients = (
            features.T @ error + _PENALTY * linear,
            error.sum(axis=0),
            features.T @ back + _PENALTY * inner,
            back.sum(axis=0),
            hidden.T @ error + _PENALTY * outer,
        )
        penalty = 0.5 * _PENALTY * sum(float((part**2).sum()) for part in (linear, inner, outer))
        total = penalty - float((wanted * logarithms).sum())
        return total / n, np.concatenate([part.ravel() for part in gradients]).astype(np.float64) / n

    flat = np.concatenate([part.ravel() for part in start])
    found = minimize(
        loss, flat, jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS, "ftol": _LEAST_IMPROVEMENT}
    )
    return Surrogate(split(found.x))


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
