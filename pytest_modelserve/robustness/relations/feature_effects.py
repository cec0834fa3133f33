"""Answers that follow a feature in one direction."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.metrics import kind_of
from pytest_modelserve.metrics.tolerance import RoundingTolerance
from pytest_modelserve.robustness.coordinates import Feed, concat_rows, row_count
from pytest_modelserve.robustness.domains import as_dtype
from pytest_modelserve.robustness.relations.base import (
    Feature,
    Violations,
    as_features,
    columns_of,
    compared_variants,
    element_of,
    element_room,
    input_of,
    with_columns,
)
from pytest_modelserve.robustness.relations.scale import only_where, rescaled

if TYPE_CHECKING:
    from pytest_modelserve.robustness.batched_predictor import BatchedPredictor

Direction = Literal["increasing", "decreasing"]
_RAISES = (2.0**-10, 2.0**-3, 0.5, 1.0)
"""Shares of the way from a value to the greatest of the base rows: a small step, and three across the range."""


@dataclass(frozen=True, slots=True)
class Monotone:
    """See `monotone`."""

    feature: Feature
    direction: Direction
    element: int | None
    tolerance: RoundingTolerance
    input: str | None
    output: str | None
    unit: Literal["row", "batch"] = "row"

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"{self.direction} in {self.feature}"

    @property
    def definition(self) -> str:
        """What holds."""
        never = "lowers" if self.direction == "increasing" else "raises"
        return f"a higher feature {self.feature} never {never} the answer, within {self.tolerance}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        """Which rows have an answer that moves against the direction when the feature is raised in steps."""
        name = input_of(candidates, self.input)
        column = columns_of(candidates[name], (self.feature,), name)
        values = self._raised(candidates[name], base[name], column)
        steps = [with_columns(candidates, name, column, row[:, np.newaxis]) for row in values]
        output, numbers = element_of(predictor.predict(concat_rows([candidates, *steps])), self.output, self.element)
        answers = numbers.reshape(-1, row_count(candidates))
        magnitude = predictor.magnitudes(base)[output]
        moved = np.diff(answers.astype(np.float64), axis=0) * (1 if self.direction == "increasing" else -1)
        room = np.maximum(*(element_room(self.tolerance, part, magnitude) for part in (answers[1:], answers[:-1])))
        with np.errstate(invalid="ignore", divide="ignore"):
            excess = np.where(np.isnan(moved), np.inf, np.where(moved < 0, -moved / room, 0.0))
        ladder = np.concatenate([candidates[name].reshape(len(values[0]), -1)[:, column].T, values])

        def told(row: int) -> str:
            step = int(excess[:, row].argmax())
            raised = f"feature {self.feature} from {ladder[step, row]!s} to {ladder[step + 1, row]!s}"
            return f"raising {raised} moves output {output!r} from {answers[step, row]!s} to {answers[step + 1, row]!s}"

        return Violations.beyond(excess.max(axis=0), told)

    def _raised(self, array: NDArray[Any], base: NDArray[Any], column: NDArray[np.intp]) -> NDArray[Any]:
        """The feature's higher values, (steps, n), each step at least as high as the one before."""
        here = array.reshape(len(array), -1)[:, column[0]]
        if kind_of(here.dtype) == "text":
            raise UsageError(f"feature {self.feature} is text, which has no order")
        top = np.maximum(here, base.reshape(len(base), -1)[:, column[0]].max())
        way = top.astype(np.float64) - here.astype(np.float64)
        steps = np.array([as_dtype(here.astype(np.float64) + share * way, here.dtype) for share in _RAISES])
        return np.maximum.accumulate(np.minimum(np.maximum(steps, here), top), axis=0).astype(here.dtype)


