"""Labels of the rows: given beside the inputs, read from a file, or yielded with them by a DataLoader."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.serving.conversion import as_array, is_frame
from pytest_modelserve.serving.inputs import as_batch, as_one_batch, concat_batches, is_one_batch
from pytest_modelserve.serving.ready_outputs import FILE_SUFFIXES, read_outputs


def labeled_rows(inputs: Any, labels: Any) -> tuple[Any, NDArray[Any]]:
    """Return inputs and labels; those of an iterable of pairs, such as a DataLoader, are concatenated.

    Labels may be the path of a file, or a frame, with one column; or the name of a column of the inputs, or of an entry
    of every batch, which the model then does not get. UsageError for missing labels. InputError for labels without an
    array.
    """
    if isinstance(labels, str) and Path(labels).suffix.lower() not in FILE_SUFFIXES:
        return _split_labels(inputs, labels)
    if labels is not None:
        return as_one_batch(inputs), _as_labels(labels)
    if inputs is None or is_one_batch(inputs) or not isinstance(inputs, Iterable):
        raise UsageError(
            "labels is missing: pass one label for each row as labels=, beside ready outputs, too: "
            'assert_accuracy("predictions.csv", labels=labels, ...)'
        )
    pairs = [pair if isinstance(pair, (tuple, list)) and len(pair) == 2 else None for pair in inputs]
    if not pairs or None in pairs:
        raise UsageError(
            "labels is missing: inputs yields no pairs (inputs, labels), so pass labels=, an array or the name of the "
            "labels in each batch, such as labels='labels'"
        )
    batches, parts = zip(*((as_batch(x), as_array("labels", y)) for x, y in filter(None, pairs)), strict=True)
    return concat_batches(batches), np.concatenate(parts)


def _split_labels(inputs: Any, name: str) -> tuple[Any, NDArray[Any]]:
    """Return the inputs without their column `name`, and that column."""
    batches = [inputs] if inputs is None or is_one_batch(inputs) else list(inputs)
    if not batches or not all((isinstance(batch, Mapping) or is_frame(batch)) and name in batch for batch in batches):
        raise InputError(
            f"labels is {name!r}, which is no column of the inputs: pass an array, a tensor, a list, a column of a "
            f"frame, or the path of a file ({', '.join(FILE_SUFFIXES)}) with one column"
        )
    labels = np.concatenate([as_array("labels", batch[name]) for batch in batches])
    if is_frame(inputs):
        return inputs.drop(columns=[name]) if hasattr(inputs, "iloc") else inputs.drop(name), labels
    rest = [as_batch({key: value for key, value in batch.items() if key != name}) for batch in batches]
    return concat_batches(rest), labels


def _as_labels(labels: Any) -> NDArray[Any]:
    if isinstance(labels, (str, os.PathLike)):
        columns: Mapping[str, NDArray[Any]] = read_outputs(Path(labels))
    elif is_frame(labels):
        columns = as_batch(labels)  # type: ignore[assignment]  # of a frame a mapping
    else:
        return as_array("labels", labels)
    if len(columns) != 1:
        names = ", ".join(map(repr, columns))
        raise InputError(
            f"labels has {len(columns)} columns ({names}): pass the one that holds the labels, such as "
            "pandas.read_csv(path)['label']"
        )
    return next(iter(columns.values()))
