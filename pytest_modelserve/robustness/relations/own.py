"""A relation from a function: the few lines that a user writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.robustness.asking import Answering
from pytest_modelserve.robustness.coordinates import Feed
from pytest_modelserve.robustness.violations import Violations

Check = Callable[[Answering, Feed, Feed], Violations | NDArray[Any]]


@dataclass(frozen=True, slots=True)
class OwnRelation:
    """See `relation`."""

    name: str
    definition: str
    function: Check
    unit: Literal["row", "batch"] = "row"

    def check(self, predictor: Answering, candidates: Feed, base: Feed) -> Violations | NDArray[Any]:
        """What the function says."""
        return self.function(predictor, candidates, base)


def relation(name: str, function: Check, *, definition: str = "", unit: Literal["row", "batch"] = "row") -> OwnRelation:
    """A relation of your own: `function(predictor, rows, base)` says which rows break it, bool (n,) or `Violations`.

    `rows` and `base` are dicts of arrays (n, ...), and `predictor.predict` takes any number of rows; with
    unit="batch" the rows of one call are one batch. What it says of a row has to follow from that row and from `base`
    alone, because a counterexample is made simple by asking again.

    >>> def mirrored(predictor, rows, base):
    ...     left = predictor.predict(rows)["score"]
    ...     right = predictor.predict({"image": rows["image"][..., ::-1]})["score"]
    ...     return abs(left - right).max(axis=1) > 0.1
    >>> relation("mirror", mirrored).name
    'mirror'
    """
    if not name or not callable(function):
        raise UsageError("a relation has a name and a function of (predictor, rows, base)")
    return OwnRelation(name, definition or f"{name} holds", function, unit)
