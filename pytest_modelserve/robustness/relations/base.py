"""Base classes of metamorphic relations, and their shared parts: violations, features and comparisons of outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.metrics import OutputNames, choose_outputs, kind_of, output_names
from pytest_modelserve.metrics.tolerance import (
    OutputDifferences,
    RoundingTolerance,
    decision_differences,
    output_differences,
)
from pytest_modelserve.robustness.batched_predictor import BatchedPredictor
from pytest_modelserve.robustness.coordinates import Feed, concat_rows, row_count, take_rows

if TYPE_CHECKING:
    from pytest_modelserve.serving import Servable

Unit = Literal["row", "batch"]
Message = str | Callable[[int], str]
Check = Callable[[BatchedPredictor, Feed, Feed], "Violations | NDArray[Any]"]
Feature = int | tuple[int, ...]
"""A column of a row's flat input, or an index in one row of a higher-dimensional input."""
Features = Feature | Iterable[Feature]


@dataclass(frozen=True, slots=True, eq=False)
class Violations:
    """Candidates that violate a relation.

    Args:
        violated: Whether each candidate violates the relation, bool (n,).
        excess: How close each candidate comes to a violation, (n,), as a multiple of the tolerance: above 1 is a
            violation. The search continues from the highest. None if the relation has no such measure.
        message: What is wrong, or a function that returns it for the row at an index.
    """

    violated: NDArray[np.bool_]
    excess: NDArray[np.float64] | None = None
    message: Message = ""

    def sentence(self, row: int) -> str:
        """Return what is wrong with one row."""
        return self.message if isinstance(self.message, str) else self.message(row)

    @classmethod
    def beyond(cls, excess: NDArray[np.float64], message: Message = "") -> Violations:
        """Return the violations of all rows with an excess above 1, or of NaN."""
        return cls(~(excess <= 1), excess, message)


class Relation(ABC):
    """A statement about a model that needs no labels.

    It holds for every row (`unit` "row") or for every batch of rows ("batch"). Subclass it with a frozen dataclass that
    has a `name`, a `definition` and a `check`. `relation` wraps a function instead.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Name in reports, a noun."""

    @property
    @abstractmethod
    def definition(self) -> str:
        """What must hold for which rows, in one sentence with the tolerance."""

    @property
    def unit(self) -> Unit:
        """What one result of `check` is about."""
        return "row"

    @property
    def searched(self) -> bool:
        """Whether candidates other than the given rows are generated."""
        return True

    @property
    def reference(self) -> Servable | None:
        """The model that the outputs are compared with, if there is one: whatever `ms.serve` takes."""
        return None

    @abstractmethod
    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed, /) -> Violations | NDArray[Any]:
        """Find the candidates that violate the relation.

        The result for a row must follow from that row and from `base` alone, without randomness: the search minimizes a
        counterexample by calling `check` again.

        Args:
            predictor: The model; `predictor.predict` takes any number of rows.
            candidates: Inputs by name, (n, ...).
            base: The rows that the search started from; ranges of features are theirs.

        Returns:
            Violations, or bool (n,).
        """

    def _normalize(self, **fields: object) -> None:
        """Set fields of a frozen dataclass while it is created."""
        for name, value in fields.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class ToleranceRelation(Relation):
    """A relation between outputs, within `rtol` and `atol` or, without both, within rounding."""

    output: OutputNames | None = None
    rtol: float | None = None
    atol: float | None = None

    def __post_init__(self) -> None:
        RoundingTolerance.of(self.rtol, self.atol)
        if not isinstance(self.output, str):
            self._normalize(output=output_names(self.output))

    @property
    def tolerance(self) -> RoundingTolerance:
        """The tolerance of a comparison."""
        return RoundingTolerance.of(self.rtol, self.atol)


