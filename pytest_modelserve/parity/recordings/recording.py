"""Recorded answers as a predictor: of the inputs that it knows, it gives what was answered then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import ArtifactError, InputError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.parity.recordings.exchange import Exchange, answer_key, request_key
from pytest_modelserve.serving import Inputs, Predictor


class Recording(Predictor):
    """Requests and their answers, to hold any model against: a reference that is not there any more, or never was.

    `assert_output_parity(candidate, recording, recording.inputs, rtol=..., atol=...)` replays all of it, one exchange
    at a time; `recording.exchanges[0].inputs` is the first request. Evidence names it by the sha256 of its files.
    """

    transport = "recorded"

    def __init__(self, subject: Subject, exchanges: Sequence[Exchange], *, source: str = "memory") -> None:
        if not len(exchanges):
            raise ArtifactError(f"the recording {source} holds no request")
        super().__init__(subject)
        self.exchanges = exchanges
        self._source = source
        self._places: dict[str, int] | None = None

    @property
    def inputs(self) -> Requests:
        """The recorded requests in their order, read one by one and as often as they are asked for."""
        return Requests(self.exchanges)

    def predict(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """The answer that was recorded for `inputs`.

        InputError for inputs that are not among the recorded requests, as whole calls with every value the same;
        ArtifactError where one request was recorded with two answers.
        """
        if self.closed:
            raise self._closed_error()
        if self._places is None:
            self._places = self._found()
        place = self._places.get(request_key(inputs))
        if place is None:
            raise InputError(
                f"these inputs are none of the {len(self.exchanges)} requests of {self._source}: a recording answers "
                "what was recorded, as recording.inputs gives it"
            )
        return {name: np.array(array) for name, array in self.exchanges[place].outputs.items()}

    def describe(self) -> str:
        """One line: the subject, and how many requests were recorded where."""
        return f"{self.subject}, {len(self.exchanges)} recorded requests of {self._source}"

    def _found(self) -> dict[str, int]:
        places: dict[str, int] = {}
        for index, exchange in enumerate(self.exchanges):
            first = places.setdefault(request_key(exchange.inputs), index)
            if first != index and answer_key(self.exchanges[first].outputs) != answer_key(exchange.outputs):
                raise ArtifactError(
                    f"requests {first} and {index} of {self._source} are the same and have different answers: a "
                    "recording holds the answers of one model"
                )
        return places


@dataclass(frozen=True, slots=True)
class Requests:
    """The requests of a recording, to iterate over."""

    exchanges: Sequence[Exchange]

    def __len__(self) -> int:
        return len(self.exchanges)

    def __iter__(self) -> Iterator[Inputs]:
        for index in range(len(self.exchanges)):
            yield self.exchanges[index].inputs
