"""The one number of an answer that a relation judges."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.numerics import kind_of
from pytest_modelserve.robustness.coordinates import Feed
from pytest_modelserve.robustness.relations.tolerance import Tolerance, chosen


def element_of(outputs: Feed, output: str | None, element: int | None) -> tuple[str, NDArray[Any]]:
    """The output that is meant, and of each row its number at `element`, (n,).

    UsageError where several outputs, or several numbers a row, leave open which is meant, and for what has no order.
    """
    found = chosen(outputs, output)
    if len(found) != 1:
        raise UsageError(f"the model has {len(found)} outputs: say which one by output=")
    ((name, array),) = found.items()
    numbers = array.reshape(len(array), -1)
    if numbers.shape[1] != 1 and element is None:
        raise UsageError(f"output {name!r} has {numbers.shape[1]} numbers a row: say which one by element=")
    if element is not None and not -numbers.shape[1] <= element < numbers.shape[1]:
        raise UsageError(f"output {name!r} has {numbers.shape[1]} numbers a row: there is no element {element}")
    if kind_of(array.dtype) not in ("real", "exact"):
        raise UsageError(f"output {name!r} is {array.dtype.name}, which has no order")
    return name, numbers[:, element or 0]


def element_room(tolerance: Tolerance, answers: NDArray[Any], magnitude: float) -> NDArray[np.float64]:
    """What is tolerated of each of some numbers, in their shape."""
    if kind_of(answers.dtype) != "real":
        return np.full(answers.shape, 0.5)  # whole numbers move by one or not at all
    return tolerance.room(answers.reshape(-1, 1), magnitude).reshape(answers.shape)