@dataclass(frozen=True)
class relation(Relation):
    """A relation of your own, from a function.

    Args:
        name: Name in reports, a noun.
        function: Called as `function(predictor, rows, base)`, with dicts of arrays (n, ...). It returns the rows that
            violate the relation, as bool (n,) or as `Violations`. Its result for a row must follow from that row and
            from `base` alone. `predictor.predict` takes any number of rows.
        definition: What must hold, for reports.
        unit: "row", or "batch" if the rows of one call are one batch.

    Raises:
        UsageError: `name` is empty, or `function` is not callable.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> def mirrored(predictor, rows, base):
        ...     left = predictor.predict(rows)["output"]
        ...     right = predictor.predict({"input": rows["input"][:, ::-1]})["output"]
        ...     return abs(left - right) > 1e-5
        >>> mirror = ms.relations.relation("mirror", mirrored, definition="mirrored rows have the same output")
        >>> rows = np.array([[1.0, 2.0], [3.0, 4.0]])
        >>> ms.assert_relation(ms.serve(lambda x: x.sum(axis=1)), rows, mirror).verdict.name
        'PASS'
    """

    name: str = ""  # with a default: without, dataclasses would take the property of the base class for one
    function: Check | None = None
    _: KW_ONLY
    definition: str = ""
    unit: Unit = "row"

    def __post_init__(self) -> None:
        if not self.name or not callable(self.function):
            raise UsageError("relation needs a name and a function of (predictor, rows, base)")
        self._normalize(definition=self.definition or f"{self.name} holds")

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations | NDArray[Any]:
        assert self.function is not None
        return self.function(predictor, candidates, base)


