"""What both sides answer to the same inputs, and which of their outputs is judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.serving import Predictor

Inputs = NDArray[Any] | Mapping[str, NDArray[Any]]


def rows_of(inputs: Inputs) -> int:
    """The number of rows, the length of every input's first axis.

    InputError for none at all, for a scalar and for inputs of different lengths.
    """
    arrays = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
    lengths = {}
    for name, array in arrays.items():
        if np.ndim(array) == 0:
            raise InputError(f"{name!r} has no rows: it is a scalar")
        lengths[name] = len(array)
    if len(set(lengths.values())) > 1:
        raise InputError(f"inputs have different numbers of rows: {lengths}")
    rows = next(iter(lengths.values()), 0)
    if rows == 0:
        raise InputError("there are no rows to judge by: the inputs are empty")
    return rows


def chosen_output(predictor: Predictor, inputs: Inputs, output: str | None) -> tuple[str, NDArray[Any]]:
    """The name and value of the one output to judge; `output` is required where there are several.

    UsageError without it, or for a name that the model does not have.
    """
    outputs = predictor.predict(inputs)
    if output is None:
        if len(outputs) > 1:
            names = ", ".join(map(repr, outputs))
            raise UsageError(f"{predictor.subject} has several outputs: say which one by output=..., one of {names}")
        return next(iter(outputs.items()))
    if output not in outputs:
        raise UsageError(f"{predictor.subject}: {unknown_choice('output', output, outputs)}")
    return output, outputs[output]


def rows_with_nan(inputs: Inputs) -> int:
    """How many rows hold NaN in any input."""
    arrays = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
    found = np.zeros(len(arrays[0]), dtype=np.bool_)
    for array in arrays:
        if array.dtype.kind == "f":
            found |= np.isnan(array.reshape(len(array), -1)).any(axis=1)
    return int(found.sum())
