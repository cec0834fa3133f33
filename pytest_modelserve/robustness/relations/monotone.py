"""Answers that follow a feature in one direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError, unknown_choice
from pytest_modelserve.numerics import kind_of
from pytest_modelserve.robustness.asking import Answering
from pytest_modelserve.robustness.coordinates import Feed, joined, row_count
from pytest_modelserve.robustness.domains import as_dtype
from pytest_modelserve.robustness.relations.element import element_of, element_room
from pytest_modelserve.robustness.relations.features import (
    Feature,
    as_features,
    columns_of,
    input_of,
    with_columns,
)
from pytest_modelserve.robustness.relations.tolerance import Tolerance
from pytest_modelserve.robustness.violations import Violations

Direction = Literal["increasing", "decreasing"]
_RAISES = (2.0**-10, 2.0**-3, 0.5, 1.0)
"""Shares of the way from a value to the greatest of the base rows: a small step, and three across the range."""


@dataclass(frozen=True, slots=True)
class Monotone:
    """See `monotone`."""

    feature: Feature
    direction: Direction
    element: int | None
    tolerance: Tolerance
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

    def check(self, predictor: Answering, candidates: Feed, base: Feed) -> Violations:
        """Which rows have an answer that moves against the direction when the feature is raised in steps."""
        name = input_of(candidates, self.input)
        column = columns_of(candidates[name], (self.feature,), name)
        values = self._raised(candidates[name], base[name], column)
        steps = [with_columns(candidates, name, column, row[:, np.newaxis]) for row in values]
        output, numbers = element_of(predictor.predict(joined([candidates, *steps])), self.output, self.element)
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
    return Monotone(held, direction, element, Tolerance.of(rtol, atol), input, output)
