"""What a relation says of many rows, also where the model refuses some of them or ends on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import ArtifactError, InputError
from pytest_modelserve.robustness.asking import Answering
from pytest_modelserve.robustness.coordinates import Feed, row_count, taken
from pytest_modelserve.robustness.outcome import Search
from pytest_modelserve.robustness.space import Space
from pytest_modelserve.robustness.violations import Relation, Violations, checked
from pytest_modelserve.serving.isolated import ProcessEndedError


class EndedAtError(Exception):
    """Some of the rows from `begin` to `end` ended the model's process."""

    def __init__(self, begin: int, end: int, error: ProcessEndedError) -> None:
        super().__init__(str(error))
        self.begin, self.end, self.error = begin, end, error


@dataclass(frozen=True, slots=True)
class Answered:
    """That a model answers at all, which is asked before anything else where it may not."""

    name: str = "an answer"
    definition: str = "every row is answered"
    unit: Literal["row", "batch"] = "row"

    def check(self, predictor: Answering, candidates: Feed, _base: Feed) -> Violations:
        """None of the rows that are answered."""
        predictor.predict(candidates)
        return Violations(np.zeros(row_count(candidates), np.bool_))


@dataclass(slots=True)
class Judge:
    """Asks a relation about rows, in batches of `batch` where these are its unit; refusals are counted in `search`."""

    relation: Relation
    predictor: Answering
    space: Space
    batch: int
    search: Search = field(default_factory=Search, init=False)

    def check(self, rows: Feed) -> Violations:
        """What the relation says of rows; of a batch where that is its unit, one batch after the other."""
        if self.relation.unit == "row":
            return checked(self.relation, self.predictor, rows, self.space.base)
        count = row_count(rows)
        parts = [
            checked(self.relation, self.predictor, taken(rows, slice(begin, begin + self.batch)), self.space.base)
            for begin in range(0, count, self.batch)
        ]
        excess = [part.excess for part in parts if part.excess is not None]
        return Violations(
            np.concatenate([part.violated for part in parts]),
            np.concatenate(excess) if len(excess) == len(parts) else None,
        )

    def fails(self, rows: Feed) -> NDArray[np.bool_]:
        """Which rows break the relation; those that the model refuses do not, nor those that end its process."""
        violated = np.zeros(row_count(rows), np.bool_)
        for begin, found in self.answered(rows, minimising=True):
            violated[begin : begin + len(found.violated)] = found.violated
        return violated & self.space.holds(rows)  # a plainer number may lie outside what is declared

    def answered(self, rows: Feed, *, minimising: bool = False) -> Iterator[tuple[int, Violations]]:
        """What the relation says, in pieces with their first row; rows that the model refuses are set aside, found by
        halving, and while minimising also those that end its process.

        EndedAtError at other times for a piece that ends it.
        """
        open_ranges = [(0, row_count(rows))]
        while open_ranges:
            begin, end = open_ranges.pop()
            try:
                yield begin, self.check(taken(rows, slice(begin, end)))
            except (InputError, ArtifactError, ProcessEndedError) as error:
                if isinstance(error, ProcessEndedError) and not minimising:
                    raise EndedAtError(begin, end, error) from error
                if end - begin > 1:
                    middle = (begin + end) // 2
                    open_ranges += [(middle, end), (begin, middle)]
                elif not minimising:
                    self.search.refused += 1
                    self.search.refusal = self.search.refusal or str(error)

    def ends(self, rows: Feed) -> ProcessEndedError | None:
        """How rows end the process that serves the model, None where they are answered or refused."""
        refused, told = self.search.refused, self.search.refusal
        try:
            for _ in self.answered(rows):
                pass
        except EndedAtError as at:
            return at.error
        finally:
            self.search.refused, self.search.refusal = refused, told
        return None

    def sentence(self, rows: Feed) -> str:
        """What the relation says when it is asked once more; empty where it now holds."""
        try:
            again = checked(self.relation, self.predictor, rows, self.space.base)
        except ProcessEndedError as error:
            return str(error)
        return again.sentence(int(np.argmax(again.violated))) if again.violated.any() else ""