def checked(relation: Relation, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
    """Return what `relation` finds, as Violations. Raises `UsageError` for anything but one bool a row."""
    found = relation.check(predictor, candidates, base)
    if not isinstance(found, Violations):
        found = Violations(np.asarray(found))
    count = len(next(iter(candidates.values())))
    if found.violated.shape != (count,) or found.violated.dtype != np.bool_:
        raise UsageError(
            f"the relation {relation.name!r} must return bool[{count}] for {count} rows, got "
            f"{found.violated.dtype.name}{list(found.violated.shape)}"
        )
    return found


# Outputs


def single_output(outputs: Feed, output: OutputNames | None) -> tuple[str, NDArray[Any]]:
    """Return the name and array of `output`, or of the only output. Raises `UsageError` if there are several."""
    selected = choose_outputs(outputs, output)
    if len(selected) != 1:
        what = "is missing: the model has" if output is None else "must be one name here, got"
        raise UsageError(f"output= {what} {len(selected)} outputs, {', '.join(selected)}")
    return next(iter(selected.items()))


def single_element(outputs: Feed, output: OutputNames | None, element: int | None) -> tuple[str, NDArray[Any]]:
    """Return the name of an output and its number at `element` in each row, (n,).

    Raises `UsageError` if the output or the element is ambiguous, and for outputs without an order.
    """
    name, array = single_output(outputs, output)
    numbers = array.reshape(len(array), -1)
    count = numbers.shape[1]
    if count != 1 and element is None:
        raise UsageError(f"element= is missing: output {name!r} has {count} numbers a row")
    if element is not None and not -count <= element < count:
        raise UsageError(f"element must be a place among the {count} numbers a row of output {name!r}, got {element}")
    if kind_of(array.dtype) not in ("real", "exact"):
        raise UsageError(f"output {name!r} is {array.dtype.name}, which has no order")
    return name, numbers[:, element or 0]


def element_tolerance(tolerance: RoundingTolerance, numbers: NDArray[Any], magnitude: float) -> NDArray[np.float64]:
    """Return the absolute tolerance of each number, in their shape."""
    if kind_of(numbers.dtype) != "real":
        return np.full(numbers.shape, 0.5)  # whole numbers move by one or not at all
    return tolerance.absolute(numbers.reshape(-1, 1), magnitude).reshape(numbers.shape)


def largest_differences(comparisons: Sequence[OutputDifferences], sources: Sequence[str], expected: str) -> Violations:
    """Return the rows where one of several comparisons exceeds its tolerance, with the largest excess as the message.

    `sources` names where the outputs of each comparison come from, and `expected` where the expected ones do.
    """
    excess = np.array([comparison.excess for comparison in comparisons])

    def message(row: int) -> str:
        worst = int(excess[:, row].argmax())
        return comparisons[worst].sentence(row, sources[worst], expected)

    return Violations.beyond(excess.max(axis=0), message)


def compare_variants(
    predictor: BatchedPredictor,
    rows: Feed,
    variants: Sequence[Feed],
    base: Feed,
    *,
    sources: Sequence[str],
    tolerance: RoundingTolerance,
    output: OutputNames | None,
    decision: bool = False,
) -> Violations:
    """Return the rows for which one of the variants, all predicted in one call, has another output or decision."""
    count = row_count(rows)
    outputs = choose_outputs(predictor.predict(concat_rows([rows, *variants])), output)
    expected, *found = (take_rows(outputs, slice(k * count, (k + 1) * count)) for k in range(len(variants) + 1))
    magnitudes = predictor.magnitudes(base)
    if not decision:
        differences = [output_differences(part, expected, tolerance, magnitudes) for part in found]
        return largest_differences(differences, sources, "as it stands")
    name, labels = single_output(expected, None)
    excess = np.array([decision_differences(part[name], labels, tolerance, magnitudes[name]) for part in found])

    def message(row: int) -> str:
        worst = int(excess[:, row].argmax())
        here, there = _decision(found[worst][name][row]), _decision(labels[row])
        return f"output {name!r} decides for {here} {sources[worst]} and for {there} as it stands"

    return Violations.beyond(excess.max(axis=0), message)


def _decision(output: NDArray[Any]) -> str:
    return f"class {int(np.argmax(output))}" if kind_of(output.dtype) == "real" else str(np.ravel(output)[0])


# Features


def as_features(features: Features) -> tuple[Feature, ...]:
    """Return one or several features as a tuple. Raises `UsageError` for none, and for what is not a whole number."""
    given: tuple[Any, ...] = (features,) if isinstance(features, (int, str)) else tuple(features)
    if not given:
        raise UsageError("features is empty: give one or more columns")
    for feature in given:
        parts = feature if isinstance(feature, tuple) else (feature,)
        if not parts or any(isinstance(part, bool) or not isinstance(part, int) for part in parts):
            named = f": for an input of this name pass input={feature!r} and the column in it, such as 0"
            raise UsageError(
                f"features must be columns (int) or indices in one row (tuple of ints), got {feature!r}"
                f"{named if isinstance(feature, str) else ''}"
            )
    return given


def select_input(rows: Feed, name: str | None) -> str:
    """Return the input's name. Raises `UsageError` for an unknown one, and for None where there are several."""
    if name is None:
        if len(rows) > 1:
            raise UsageError(f"input= is missing: the model has {len(rows)} inputs, {', '.join(rows)}")
        return next(iter(rows))
    if name not in rows:
        raise UsageError(unknown_choice("input", name, rows))
    return name


def of_input(name: str | None) -> str:
    """Return " of input 'x'" for the name of an input, "" for the only one of a model."""
    return "" if name is None else f" of input {name!r}"


def columns_of(array: NDArray[Any], features: Features, name: str) -> NDArray[np.intp]:
    """Return the flat columns of features in rows (n, ...). Raises `InputError` for one that a row does not have."""
    shape = array.shape[1:]
    found = []
    for feature in as_features(features):
        try:
            index = feature if isinstance(feature, tuple) else np.unravel_index(feature, shape or (1,))
            found.append(int(np.ravel_multi_index(index, shape or (1,))))
        except ValueError:
            raise InputError(f"input {name!r} has rows of shape {list(shape)}: there is no feature {feature}") from None
    return np.array(found, np.intp)


def with_columns(rows: Feed, name: str, columns: NDArray[np.intp], values: NDArray[Any]) -> Feed:
    """Return the rows with other values (n, columns) in one input."""
    array = np.array(rows[name])
    array.reshape(len(array), -1)[:, columns] = values
    return {**rows, name: array}


def comma_separated(values: Iterable[object]) -> str:
    """Return the values in one line."""
    return ", ".join(map(str, values))
