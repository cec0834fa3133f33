"""Relations between a change of features and the outputs: its direction, its size, or none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.metrics import OutputNames, kind_of
from pytest_modelserve.metrics.tolerance import RoundingTolerance
from pytest_modelserve.robustness.coordinates import Feed, concat_rows, row_count
from pytest_modelserve.robustness.domains import as_dtype
from pytest_modelserve.robustness.relations.base import (
    Feature,
    Features,
    Relation,
    ToleranceRelation,
    Violations,
    as_features,
    columns_of,
    comma_separated,
    compare_variants,
    element_tolerance,
    of_input,
    select_input,
    single_element,
    with_columns,
)
from pytest_modelserve.robustness.relations.scale import only_where, rescaled

if TYPE_CHECKING:
    from pytest_modelserve.robustness.batched_predictor import BatchedPredictor

Direction = Literal["increasing", "decreasing"]
Moves = Literal["up", "down"]

_STEP_FRACTIONS = (2.0**-10, 2.0**-3, 0.5, 1.0)
"""Fractions of the way from a value to the greatest of the base rows: a small step, and three across the range."""


@dataclass(frozen=True)
class monotone(ToleranceRelation):
    """Raising a feature, and nothing else, never moves the output against `direction`.

    Applies to numeric features and ordered outputs of models that were constrained so; most others violate it. The
    feature is raised in four steps up to the greatest value of the base rows.

    Args:
        feature: Column of the rows, or an index in one row.
        direction: "increasing" or "decreasing".
        element: Place of the number in each row of the output, such as a class's score; needed if there are several.
        input: Name of the input, if the model has several.
        output: Name of the output, if the model has several.
        rtol: Relative tolerance of a step, with `atol`; without both, that of rounding.
        atol: Absolute tolerance.

    Raises:
        UsageError: A parameter is invalid.

    A violation is a row in which one step moves the output against the direction by more than the tolerance, or to NaN.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: 2 * x[:, 0] - x[:, 1])
        >>> rows = np.random.default_rng(0).random((10, 2))
        >>> ms.assert_relation(model, rows, ms.relations.monotone(1, "decreasing")).verdict.name
        'PASS'
    """

    feature: Feature
    direction: Direction = "increasing"
    _: KW_ONLY
    element: int | None = None
    input: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        as_features((self.feature,))
        if self.direction not in get_args(Direction):
            raise UsageError(unknown_choice("direction", self.direction, get_args(Direction)))

    @property
    def name(self) -> str:
        return f"{self.direction} in {self.feature}{of_input(self.input)}"

    @property
    def definition(self) -> str:
        never = "lowers" if self.direction == "increasing" else "raises"
        feature = f"{self.feature}{of_input(self.input)}"
        return f"a higher feature {feature} never {never} the output, within {self.tolerance}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        name = select_input(candidates, self.input)
        column = columns_of(candidates[name], (self.feature,), name)
        values = self._raised(candidates[name], base[name], column)
        steps = [with_columns(candidates, name, column, row[:, np.newaxis]) for row in values]
        output, numbers = single_element(
            predictor.predict(concat_rows([candidates, *steps])), self.output, self.element
        )
        outputs = numbers.reshape(-1, row_count(candidates))
        magnitude = predictor.magnitudes(base)[output]
        moved = np.diff(outputs.astype(np.float64), axis=0) * (1 if self.direction == "increasing" else -1)
        tolerance = np.maximum(*(element_tolerance(self.tolerance, n, magnitude) for n in (outputs[1:], outputs[:-1])))
        with np.errstate(invalid="ignore", divide="ignore"):
            excess = np.where(np.isnan(moved), np.inf, np.where(moved < 0, -moved / tolerance, 0.0))
        ladder = np.concatenate([candidates[name].reshape(len(values[0]), -1)[:, column].T, values])

        def message(row: int) -> str:
            step = int(excess[:, row].argmax())
            feature = f"{self.feature}{of_input(self.input)}"
            raised = f"feature {feature} from {ladder[step, row]!s} to {ladder[step + 1, row]!s}"
            return f"raising {raised} moves output {output!r} from {outputs[step, row]!s} to {outputs[step + 1, row]!s}"

        return Violations.beyond(excess.max(axis=0), message)

    def _raised(self, array: NDArray[Any], base: NDArray[Any], column: NDArray[np.intp]) -> NDArray[Any]:
        """Return the feature's higher values, (steps, n), each step at least as high as the one before."""
        start = array.reshape(len(array), -1)[:, column[0]]
        if kind_of(start.dtype) == "text":
            raise UsageError(f"feature {self.feature} is text, which has no order")
        top = np.maximum(start, base.reshape(len(base), -1)[:, column[0]].max())
        way = top.astype(np.float64) - start.astype(np.float64)
        steps = np.array([as_dtype(start.astype(np.float64) + part * way, start.dtype) for part in _STEP_FRACTIONS])
        return np.maximum.accumulate(np.minimum(np.maximum(steps, start), top), axis=0).astype(start.dtype)


