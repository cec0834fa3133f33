"""One recorded request with its outputs, and the interface of the file formats."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

from pytest_modelserve.metrics import Outputs
from pytest_modelserve.serving import Inputs


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """One request and its outputs.

    Attributes:
        inputs: An array, or a mapping from input names to arrays.
        outputs: The outputs by name.
        redacted: What the inputs lack: "leave out" or "hash" by input, or by column ("x[3]").

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> exchange = ms.Exchange(np.zeros((1, 3)), {"y": np.zeros((1, 2))})
        >>> exchange.outputs["y"].shape
        (1, 2)
    """

    inputs: Inputs
    outputs: Outputs
    redacted: Mapping[str, str] = field(default_factory=dict)


class StoredExchanges(Sequence[Exchange]):
    """Exchanges of a file, each read on access."""

    __slots__ = ()

    @abstractmethod
    def read(self, index: int) -> Exchange:
        """Return the exchange at `index`; IndexError beyond the last, ArtifactError if the file was damaged since."""

    @overload
    def __getitem__(self, index: int) -> Exchange: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Exchange]: ...
    def __getitem__(self, index: int | slice) -> Exchange | Sequence[Exchange]:
        if isinstance(index, slice):
            return [self.read(at) for at in range(len(self))[index]]
        return self.read(index)
