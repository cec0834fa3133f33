"""Selection of variants with one error rate: max-T over all, or a shortlist of some rows judged on the others.

Every figure of an accuracy gate of every variant is one hypothesis: "this figure lies outside its budget". A variant is
shown to pass where all of its hypotheses are rejected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.parity.accuracy.estimates import Estimate
from pytest_modelserve.parity.accuracy.evaluation import JudgedFigure
from pytest_modelserve.stats import SamplingUnits, StepDown, correlations_of, pass_probability, step_down_max_t
from pytest_modelserve.tuning.trial import Trial

SEARCH_SHARE = 0.3
"""The proportion of the rows on which adaptively made variants are searched."""
SHORTLIST = 6
"""The most variants that are judged on the other rows."""
MIN_UNITS = 50
"""The fewest independent rows that can be divided: 15 to search, 35 to judge."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Split:
    """Which rows are searched, and which judged: the same for equal sampling units and seeds."""

    seed: int

    def searched(self, units: SamplingUnits) -> Mask:
        """Return the rows (n,) of a random 30 % of the units; UsageError for too few units."""
        if units.count < MIN_UNITS:
            raise UsageError(
                f"the gates have {units.count} independent rows, too few to search on {100 * SEARCH_SHARE:g} % of them "
                f"and to judge on the others: give at least {MIN_UNITS}, thousands for a budget of a point"
            )
        drawn = np.random.default_rng(self.seed).permutation(units.count) < round(SEARCH_SHARE * units.count)
        return drawn if units.ids is None else drawn[units.ids]

    def pass_probability(self, trial: Trial, *, level: float) -> float:
        """Return the probability that the judged rows show a trial to pass, as its searched rows tell it."""
        found = [self._of_figure(figure, level) for figure in figures_of(trial)]
        return min(found, default=1.0)

    def _of_figure(self, figure: JudgedFigure, level: float) -> float:
        rows = self.searched(figure.units)
        found = figure.over(rows).linearized()
        units = round(SEARCH_SHARE * figure.units.count)
        error = math.sqrt(float((_unit_influence(figure, found.influence) ** 2).sum())) / rows.size
        # A proportion without a row that differs is not known to be exact: half a row, as for a plan.
        floor = found.largest * rows.sum() / rows.size * math.sqrt(0.5) / units
        sign = 1 if figure.budget.kind == "at_most" else -1
        return float(
            pass_probability(
                sign * found.value,
                math.sqrt(units) * max(error, floor),
                limit=sign * figure.budget.limit,
                searched=units,
                judged=figure.units.count - units,
                level=level,
            )
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """The trials that are `shown` to pass, at the one-sided `level` of the last step, out of a `family` of so many."""

    shown: tuple[Trial, ...]
    level: float
    family: int


class KnownLevels:
    """The levels at which figures are known to pass and not to: a bound takes milliseconds, and is asked for often."""

    def __init__(self) -> None:
        self._passed: dict[int, float] = {}
        self._missed: dict[int, float] = {}

    def passes(self, figure: JudgedFigure, estimate: Estimate, level: float) -> bool:
        """Return whether the figure passes at a level, which it does at every lower one as well."""
        key = id(figure)
        if not self._passed.get(key, 0.0) < level < self._missed.get(key, 1.0):
            return level <= self._passed.get(key, 0.0)
        known = self._passed if figure.passes(estimate, level) else self._missed
        known[key] = level
        return known is self._passed


def figures_of(trial: Trial) -> list[JudgedFigure]:
    """Return the figures that the accuracy gates judged of a trial."""
    return [figure for result in trial.results for figure in result.figures]


def select(
    trials: Sequence[Trial],
    *,
    error_rate: float,
    unjudged: int = 0,
    split: Split | None = None,
    known: KnownLevels | None = None,
) -> Selection:
    """Return which trials are shown to pass; any that does not is among them with probability `error_rate` at most.

    Args:
        trials: The judged variants of the family.
        error_rate: The error rate of the whole family.
        unjudged: Variants of the family that no gate saw: they count, and are not shown.
        split: Judge on the rows that were not searched.
        known: What earlier calls with the same `split` found.
    """
    levels = known or KnownLevels()
    owners: list[int] = []
    figures: list[JudgedFigure] = []
    for number, trial in enumerate(trials):
        for figure in figures_of(trial):
            owners.append(number)
            figures.append(figure)
    estimates = [_estimate(figure, split) for figure in figures]
    each = max((owners.count(number) for number in set(owners)), default=1)  # figures of a variant
    without = unjudged + len(trials) - len(set(owners))  # a gate with NaN outputs has none

    def rejects(number: int, level: float) -> bool:
        # The gates ran at their own confidence, on all rows: what they do not pass is not chosen, and not tested here.
        if not all(result.passed for result in trials[owners[number]].results):
            return False
        return levels.passes(figures[number], estimates[number], level)

    found = StepDown(np.zeros(0, dtype=np.bool_), 1 - error_rate)
    if figures:
        correlations = _correlations(figures, split)
        found = step_down_max_t(rejects, correlations, error_rate=error_rate, untested=without * each)
    rejected = np.asarray(found.rejected)
    shown = tuple(
        trial
        for number, trial in enumerate(trials)
        if all(result.passed for result in trial.results)
        and all(rejected[at] for at, owner in enumerate(owners) if owner == number)
    )
    return Selection(shown, found.level, len(trials) + unjudged)


def missing_rows(trial: Trial, *, level: float, split: Split | None = None) -> tuple[int, int] | None:
    """Return how many rows the gates have, and about how many would show a trial to pass; None where none would.

    Of several figures, the one that needs most.
    """
    worst: tuple[int, int] | None = None
    for figure in figures_of(trial):
        estimate = _estimate(figure, split)
        if figure.passes(estimate, level):
            continue
        try:
            plan = estimate.plan(figure.budget.limit, replace(figure.rates, confidence=level))
        except UsageError:
            return None
        if plan is None or plan.rows is None or not figure.budget.allows(estimate.value):
            return None
        share = 1.0 if split is None else 1 - SEARCH_SHARE
        has, needs = figure.units.n, math.ceil(max(plan.rows, estimate.n + 1) / share)
        if worst is None or needs > worst[1]:
            worst = has, needs
    return worst


def closeness(trial: Trial) -> float:
    """Return by how many standard errors the worst figure lies inside its budget; negative outside it and for none."""
    found = []
    for figure in figures_of(trial):
        estimate = _estimate(figure, None)
        distance = abs(figure.budget.limit - estimate.value) * (1 if figure.budget.allows(estimate.value) else -1)
        try:
            influence = _unit_influence(figure, estimate.linearized().influence)
        except UsageError:
            found.append(distance)
            continue
        error = math.sqrt(float((influence**2).sum())) / figure.units.n
        found.append(distance / error if error > 0 else math.copysign(math.inf, distance))
    return min(found, default=-math.inf)


def _estimate(figure: JudgedFigure, split: Split | None) -> Estimate:
    """Return a figure over the rows that judge it: all, or those that were not searched."""
    rows = np.ones(figure.units.n, dtype=np.bool_) if split is None else ~split.searched(figure.units)
    return figure.over(rows)


def _unit_influence(figure: JudgedFigure, influence: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of the influences of the rows of each sampling unit, (units,)."""
    units = figure.units
    return influence if units.ids is None else np.bincount(units.ids, influence, units.count).astype(np.float64)


def _correlations(figures: Sequence[JudgedFigure], split: Split | None) -> NDArray[np.float64]:
    """Return the correlations of the figures; figures of different rows, and callables, are taken as independent."""
    matrix = np.eye(len(figures))
    columns: dict[int, list[tuple[int, NDArray[np.float64]]]] = {}
    for number, figure in enumerate(figures):
        try:
            influence = _estimate(figure, split).linearized().influence
        except UsageError:
            continue
        sign = -1 if figure.budget.kind == "at_most" else 1
        values = sign * _unit_influence(figure, influence)
        columns.setdefault(values.size, []).append((number, values))
    for members in columns.values():
        numbers = [number for number, _ in members]
        matrix[np.ix_(numbers, numbers)] = correlations_of(np.column_stack([values for _, values in members]))
    return matrix