@dataclass(frozen=True)
class directional(ToleranceRelation):
    """A step of `by` in a feature, and nothing else, moves the output up or down, by a bounded amount.

    Applies to numeric features and ordered outputs of models that were trained or built so. A sign that turned round in
    retraining, and with `at_least` an output that saturates, are typical violations.

    Args:
        feature: Column of the rows, or an index in one row.
        by: Step in the units of the feature; finite and other than 0.
        moves: "up" or "down".
        at_least: Least move, in the units of the output. With 0 the output may stay the same.
        at_most: Greatest move, in the units of the output.
        element: Place of the number in each row of the output; needed if there are several.
        input: Name of the input, if the model has several.
        output: Name of the output, if the model has several.
        rtol: Relative tolerance of the bounds, with `atol`; without both, that of rounding.
        atol: Absolute tolerance.

    Raises:
        UsageError: A parameter is invalid.

    A violation is a row whose output moves the other way, by too little, by too much, or to NaN. Rows in which the
    feature cannot make the step (its dtype ends, or the step vanishes in rounding) are skipped; `InputError` if that is
    every base row.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: 3 * x[:, 0])
        >>> rows = np.random.default_rng(0).random((10, 2))
        >>> ms.assert_relation(model, rows, ms.relations.directional(0, 0.5, "up", at_least=1.4)).verdict.name
        'PASS'
    """

    feature: Feature
    by: float
    moves: Moves
    _: KW_ONLY
    at_least: float = 0.0
    at_most: float = math.inf
    element: int | None = None
    input: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        as_features((self.feature,))
        if self.moves not in get_args(Moves):
            raise UsageError(unknown_choice("moves", self.moves, get_args(Moves)))
        if not math.isfinite(self.by) or self.by == 0:
            raise UsageError(f"by must be a finite step other than 0, got {self.by}")
        if not (math.isfinite(self.at_least) and 0 <= self.at_least <= self.at_most):
            raise UsageError(
                f"at_least and at_most must be at least 0 and in this order, got {self.at_least} and {self.at_most}"
            )

    @property
    def name(self) -> str:
        return f"{self.feature}{of_input(self.input)} moves output {self.moves}"

    @property
    def definition(self) -> str:
        most = "" if self.at_most == math.inf else f" and at most {self.at_most:g}"
        return (
            f"{self.by:+g} in feature {self.feature}{of_input(self.input)} moves the output {self.moves} by at least "
            f"{self.at_least:g}{most}, within {self.tolerance}"
        )

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        name = select_input(candidates, self.input)
        column = columns_of(candidates[name], (self.feature,), name)
        moved, fits = rescaled(candidates, base, name, column, offset=self.by)
        start, end = (feed[name].reshape(len(fits), -1)[:, column[0]] for feed in (candidates, moved))
        output, numbers = single_element(predictor.predict(concat_rows([candidates, moved])), self.output, self.element)
        before, after = numbers.reshape(2, row_count(candidates))
        magnitude = predictor.magnitudes(base)[output]
        of_inputs = self.tolerance.after_rewriting(candidates[name])
        tolerance = np.maximum(*(element_tolerance(of_inputs, part, magnitude) for part in (before, after)))
        with np.errstate(invalid="ignore", divide="ignore"):
            way = (after.astype(np.float64) - before.astype(np.float64)) * (1 if self.moves == "up" else -1)
            short = np.maximum(self.at_least - way, way - self.at_most) - tolerance
            # Above 1 is a violation, in multiples of the tolerance; below 1, the search continues from the closest.
            spread = max(magnitude, float(tolerance.max(initial=0.0)), 1e-30)
            excess = np.where(short > 0, 1 + short / tolerance, np.exp(np.minimum(short, 0) / spread))
        found = Violations.beyond(
            np.where(np.isnan(way), np.inf, excess),
            lambda row: (
                f"moving feature {self.feature}{of_input(self.input)} from {start[row]!s} to {end[row]!s} moves output "
                f"{output!r} from {before[row]!s} to {after[row]!s}"
            ),
        )
        return only_where(fits & (start != end) & np.isfinite(start.astype(np.float64)), found)


