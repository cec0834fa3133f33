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


def told_broken(
    predictor: Predictor, name: str, scores: NDArray[Any], bad: NDArray[np.intp], inputs: Inputs, *, what: str = "NaN"
) -> str:
    """The sentence on the rows `bad` (bad,) of `scores`, the output `name`, that hold `what`."""
    return (
        f"output {name!r} of {predictor.subject} holds {what} in {bad.size} of {len(scores)} rows, first in row "
        f"{bad[0]} ({_rows_with_nan(inputs)} rows of the inputs hold NaN)"
    )


def broken_reference(told: str, *, does: str = "that answers NaN") -> InputError:
    """The error for a reference of which `told` says that some rows are broken."""
    return InputError(f"{told}: a reference {does} cannot judge; clean the inputs or mend the reference")


def _rows_with_nan(inputs: Inputs) -> int:
    arrays = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
    found = np.zeros(len(arrays[0]), dtype=np.bool_)
    for array in arrays:
        if array.dtype.kind == "f":
            found |= np.isnan(array.reshape(len(array), -1)).any(axis=1)
    return int(found.sum())
