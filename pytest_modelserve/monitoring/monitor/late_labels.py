"""Labels that come after the window: joined with the served rows by id."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.monitoring.monitor.state import ServedRows
from pytest_modelserve.settings import PROJECT_KEY_VARIABLE, key_check, project_key

_SHOWN = 3


def served_rows(ids: ArrayLike, outputs: ArrayLike, *, are_values: bool) -> ServedRows:
    """Return the served rows of a window: ids (n,), and the predictions of outputs (n, classes) or (n,).

    Ids are kept as hashes if there is a project key. Outputs (n,) are predicted numbers if `are_values`, else labels,
    or probabilities of class 1.

    Raises:
        InputError: Ids are missing or repeated, or their number is not that of the outputs.
    """
    keys, predictions = _ids(ids), np.asarray(outputs)
    if predictions.ndim == 2:
        predictions = predictions[:, 0] if predictions.shape[1] == 1 else predictions.argmax(axis=1)
    if predictions.shape != keys.shape:
        raise InputError(f"ids and outputs must have one entry for each row; got {keys.size} and {predictions.size}")
    predictions = _plain("outputs", predictions)
    if not are_values and predictions.dtype.kind == "f" and (predictions % 1 != 0).any():
        if not ((predictions >= 0) & (predictions <= 1)).all():
            raise InputError(
                "outputs (n,) must be labels or probabilities of class 1; for numbers, give within= to accuracy"
            )
        predictions = (predictions >= 0.5).astype(np.int64)
    key = project_key()
    kept = keys if key is None else _hashed(keys, key)
    return ServedRows(kept, predictions, predictions.copy(), np.zeros(keys.size, dtype=bool), key_check(key), keys)


def join_labels(served: ServedRows, ids: ArrayLike, labels: ArrayLike, *, window: str) -> tuple[ServedRows, int]:
    """Return the rows with their `labels`, and how many of these are new.

    Raises:
        InputError: Ids are unknown or repeated, labels are null or of another kind, or a row has another label already.
    """
    given, values = _ids(ids), _plain("labels", np.asarray(labels))
    keys = given
    if served.key_check:
        key = project_key()
        if key is None or key_check(key) != served.key_check:
            raise UsageError(
                f"ids of window {window!r} are kept as hashes with a project key: set {PROJECT_KEY_VARIABLE} to the "
                "key that it was checked with"
            )
        keys = _hashed(given, key)
    if values.shape != keys.shape:
        raise InputError(f"ids and labels must have one entry for each row; got {keys.size} and {values.size}")
    if not values.size:
        raise InputError("labels must have at least one row")
    if (keys.dtype.kind == "U") != (served.ids.dtype.kind == "U"):
        raise InputError(f"ids of window {window!r} are {_kind(served.ids)}, and those of the labels {_kind(keys)}")
    if (values.dtype.kind == "U") != (served.outputs.dtype.kind == "U"):
        raise InputError(
            f"labels must be of the kind of the outputs of window {window!r}: got {_kind(values)}, and the outputs are "
            f"{_kind(served.outputs)}"
        )
    order = np.argsort(served.ids, kind="stable")
    place = np.minimum(np.searchsorted(served.ids, keys, sorter=order), served.ids.size - 1)
    rows = order[place]
    unknown = given[served.ids[rows] != keys]
    if unknown.size:
        raise InputError(
            f"{unknown.size} of {keys.size} ids of the labels are not among the {served.ids.size} rows of window "
            f"{window!r}: {', '.join(map(repr, unknown[:_SHOWN].tolist()))}: check the window, and add nothing else"
        )
    known = served.known[rows]
    other = known & (served.labels[rows] != values)
    if other.any():
        first = int(np.flatnonzero(other)[0])
        raise InputError(
            f"{int(other.sum())} rows of window {window!r} have another label already, row {given[first].item()!r} for "
            f"example: {served.labels[rows[first]].item()!r}, now {values[first].item()!r}"
        )
    dtype = np.result_type(served.labels, values)
    all_labels, all_known = served.labels.astype(dtype), served.known.copy()
    all_labels[rows], all_known[rows] = values, True
    return ServedRows(served.ids, served.outputs, all_labels, all_known, served.key_check), int((~known).sum())


def wrong_predictions(served: ServedRows, *, within: float | None) -> tuple[int, int]:
    """Return how many rows are labeled, and how many of their predictions are wrong: unequal, or beyond `within`."""
    outputs, labels = served.outputs[served.known], served.labels[served.known]
    if within is None:
        return int(labels.size), int((outputs != labels).sum())
    return int(labels.size), int((np.abs(outputs.astype(np.float64) - labels.astype(np.float64)) > within).sum())


def _ids(ids: ArrayLike) -> NDArray[Any]:
    keys = np.asarray(ids)
    if keys.dtype.kind == "O" and all(isinstance(key, str) for key in keys.tolist()):
        keys = keys.astype(str)
    if keys.ndim != 1 or not keys.size or keys.dtype.kind not in "iuU":
        raise InputError(f"ids must be integers or text of shape (n,), at least one; got {keys.dtype} of {keys.shape}")
    unique, counts = np.unique(keys, return_counts=True)
    if unique.size < keys.size:
        repeated = unique[counts > 1][:_SHOWN].tolist()
        raise InputError(f"ids must be different; repeated: {', '.join(map(repr, repeated))}")
    return keys


def _hashed(ids: NDArray[Any], key: bytes) -> NDArray[Any]:
    """Return 32 hexadecimal digits for each id, of which integers and texts of the same digits differ."""
    return np.array(
        [
            hashlib.blake2b(repr(each).encode(), digest_size=16, key=key, person=b"id of a row").hexdigest()
            for each in ids.tolist()
        ]
    )


def _plain(name: str, values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind == "O" and all(isinstance(value, str) for value in values.tolist()):
        values = values.astype(str)
    if values.ndim != 1 or values.dtype.kind not in "biufU":
        raise InputError(f"{name} must be numbers or text of shape (n,), without nulls; got {values.dtype}")
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise InputError(f"{name} must not be NaN: leave rows out whose label is not known")
    return values


def _kind(values: NDArray[Any]) -> str:
    return "text" if values.dtype.kind == "U" else "numbers"
