"""What every served model offers, whatever answers behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self

from numpy.typing import NDArray

from pytest_modelserve.artifacts import Artifact, Signature
from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Subject

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


def check_threads(threads: int) -> int:
    """`threads` if it is a number of threads; UsageError for anything else."""
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise UsageError(f"threads is a whole number of at least 1, not {threads!r}")
    return threads