def monotone(
    feature: Feature,
    direction: Direction = "increasing",
    *,
    element: int | None = None,
    input: str | None = None,
    output: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> Monotone:
    """Raising `feature`, and nothing else, never moves the answer against `direction`.

    The feature is raised in four steps up to the greatest value of the base rows, and each step is judged. `feature` is
    a column of the rows, or an index in one row; `element` the place in an answer of several numbers (a class's score).
    Holds for models that are constrained so; broken by most that are not. Without `rtol` and `atol`, a step against the
    direction by no more than rounding is none.
    """
    (held,) = as_features((feature,))
    if direction not in get_args(Direction):
        raise UsageError(unknown_choice("direction", direction, get_args(Direction)))
    return Monotone(held, direction, element, RoundingTolerance.of(rtol, atol), input, output)


# Answers that move up or down with a feature, and by how much.


Moves = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class Directional:
    """See `directional`."""

    feature: Feature
    by: float
    moves: Moves
    at_least: float
    at_most: float
    element: int | None
    tolerance: RoundingTolerance
    input: str | None
    output: str | None
    unit: Literal["row", "batch"] = "row"

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"{self.feature} moves it {self.moves}"

    @property
    def definition(self) -> str:
        """What holds."""
        most = "" if self.at_most == math.inf else f" and at most {self.at_most:g}"
        return (
            f"{self.by:+g} in feature {self.feature} moves the answer {self.moves} by at least {self.at_least:g}{most},"
            f" within {self.tolerance}"
        )

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        """Which rows have an answer that moves the other way, by too little or by too much."""
        name = input_of(candidates, self.input)
        column = columns_of(candidates[name], (self.feature,), name)
        moved, fits = rescaled(candidates, base, name, column, offset=self.by)
        here, there = (feed[name].reshape(len(fits), -1)[:, column[0]] for feed in (candidates, moved))
        output, answers = element_of(predictor.predict(concat_rows([candidates, moved])), self.output, self.element)
        before, after = answers.reshape(2, row_count(candidates))
        magnitude = predictor.magnitudes(base)[output]
        tolerance = self.tolerance.after_rewriting(candidates[name])
        room = np.maximum(*(element_room(tolerance, part, magnitude) for part in (before, after)))
        with np.errstate(invalid="ignore", divide="ignore"):
            way = (after.astype(np.float64) - before.astype(np.float64)) * (1 if self.moves == "up" else -1)
            short = np.maximum(self.at_least - way, way - self.at_most) - room
            # Above 1 it is broken, by so many times the room; below, the search goes on from where it is nearest.
            spread = max(magnitude, float(room.max(initial=0.0)), 1e-30)
            excess = np.where(short > 0, 1 + short / room, np.exp(np.minimum(short, 0) / spread))
        excess = np.where(np.isnan(way), np.inf, excess)
        found = Violations.beyond(
            excess,
            lambda row: (
                f"moving feature {self.feature} from {here[row]!s} to {there[row]!s} moves output {output!r} from "
                f"{before[row]!s} to {after[row]!s}"
            ),
        )
        return only_where(fits & (here != there) & np.isfinite(here.astype(np.float64)), found)


def directional(
    feature: Feature,
    by: float,
    moves: Moves,
    *,
    at_least: float = 0.0,
    at_most: float = math.inf,
    element: int | None = None,
    input: str | None = None,
    output: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> Directional:
    """`by` more in `feature` (less, for a negative one), and nothing else, moves the answer up, or down.

    By `at_least` and `at_most` as much as they say, in the units of the output: with 0, the default, it may stay where
    it is. `element` is the place in an answer of several numbers. Holds where it was trained or built in; broken by a
    sign that turned round in a retraining, and with `at_least` by answers that saturate. Rows in which the feature
    cannot move so (its dtype ends, or the step vanishes in rounding) are not judged. Without `rtol` and `atol`, the
    bounds are held but for rounding.
    """
    (held,) = as_features((feature,))
    if moves not in get_args(Moves):
        raise UsageError(unknown_choice("moves", moves, get_args(Moves)))
    if not math.isfinite(by) or by == 0:
        raise UsageError(f"by is a finite step in the units of the feature other than 0, not {by}")
    if not (math.isfinite(at_least) and 0 <= at_least <= at_most):
        raise UsageError(f"at_least and at_most are moves from 0 on, in this order, not {at_least} and {at_most}")
    return Directional(
        held,
        float(by),
        moves,
        float(at_least),
        float(at_most),
        element,
        RoundingTolerance.of(rtol, atol),
        input,
        output,
    )


# Answers that do not follow a feature at all, or a small change by little.


@dataclass(frozen=True, slots=True)
class InvariantTo:
    """See `invariant_to`."""

    features: tuple[Feature, ...]
    draws: int
    decision: bool
    tolerance: RoundingTolerance
    input: str | None
    output: str | None
    unit: Literal["row", "batch"] = "row"

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"invariance to {', '.join(map(str, self.features))}"

    @property
    def definition(self) -> str:
        """What holds."""
        what = "decision" if self.decision else "answer"
        return f"other values of features {_listed(self.features)} change no {what}, within {self.tolerance}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        """Which rows are answered otherwise with the features of one of some base rows."""
        name = input_of(candidates, self.input)
        columns = columns_of(candidates[name], self.features, name)
        seen = base[name].reshape(len(base[name]), -1)[:, columns]
        others = _distinct(seen)
        if len(others) < 2:
            raise InputError(
                f"every base row has the same values in features {_listed(self.features)}: add rows that differ there"
            )
        others = others[np.unique(np.linspace(0, len(others) - 1, self.draws).astype(np.intp))]
        count = row_count(candidates)
        variants = [
            with_columns(candidates, name, columns, np.broadcast_to(values, (count, len(columns)))) for values in others
        ]
        return compared_variants(
            self.tolerance, self.output, self.decision, predictor, candidates, variants, base,
            words=[f"with features {_listed(self.features)} = {_listed(values)}" for values in others],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LocalStability:
    """See `local_stability`."""

    eps: float
    max_change: float | None
    draws: int
    input: str | None
    output: str | None
    name: str = "local stability"
    unit: Literal["row", "batch"] = "row"

    @property
    def definition(self) -> str:
        """What holds."""
        ends = "change no decision" if self.max_change is None else f"move no answer by more than {self.max_change:g}"
        return f"{self.draws} changes of every real input by {self.eps:g}, up or down, {ends}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        """Which rows are answered otherwise, or by too much so, a step of `eps` away in one of some directions."""
        names = [name for name in candidates if kind_of(candidates[name].dtype) == "real"]
        if self.input is not None:
            names = [input_of(candidates, self.input)]
        if not names or any(kind_of(candidates[name].dtype) != "real" for name in names):
            raise UsageError("local stability is about real inputs, and the model has none of them")
        variants = [self._moved(candidates, names, draw) for draw in range(self.draws)]
        tolerance = RoundingTolerance() if self.max_change is None else RoundingTolerance(0.0, self.max_change)
        return compared_variants(
            tolerance, self.output, self.max_change is None, predictor, candidates, variants, base,
            words=[f"{self.eps:g} away (direction {draw})" for draw in range(self.draws)],
        )  # fmt: skip

    def _moved(self, rows: Feed, names: list[str], draw: int) -> Feed:
        """Direction 0 is up everywhere, 1 down everywhere, the others have drawn signs, the same for every row."""
        moved = dict(rows)
        for place, name in enumerate(names):
            array = rows[name]
            rng = np.random.default_rng([draw, place])
            signs = np.ones(array.shape[1:]) if draw < 2 else rng.choice([-1.0, 1.0], array.shape[1:])
            moved[name] = as_dtype(array.astype(np.float64) + (-1 if draw == 1 else 1) * self.eps * signs, array.dtype)
        return moved


def invariant_to(
    features: Feature | Iterable[Feature],
    *,
    decision: bool = False,
    draws: int = 4,
    input: str | None = None,
    output: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> InvariantTo:
    """Other values of `features` change no answer, or with `decision=True` no decision (arg-max, or label).

    The values are those of `draws` base rows, evenly spaced among the distinct ones and all features of one row at
    once, so that the columns of a one-hot category change together. For protected attributes; holds for a model that
    does not see them, and says nothing of what stands in for them. Without `rtol` and `atol` the tolerance is the room
    for rounding.
    """
    if draws < 2:
        raise UsageError(f"draws is a whole number of at least 2, not {draws}")
    return InvariantTo(as_features(features), draws, decision, RoundingTolerance.of(rtol, atol), input, output)


def local_stability(
    eps: float,
    *,
    max_change: float | None = None,
    draws: int = 8,
    input: str | None = None,
    output: str | None = None,
) -> LocalStability:
    """No step of `eps` in every real input changes a decision, or with `max_change` moves an answer by more than that.

    All up, all down, and `draws` - 2 drawn combinations of signs, the same for every row. `eps` is in the units of the
    inputs. It is a probe and no attack: what it finds is unstable, what it passes may not be. Decisions between classes
    within rounding of each other are ties. Broken near every decision boundary: `like` rows that lie on one fail.
    """
    if not (np.isfinite(eps) and eps > 0):
        raise UsageError(f"eps is a positive number in the units of the inputs, not {eps}")
    if max_change is not None and not (np.isfinite(max_change) and max_change >= 0):
        raise UsageError(f"max_change is a number of at least 0, not {max_change}")
    if draws < 2:
        raise UsageError(f"draws is a whole number of at least 2, not {draws}")
    return LocalStability(float(eps), max_change, draws, input, output)


def _distinct(rows: NDArray[Any]) -> NDArray[Any]:
    _, first = np.unique(np.array([repr(row.tolist()) for row in rows]), return_index=True)
    return rows[np.sort(first)]


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
