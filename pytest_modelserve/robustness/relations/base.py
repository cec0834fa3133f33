"""What a relation is, and what it says of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.metrics import kind_of
from pytest_modelserve.metrics.tolerance import (
    OutputDifferences,
    RoundingTolerance,
    decision_differences,
    output_differences,
    select_output,
)
from pytest_modelserve.robustness.batched_predictor import BatchedPredictor
from pytest_modelserve.robustness.coordinates import Feed, concat_rows, row_count, take_rows

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

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed, /) -> Violations | NDArray[Any]:
        """Which of `candidates` (n, ...) break the relation: (n,) of bool, or Violations.

        `base` holds the rows that the search started from: the ranges of features, say, are theirs.
        """


def checked(relation: Relation, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
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


# The one number of an answer that a relation judges.


def element_of(outputs: Feed, output: str | None, element: int | None) -> tuple[str, NDArray[Any]]:
    """The output that is meant, and of each row its number at `element`, (n,).

    UsageError where several outputs, or several numbers a row, leave open which is meant, and for what has no order.
    """
    found = select_output(outputs, output)
    if len(found) != 1:
        raise UsageError(f"the model has {len(found)} outputs: say which one by output=")
    ((name, array),) = found.items()
    numbers = array.reshape(len(array), -1)
    if numbers.shape[1] != 1 and element is None:
        raise UsageError(f"output {name!r} has {numbers.shape[1]} numbers a row: say which one by element=")
    if element is not None and not -numbers.shape[1] <= element < numbers.shape[1]:
        raise UsageError(f"output {name!r} has {numbers.shape[1]} numbers a row: there is no element {element}")
    if kind_of(array.dtype) not in ("real", "exact"):
        raise UsageError(f"output {name!r} is {array.dtype.name}, which has no order")
    return name, numbers[:, element or 0]


def element_room(tolerance: RoundingTolerance, answers: NDArray[Any], magnitude: float) -> NDArray[np.float64]:
    """What is tolerated of each of some numbers, in their shape."""
    if kind_of(answers.dtype) != "real":
        return np.full(answers.shape, 0.5)  # whole numbers move by one or not at all
    return tolerance.absolute(answers.reshape(-1, 1), magnitude).reshape(answers.shape)


# Which coordinates of a row a relation is about, and rows in which they have other values.


Feature = int | tuple[int, ...]
"""A column of a row's flat input, or its index in one row of a higher-dimensional one."""


def as_features(features: Feature | Iterable[Feature]) -> tuple[Feature, ...]:
    """One or several features as a tuple; UsageError for none, and for what is no whole number."""
    given: tuple[Any, ...] = (features,) if isinstance(features, int) else tuple(features)
    if not given:
        raise UsageError("features is empty: name one or more by their columns")
    for feature in given:
        parts = feature if isinstance(feature, tuple) else (feature,)
        if not parts or any(isinstance(part, bool) or not isinstance(part, int) for part in parts):
            raise UsageError(f"a feature is a column (int) or an index in one row (tuple of ints), not {feature!r}")
    return given


def input_of(rows: Feed, name: str | None) -> str:
    """The input that is meant; UsageError for an unknown one, and without a name where there are several."""
    if name is None:
        if len(rows) > 1:
            raise UsageError(f"the model has {len(rows)} inputs: say which one by input=, one of {', '.join(rows)}")
        return next(iter(rows))
    if name not in rows:
        raise UsageError(unknown_choice("input", name, rows))
    return name


def columns_of(array: NDArray[Any], features: Sequence[Feature], name: str) -> NDArray[np.intp]:
    """The flat columns of features in rows (n, ...); InputError for one that a row does not have."""
    shape = array.shape[1:]
    found = []
    for feature in features:
        try:
            index = feature if isinstance(feature, tuple) else np.unravel_index(feature, shape or (1,))
            found.append(int(np.ravel_multi_index(index, shape or (1,))))
        except ValueError:
            raise InputError(f"input {name!r} has rows of shape {list(shape)}: there is no feature {feature}") from None
    return np.array(found, np.intp)


def with_columns(rows: Feed, name: str, columns: NDArray[np.intp], values: NDArray[Any]) -> Feed:
    """The rows with other values (n, columns) in one input."""
    array = np.array(rows[name])
    array.reshape(len(array), -1)[:, columns] = values
    return {**rows, name: array}


# Rows beside variants of themselves that are to have the same answer, or the same decision.


def farthest(several: Sequence[OutputDifferences], found: Sequence[str], expected: str) -> Violations:
    """The rows in which one of several comparisons lies too far apart, told of the one that does so most.

    `found` says of each comparison where its answers come from, `expected` where those come from that they should be.
    """
    excess = np.array([part.excess for part in several])

    def told(row: int) -> str:
        worst = int(excess[:, row].argmax())
        return several[worst].sentence(row, found[worst], expected)

    return Violations.beyond(excess.max(axis=0), told)


def compared_variants(
    tolerance: RoundingTolerance,
    output: str | None,
    decision: bool,
    predictor: BatchedPredictor,
    rows: Feed,
    variants: list[Feed],
    base: Feed,
    *,
    words: list[str],
) -> Violations:
    """The rows for which one of the variants, all asked in one call, has another answer or another decision."""
    count = row_count(rows)
    answers = select_output(predictor.predict(concat_rows([rows, *variants])), output)
    expected = take_rows(answers, slice(0, count))
    magnitudes = predictor.magnitudes(base)
    found = [
        take_rows(answers, slice(begin, begin + count)) for begin in range(count, count * (len(variants) + 1), count)
    ]
    excess: NDArray[Any]
    if decision:
        name = _only(answers)
        scores = [decision_differences(part[name], expected[name], tolerance, magnitudes[name]) for part in found]
        excess = np.array(scores)

        def told(row: int) -> str:
            worst = int(excess[:, row].argmax())
            here, there = _decided(found[worst][name][row]), _decided(expected[name][row])
            return f"output {name!r} decides for {here} {words[worst]} and for {there} as it stands"
    else:
        return farthest(
            [output_differences(part, expected, tolerance, magnitudes) for part in found], words, "as it stands"
        )

    return Violations.beyond(excess.max(axis=0), told)


def _only(answers: Feed) -> str:
    if len(answers) != 1:
        raise UsageError(f"the model has {len(answers)} outputs: say which one decides by output=")
    return next(iter(answers))


def _decided(answer: NDArray[Any]) -> str:
    return f"class {int(np.argmax(answer))}" if kind_of(answer.dtype) == "real" else str(np.ravel(answer)[0])


# A relation from a function: the few lines that a user writes.


Check = Callable[[BatchedPredictor, Feed, Feed], Violations | NDArray[Any]]


@dataclass(frozen=True, slots=True)
class OwnRelation:
    """See `relation`."""

    name: str
    definition: str
    function: Check
    unit: Literal["row", "batch"] = "row"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations | NDArray[Any]:
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
