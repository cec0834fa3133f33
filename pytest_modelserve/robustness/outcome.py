"""What came of a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pytest_modelserve.robustness.coordinates import Feed


@dataclass(frozen=True, slots=True, eq=False)
class Counterexample:
    """Rows that break a relation, (1, ...) or a batch, beside the base rows from which they came, and in what they
    differ: (row, coordinate)."""

    rows: Feed
    base: Feed
    changes: tuple[tuple[int, int], ...]
    base_row: int
    """Which base row the (first) row came from."""
    sentence: str
    """What the relation says of the simplest rows, if anything."""
    broke_again: bool
    """Whether they broke it when they were asked once more."""
    found_with: int
    """How many coordinates differed when it was found."""
    ended: Literal["", "died", "late"] = ""
    """How they ended the process that serves the model, so that there is no answer to tell: by themselves, or by the
    time limit."""


@dataclass(slots=True)
class Search:
    """What a search did, and what it found."""

    edge_cases: int = 0
    drawn: int = 0
    refused: int = 0
    refusal: str = ""
    max_excess: float = float("nan")
    counterexample: Counterexample | None = None
    trials: int = 0

    @property
    def candidates(self) -> int:
        """The rows that the model answered."""
        return self.edge_cases + self.drawn - self.refused
