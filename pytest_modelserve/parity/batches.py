"""Inputs in one piece or as a stream of batches, and what they count as."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from pytest_modelserve.errors import InputError
from pytest_modelserve.parity.predicting import Inputs, rows_of


def batches_of(inputs: Inputs | Iterable[Inputs]) -> Iterator[Inputs]:
    """The batches: an array or a mapping is one, anything else gives one after the other and is taken once.

    InputError for what is neither, and for a batch that is no array and no mapping.
    """
    if isinstance(inputs, (np.ndarray, Mapping)):
        yield inputs
        return
    if isinstance(inputs, (str, bytes)) or not isinstance(inputs, Iterable):
        raise InputError(
            f"the inputs are a {type(inputs).__name__}: give an array, a mapping from names to arrays, or an iterable "
            "of such batches"
        )
    for index, batch in enumerate(inputs):
        if not isinstance(batch, (np.ndarray, Mapping)):
            raise InputError(
                f"batch {index} of the inputs is a {type(batch).__name__}: every batch is an array or a mapping from "
                "names to arrays"
            )
        yield batch


def batch_rows(batch: Inputs) -> int | None:
    """The number of rows of a batch; None where its arrays have no common first axis, so that it is one call.

    InputError for a batch of zero rows.
    """
    arrays = batch.values() if isinstance(batch, Mapping) else [batch]
    if len({np.shape(array)[:1] for array in arrays}) != 1 or any(np.ndim(array) == 0 for array in arrays):
        return None
    return rows_of(batch)


def some_rows(batch: Inputs, limit: int, *, first: int = 0) -> Inputs:
    """At most `limit` rows of a batch that has rows, from row `first` on; else the whole."""
    if batch_rows(batch) is None:
        return batch
    if isinstance(batch, Mapping):
        return {name: array[first : first + limit] for name, array in batch.items()}
    return batch[first : first + limit]