@dataclass(frozen=True)
class invariant_to(ToleranceRelation):
    """Other values of some features change no output, or no decision.

    Applies to models that do not depend on these features, such as protected attributes. It does not detect features
    that stand in for them. The other values are those of `draws` base rows, evenly spaced among the distinct ones; all
    features of one row change at once, so a one-hot category stays valid.

    Args:
        features: Columns or indices in one row.
        decision: Compare the arg-max (or the label) instead of all outputs.
        draws: Number of base rows whose values are tried; at least 2.
        input: Name of the input, if the model has several.
        output: Name of the output to compare, or several names; None compares all.
        rtol: Relative tolerance, with `atol`; without both, that of rounding.
        atol: Absolute tolerance.

    Raises:
        UsageError: A parameter is invalid.

    A violation is a row whose output differs by more than the tolerance. `InputError` if all base rows have the same
    values there.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x[:, 0])
        >>> rows = np.random.default_rng(0).random((10, 2))
        >>> ms.assert_relation(model, rows, ms.relations.invariant_to(1)).verdict.name
        'PASS'
    """

    features: Features
    _: KW_ONLY
    decision: bool = False
    draws: int = 4
    input: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._normalize(features=as_features(self.features))
        _check_draws(self.draws)

    @property
    def name(self) -> str:
        return f"invariance to {comma_separated(as_features(self.features))}{of_input(self.input)}"

    @property
    def definition(self) -> str:
        what = "decision" if self.decision else "output"
        names = f"{comma_separated(as_features(self.features))}{of_input(self.input)}"
        return f"other values of features {names} change no {what}, within {self.tolerance}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        name = select_input(candidates, self.input)
        columns = columns_of(candidates[name], self.features, name)
        names = f"{comma_separated(as_features(self.features))}{of_input(self.input)}"
        others = _distinct(base[name].reshape(len(base[name]), -1)[:, columns])
        if len(others) < 2:
            raise InputError(f"base rows must differ in features {names}, and all are the same: add other rows")
        others = others[np.unique(np.linspace(0, len(others) - 1, self.draws).astype(np.intp))]
        shape = row_count(candidates), len(columns)
        variants = [with_columns(candidates, name, columns, np.broadcast_to(values, shape)) for values in others]
        return compare_variants(
            predictor, candidates, variants, base,
            sources=[f"with features {names} = {comma_separated(values)}" for values in others],
            tolerance=self.tolerance, output=self.output, decision=self.decision,
        )  # fmt: skip


@dataclass(frozen=True)
class local_stability(Relation):
    """A step of `eps` in every real input changes no decision, or moves no output by more than `max_change`.

    Applies to models with real inputs. It tries `draws` directions: all up, all down, and random signs, the same for
    every row. This is a probe and not an attack: a PASS does not bound the worst case. Rows close to a decision
    boundary violate it; classes within rounding of each other are ties.

    Args:
        eps: Step in the units of the inputs; above 0.
        max_change: Greatest move of an output; None compares decisions.
        draws: Number of directions; at least 2.
        input: Name of the input to change; None changes all real ones.
        output: Name of the output, if the model has several; with `max_change`, several names or None for all.

    Raises:
        UsageError: A parameter is invalid.

    A violation is a row that one step gives another decision, or an output beyond `max_change`.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: 2 * x)
        >>> relation = ms.relations.local_stability(0.01, max_change=0.021)
        >>> ms.assert_relation(model, np.ones((4, 2)), relation).verdict.name
        'PASS'
    """

    eps: float
    _: KW_ONLY
    max_change: float | None = None
    draws: int = 8
    input: str | None = None
    output: OutputNames | None = None
    name = "local stability"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise UsageError(f"eps must be a finite number above 0, got {self.eps}")
        check_max_change(self.max_change)
        _check_draws(self.draws)

    @property
    def definition(self) -> str:
        effect = "change no decision" if self.max_change is None else f"move no output by more than {self.max_change:g}"
        return f"{self.draws} changes of every real input by {self.eps:g}, up or down, {effect}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        names = [name for name in candidates if kind_of(candidates[name].dtype) == "real"]
        if self.input is not None:
            names = [select_input(candidates, self.input)]
        if not names or any(kind_of(candidates[name].dtype) != "real" for name in names):
            raise UsageError("local_stability needs a real input, and the model has none of them")
        return compare_variants(
            predictor, candidates, [self._moved(candidates, names, draw) for draw in range(self.draws)], base,
            sources=[f"{self.eps:g} away (direction {draw})" for draw in range(self.draws)],
            tolerance=RoundingTolerance() if self.max_change is None else RoundingTolerance(0.0, self.max_change),
            output=self.output, decision=self.max_change is None,
        )  # fmt: skip

    def _moved(self, rows: Feed, names: Sequence[str], draw: int) -> Feed:
        """Return the rows moved up everywhere (draw 0), down everywhere (1), or by random signs, equal in all rows."""
        moved = dict(rows)
        for place, name in enumerate(names):
            array = rows[name]
            rng = np.random.default_rng([draw, place])
            signs = np.ones(array.shape[1:]) if draw < 2 else rng.choice([-1.0, 1.0], array.shape[1:])
            moved[name] = as_dtype(array.astype(np.float64) + (-1 if draw == 1 else 1) * self.eps * signs, array.dtype)
        return moved


def check_max_change(max_change: float | None) -> None:
    """Raise `UsageError` unless `max_change` is None or at least 0."""
    if max_change is not None and not (math.isfinite(max_change) and max_change >= 0):
        raise UsageError(f"max_change must be a finite number of at least 0, got {max_change}")


def _check_draws(draws: int) -> None:
    if draws < 2:
        raise UsageError(f"draws must be a whole number of at least 2, got {draws}")


def _distinct(rows: NDArray[Any]) -> NDArray[Any]:
    _, first = np.unique(np.array([repr(row.tolist()) for row in rows]), return_index=True)
    return rows[np.sort(first)]
