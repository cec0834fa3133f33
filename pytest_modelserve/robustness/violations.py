"""What a relation is, and what it says of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.robustness.asking import Answering
from pytest_modelserve.robustness.coordinates import Feed

Told = str | Callable[[int], str]


@dataclass(frozen=True, slots=True, eq=False)
class Violations:
    """Which of the candidates break a relation, (n,) of bool.

    `excess` (n,) says how near each one comes, as a multiple of what is tolerated (above 1: broken): a search goes on
    from those that come nearest. `told` is a sentence, or gives one for the row at an index.
    """

    violated: NDArray[np.bool_]
    excess: NDArray[np.float64] | None = None
    told: Told = ""

    def sentence(self, row: int) -> str:
        """What is wrong with one row."""
        return self.told if isinstance(self.told, str) else self.told(row)

    @classmethod
    def beyond(cls, excess: NDArray[np.float64], told: Told = "") -> Violations:
        """The rows whose excess is above 1; NaN counts as such."""
        return cls(~(excess <= 1), excess, told)


class Relation(Protocol):
    """A statement about a model that needs no labels, held by every row ("row") or by every batch of rows ("batch").

    A few lines make one: a frozen dataclass with these attributes and a `check`. Everything that `check` does with a
    row has to follow from that row, and from `base`, alone, with no draws: a counterexample is made simple by asking
    again.
    """

    @property
    def name(self) -> str:
        """What reports call it, a noun."""

    @property
    def definition(self) -> str:
        """What holds for which rows, in one sentence, tolerance included."""

    @property
    def unit(self) -> Literal["row", "batch"]:
        """What one answer of `check` is about."""

    def check(self, predictor: Answering, candidates: Feed, base: Feed, /) -> Violations | NDArray[Any]:
        """Which of `candidates` (n, ...) break the relation: (n,) of bool, or Violations.

        `base` holds the rows that the search started from: the ranges of features, say, are theirs.
        """


def checked(relation: Relation, predictor: Answering, candidates: Feed, base: Feed) -> Violations:
    """What `relation` says, in full; UsageError for an answer that is not one a row."""
    found = relation.check(predictor, candidates, base)
    if not isinstance(found, Violations):
        found = Violations(np.asarray(found))
    count = len(next(iter(candidates.values())))
    if found.violated.shape != (count,) or found.violated.dtype != np.bool_:
        raise UsageError(
            f"the relation {relation.name!r} answered {found.violated.dtype.name}{list(found.violated.shape)} for "
            f"{count} rows: it has to give bool[{count}]"
        )
    return found
