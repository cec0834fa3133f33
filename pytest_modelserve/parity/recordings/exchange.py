"""One request and its answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import digest_of
from pytest_modelserve.serving import Inputs

Outputs = Mapping[str, NDArray[Any]]


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


def request_key(inputs: Inputs) -> str:
    """A digest of `inputs`: a mapping that holds one array is the same request as the array, whatever its name."""
    if isinstance(inputs, Mapping):
        if len(inputs) != 1:
            return digest_of({name: _plain(array) for name, array in inputs.items()})
        (inputs,) = inputs.values()
    return digest_of(_plain(inputs))


def answer_key(outputs: Outputs) -> str:
    """A digest of `outputs`, names included."""
    return digest_of({name: _plain(array) for name, array in outputs.items()})


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """Text in one form, however it is stored, because files and onnxruntime store it in different ones."""
    return array.astype(object) if array.dtype.kind in "UT" else np.asarray(array)
