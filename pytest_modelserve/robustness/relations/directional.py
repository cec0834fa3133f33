"""Answers that move up or down with a feature, and by how much."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from pytest_modelserve.errors import UsageError, unknown_choice
from pytest_modelserve.robustness.asking import Answering
from pytest_modelserve.robustness.coordinates import Feed, joined, row_count
from pytest_modelserve.robustness.relations.element import element_of, element_room
from pytest_modelserve.robustness.relations.features import Feature, as_features, columns_of, input_of
from pytest_modelserve.robustness.relations.rescaling import only_where, rescaled
from pytest_modelserve.robustness.relations.tolerance import Tolerance
from pytest_modelserve.robustness.violations import Violations

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
    tolerance: Tolerance
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

    def check(self, predictor: Answering, candidates: Feed, base: Feed) -> Violations:
        """Which rows have an answer that moves the other way, by too little or by too much."""
        name = input_of(candidates, self.input)
        column = columns_of(candidates[name], (self.feature,), name)
        moved, fits = rescaled(candidates, base, name, column, offset=self.by)
        here, there = (feed[name].reshape(len(fits), -1)[:, column[0]] for feed in (candidates, moved))
        output, answers = element_of(predictor.predict(joined([candidates, moved])), self.output, self.element)
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
        held, float(by), moves, float(at_least), float(at_most), element, Tolerance.of(rtol, atol), input, output
    )
