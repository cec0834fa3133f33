"""The predictor interface, and a plain function as a predictor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Artifact, Signature
from pytest_modelserve.errors import InputError, ModelServeError, UsageError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.serving.conversion import Frame, as_array, is_frame
from pytest_modelserve.serving.pytree import named_outputs

if TYPE_CHECKING:
    from pytest_modelserve.signing.signature import CheckedCopy

Inputs = NDArray[Any] | Mapping[str, NDArray[Any]]
CPU = "CPUExecutionProvider"
Transport = Literal["in-process", "own process", "torch", "callable", "estimator", "recorded", "http", "grpc", "json"]

ENDPOINT_TRANSPORTS = ("http", "grpc", "json")


class Predictor(ABC):
    """A served model: arrays in, named arrays out. A context manager.

    Attributes:
        subject: Name of the model in evidence.
        signature: Inputs and outputs; None if they are not known before a call.
        transport: How the model is reached.
        artifact: The model's file; None if there is none.
        aliases: Other names of outputs, under which a conversion of the model returns them.
        is_thread_safe: Whether several threads may call `predict` at the same time; a load sends one request at a time
            otherwise.
        private_copy: The checked copy of the files that is served; `close` removes it.
    """

    transport: Transport
    artifact: Artifact | None = None
    aliases: Mapping[str, str] = MappingProxyType({})
    is_thread_safe: bool = True
    private_copy: CheckedCopy | None = None

    def __init__(self, subject: Subject, signature: Signature | None = None) -> None:
        self.subject = subject
        self.signature = signature
        self.closed = False

    @abstractmethod
    def predict(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the model's outputs by name, in the model's order.

        Args:
            inputs: One array for a model with one input, or a mapping from input names to arrays. They are not changed.

        Returns:
            Arrays that share no memory with those of another call.

        Raises:
            InputError: The inputs do not match the signature.
            UsageError: The predictor is closed.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return one line with the model and its runtime."""

    def close(self) -> None:
        """Release the model; may be called more than once."""
        self.closed = True
        if self.private_copy is not None:
            self.private_copy.close()

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


class ProcessCrashError(ModelServeError):
    """The process that serves a model crashed, or exceeded its time limit and was ended.

    `time_limit_s` is the exceeded limit, None after a crash.
    """

    def __init__(self, message: str, *, time_limit_s: float | None = None) -> None:
        super().__init__(message)
        self.time_limit_s = time_limit_s


class CallablePredictor(Predictor):
    """A function as a model; it returns one array, a mapping of arrays, or a tuple of them.

    The function gets copies of the inputs of `predict`, which it may change; its outputs are copied, too. Its
    exceptions propagate. It has no signature: the function decides which inputs it accepts.
    """

    transport = "callable"

    def __init__(self, function: Callable[[Any], object], *, name: str | None = None, variant: str = "") -> None:
        super().__init__(Subject(_name_of(function) if name is None else name, variant))
        self._function = function

    def predict(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the function's outputs, named by `named_outputs`.

        InputError for inputs that are not arrays, UsageError for outputs that are not arrays.
        """
        if self.closed:
            raise self._closed_error()
        result = self._function(_copied(inputs))
        return {name: self._copied_output(name, value) for name, value in named_outputs(result).items()}

    def describe(self) -> str:
        """Return one line: the subject, and that it is a Python callable."""
        return f"{self.subject}, a Python callable"

    def _copied_output(self, name: str, value: object) -> NDArray[Any]:
        try:
            return np.array(as_array(f"output {name!r}", value))
        except InputError as error:
            raise UsageError(
                f"{self.subject} returned a {type(value).__name__} as {name!r}, which is no array: convert it in the "
                "function"
            ) from error


def is_url(target: object) -> bool:
    """Return True for the URL of a model behind a server."""
    return isinstance(target, str) and target.strip().lower().startswith(("http://", "https://", "grpc://", "grpcs://"))


def _copied(inputs: object) -> Any:
    """Return copies of the arrays; a frame stays a frame, because the function takes what the caller holds."""
    native: Any = inputs.native if isinstance(inputs, Frame) else inputs
    if is_frame(native):
        return native.copy() if hasattr(native, "copy") else native.clone()
    if isinstance(inputs, Mapping):
        return {name: np.array(as_array(f"input {name!r}", value)) for name, value in inputs.items()}
    return np.array(as_array("the input", inputs))


def _name_of(function: Callable[..., object]) -> str:
    """Return `__name__`, of the wrapped function for a functools.partial; otherwise the name of the class."""
    inner = getattr(function, "func", function)
    return str(getattr(inner, "__name__", type(function).__name__))
