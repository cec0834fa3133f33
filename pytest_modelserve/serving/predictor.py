"""What every served model offers, whatever answers behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Artifact, Signature
from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.serving.inputs import check_array
from pytest_modelserve.serving.pytree import named_outputs

if TYPE_CHECKING:
    pass


Inputs = NDArray[Any] | Mapping[str, NDArray[Any]]
Transport = Literal["in-process", "own process", "torch", "callable", "recorded"]


class Predictor(ABC):
    """A model that answers: arrays in, named arrays out.

    `subject` is what evidence calls it, `signature` what it takes and gives (None where that is not known before a
    call), `transport` how it is reached, `artifact` the file behind it, None where there is none. A context manager;
    `close` may be called more than once, and `predict` after it is a UsageError.
    """

    transport: Transport
    artifact: Artifact | None = None

    def __init__(self, subject: Subject, signature: Signature | None = None) -> None:
        self.subject = subject
        self.signature = signature
        self.closed = False

    @abstractmethod
    def predict(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """The model's outputs by name, in the model's order.

        `inputs` is one array for a model with one input, or a mapping from input names to arrays. The inputs are not
        changed, and no two calls share an output's memory.
        """

    @abstractmethod
    def describe(self) -> str:
        """One line that says which model answers and on what."""

    def close(self) -> None:
        """Let go of the model."""
        self.closed = True

    def _closed_error(self) -> UsageError:
        return UsageError(f"the predictor of {self.subject} is closed: serve the model again, or close it later")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.describe()}{', closed' if self.closed else ''}>"


# A plain function as a model: a reference, or a model that this package does not know.


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


# The predictor that fits what is to be served.
