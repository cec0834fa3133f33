"""Columns of a frame, or inputs of one value a row, as one table that an attack can change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.robustness.batched_predictor import BatchedPredictor
from pytest_modelserve.robustness.coordinates import Feed

TABLE = "columns"
"""The name of the joined input."""


class FeatureTable(BatchedPredictor):
    """A predictor that takes its numeric columns as one input (n, columns), and the others as they are.

    Columns of integers are whole numbers of the table; floats of one dtype keep it, so that rows are exact.
    """

    def __init__(self, batch: BatchedPredictor, feed: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(batch.predictor, batch_size=batch.batch_size, pass_array=False)
        self.columns = {name: array for name, array in feed.items() if _is_column(array)}
        self.order = list(feed)
        floats = {array.dtype for array in self.columns.values() if array.dtype.kind == "f"}
        if len(floats) > 1:
            raise InputError(
                f"inputs has columns of {', '.join(sorted(map(str, floats)))}: cast the numbers to one dtype of floats"
            )
        self.dtype = next(iter(floats), np.dtype(np.float64))
        for name, array in self.columns.items():
            if (array.astype(self.dtype).astype(array.dtype) != array).any() and not _has_nan(array):
                advice = "make it text" if self.dtype == np.float64 else "cast the floats to float64"
                raise InputError(
                    f"inputs column {name!r} of {array.dtype} has values that {self.dtype}, in which the columns are "
                    f"attacked together, cannot hold: {advice}, or leave the column out"
                )

    @property
    def names(self) -> list[str]:
        """The names of the joined columns."""
        return list(self.columns)

    @property
    def whole(self) -> list[int]:
        """The numbers of the columns of integers."""
        return [number for number, array in enumerate(self.columns.values()) if array.dtype.kind in "iu"]

    def join(self, feed: Mapping[str, NDArray[Any]]) -> Feed:
        """Return inputs by name with their columns as one table."""
        table = np.stack([feed[name].reshape(-1).astype(self.dtype) for name in self.columns], axis=1)
        return {TABLE: table, **{name: array for name, array in feed.items() if name not in self.columns}}

    def split(self, feed: Mapping[str, NDArray[Any]]) -> Feed:
        """Return the inputs as the model takes them."""
        parts = dict(zip(self.columns, feed[TABLE].T, strict=True))
        return {name: self._column(name, parts[name]) if name in parts else feed[name] for name in self.order}

    def predict(self, inputs: Feed) -> Feed:
        """Return the outputs for a table and the other inputs."""
        return super().predict(self.split(inputs))

    def _column(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        array = self.columns[name]
        return np.ascontiguousarray(values.astype(array.dtype)).reshape(len(values), *array.shape[1:])


def is_table(feed: Mapping[str, NDArray[Any]], *, by_name: bool) -> bool:
    """Return True for inputs of one value a row, at least one of them a number, and given by name if there is one."""
    one_value = all(array.size == len(array) for array in feed.values())
    return (len(feed) > 1 or by_name) and one_value and any(map(_is_column, feed.values()))


def served_feed(predictor: BatchedPredictor, feed: Feed) -> Feed:
    """Return inputs as the model takes them."""
    return predictor.split(feed) if isinstance(predictor, FeatureTable) else feed


def _is_column(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "fiu" and array.size == len(array)


def _has_nan(array: NDArray[Any]) -> bool:
    return array.dtype.kind == "f" and bool(np.isnan(array).any())
