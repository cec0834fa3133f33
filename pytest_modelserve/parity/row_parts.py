"""Outputs of models over the rows of one batch, in parts, so that memory does not grow with the number of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pytest_modelserve.metrics import Outputs
from pytest_modelserve.serving import Predictor
from pytest_modelserve.serving.conversion import Frame
from pytest_modelserve.serving.inputs import Inputs, batch_size, slice_rows
from pytest_modelserve.serving.ready_outputs import ReadyOutputs

# Up to so many rows are one call, as the caller wrote it.
MAX_ROWS_OF_ONE_CALL = 1024
# Rows of the first part, which shows the size of a row's outputs, and the fewest of any other.
_FIRST_ROWS = 64
# Inputs and outputs of all models for one part.
_PART_BYTES = 2 * 2**20

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class RowPart:
    """Outputs of each model for `rows` rows from row `start` on; `rows` is None for a batch without rows.

    `is_whole` tells the outputs of one call over all rows.
    """

    start: int
    rows: int | None
    outputs: tuple[Outputs, ...]
    is_whole: bool = False


class WholeBatchError(Exception):
    """The parts of a batch are not enough: all of its rows have to be in one call."""


def over_parts(
    models: Sequence[Predictor],
    batch: Inputs,
    consume: Callable[[Iterator[RowPart]], Result],
    *,
    is_one_call: bool = False,
) -> Result:
    """Return what `consume` makes of the outputs of all rows: in parts where rows are independent calls, else in one.

    A batch of at most 1,024 rows is one call, as are models with a fixed batch size, recordings, and models with an
    output that does not have one row for each row. An error in a part is raised by the whole batch, with its row
    numbers, if that has it as well.
    """
    rows = batch_size(batch)
    splits = not is_one_call and not any(map(_takes_whole_batches, models))
    if splits and rows is not None and rows > MAX_ROWS_OF_ONE_CALL:
        try:
            return consume(_parts(models, batch, rows))
        except Exception:  # also a model's own, for which a part has too few rows
            pass
    outputs = tuple(model.predict(batch) for model in models)
    return consume(iter([RowPart(0, rows, outputs, is_whole=True)]))


def _parts(models: Sequence[Predictor], batch: Inputs, rows: int) -> Iterator[RowPart]:
    start, wanted = 0, _FIRST_ROWS
    while start < rows:
        count = rows - start if rows - start < wanted + _FIRST_ROWS else wanted
        inputs = slice_rows(batch, count, first=start)
        outputs = tuple(model.predict(inputs) for model in models)
        arrays = [array for of_model in outputs for array in of_model.values()]
        if any(np.shape(array)[:1] != (count,) for array in arrays):
            raise WholeBatchError
        size = sum(array.nbytes for array in (*_arrays(inputs), *arrays))
        yield RowPart(start, count, outputs)
        del arrays, outputs  # before the next ones are computed
        start, wanted = start + count, max(_FIRST_ROWS, _PART_BYTES * count // max(size, 1))


def _arrays(inputs: Inputs) -> Iterator[np.ndarray]:
    if not isinstance(inputs, Frame):
        yield from inputs.values() if isinstance(inputs, Mapping) else [inputs]


def _takes_whole_batches(model: Predictor) -> bool:
    if model.transport == "recorded" and not isinstance(model, ReadyOutputs):
        return True
    return model.signature is not None and any(
        isinstance(spec.shape[0], int) for spec in model.signature.inputs if spec.shape
    )
