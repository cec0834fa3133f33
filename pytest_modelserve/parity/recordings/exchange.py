"""Recorded requests with their outputs, and the interface of the files that store them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from numpy.typing import NDArray

from pytest_modelserve.serving import Inputs


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """What a model was given, an array or a mapping of arrays, and the outputs that it answered, by name."""

    inputs: Inputs
    outputs: Outputs


class StoredExchanges(Sequence[Exchange]):
    """Exchanges that are read from a file, each when it is asked for."""

    __slots__ = ()

    @abstractmethod
    def read(self, index: int) -> Exchange:
        """The exchange at `index`; IndexError beyond the last."""

    @overload
    def __getitem__(self, index: int) -> Exchange: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Exchange]: ...
    def __getitem__(self, index: int | slice) -> Exchange | Sequence[Exchange]:
        if isinstance(index, slice):
            return [self.read(place) for place in range(len(self))[index]]
        return self.read(index)


Outputs = Mapping[str, NDArray[Any]]
