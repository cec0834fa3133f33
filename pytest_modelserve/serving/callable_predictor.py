"""A plain function as a model: a reference, or a model that this package does not know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.serving.inputs import check_array
from pytest_modelserve.serving.outputs import named_outputs
from pytest_modelserve.serving.predictor import Inputs, Predictor


class CallablePredictor(Predictor):
    """Answers with what a function returns: one array, a flat mapping of arrays, or a flat tuple of them.

    The function is given what `predict` was given, an array or a mapping, as copies that it may change; what it returns
    is copied as well. Its exceptions pass through. There is no signature: which inputs fit, the function decides.
    """

    transport = "callable"

    def __init__(self, function: Callable[[Any], object], *, name: str | None = None, variant: str = "") -> None:
        super().__init__(Subject(_name_of(function) if name is None else name, variant))
        self._function = function

    def predict(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """The function's outputs, named by `named_outputs`.

        InputError for inputs that are not arrays, UsageError for a result that is not made of arrays.
        """
        if self.closed:
            raise self._closed_error()
        result = self._function(_copied(inputs))
        return {name: self._copied_output(name, value) for name, value in named_outputs(result).items()}

    def describe(self) -> str:
        """One line: the subject, and that a Python callable answers."""
        return f"{self.subject}, a Python callable"

    def _copied_output(self, name: str, value: object) -> NDArray[Any]:
        if isinstance(value, np.ndarray):
            return np.array(value)
        raise UsageError(
            f"{self.subject} returned a {type(value).__name__} as {name!r}, not a numpy array: convert it in the "
            "function"
        )


def _copied(inputs: object) -> Inputs:
    if isinstance(inputs, Mapping):
        return {name: np.array(check_array(f"input {name!r}", value)) for name, value in inputs.items()}
    return np.array(check_array("the input", inputs))


def _name_of(function: Callable[..., object]) -> str:
    """`__name__`, of what a functools.partial wraps where it is one, else the name of the object's class."""
    inner = getattr(function, "func", function)
    return str(getattr(inner, "__name__", type(function).__name__))
