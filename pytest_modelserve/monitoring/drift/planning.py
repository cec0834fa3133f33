"""What these rows could have decided, and how many rows would decide."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from scipy.special import ndtri

from pytest_modelserve.monitoring.associations import MAX_ROWS
from pytest_modelserve.monitoring.drift.classifying import rows_to_compare
from pytest_modelserve.monitoring.drift.families import AnyComparison, Families
from pytest_modelserve.monitoring.sketch import MAX_SKETCH
from pytest_modelserve.stats.kolmogorov import BOUND, passable_units

_POWER = 0.95
"""With the rows that are asked for, unchanged data pass 19 times in 20: a wrong alarm in a month of nights or less."""
_OTHERS = 0.1
"""Of the chance to miss that, for pairs and for whole rows each: columns nearly always need the most rows."""
_Z = 1.6449


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows and budgets with which unchanged data pass, in all comparisons, 19 times in 20.

    `rows` is None where the profile has too few rows for any data to pass; `profile_rows`, and data of as many, are
    enough for both. `sketch_rows` are the raw rows that a profile has to keep for it, 0 where those it has will do.
    `passable` is the smallest budget for the rows there are, `passed` the smallest that these very rows would have
    kept, `floor` the smallest that any number of rows passes: of pairs and whole rows not all are read.
    """

    rows: int | None
    profile_rows: int
    sketch_rows: int
    passable: float
    passed: float
    floor: float


@dataclass(frozen=True, slots=True)
class _Need:
    """The scarcest comparison of a family, of which `most` rows at most are read: unchanged data of n effective rows
    pass a budget of `units`/√n.
    """

    scarce: AnyComparison
    units: float
    most: float = math.inf

    def effective(self, budget: float) -> float:
        return (self.units / budget) ** 2

    def current(self, budget: float) -> float:
        """The rows, in blocks, that have to be compared with those of the profile; inf where none are enough."""
        needed, reference = self.effective(budget), self.scarce.reference_rows
        return needed * reference / (reference - needed) if reference > needed else math.inf

    @property
    def passable(self) -> float:
        effective = self.scarce.effective
        return min(self.units / math.sqrt(effective), 1.0) if effective else 1.0


def plan_rows(families: Families, *, max_distance: float, rows: int, profile_rows: int) -> Plan:
    """The plan by the scarcest comparison of each family, of `rows` in the data and `profile_rows` in the profile.

    What nulls and blocks leave of rows, they leave of more rows too.
    """
    needs = list(_needs(families))
    columns, whole = needs[0], next((need for need in needs if need.scarce is families.rows), None)
    needed = max(need.current(max_distance) for need in needs) * rows / columns.scarce.current_rows
    effective = max(need.effective(max_distance) for need in needs)
    sketch = (
        2 * whole.effective(max_distance)
        if whole and whole.current(max_distance) > rows_to_compare(int(whole.scarce.reference_rows))
        else 0
    )
    return Plan(
        rows=math.ceil(needed) if math.isfinite(needed) else None,
        profile_rows=math.ceil(2 * effective * profile_rows / columns.scarce.reference_rows),
        sketch_rows=math.ceil(sketch),
        passable=max(need.passable for need in needs),
        passed=max(change.high for _, family in families.shares() for change in family),
        floor=max(need.units / math.sqrt(need.most / 2) for need in needs),
    )


def _needs(families: Families) -> Iterator[_Need]:
    """The need of each family, which share the chance that something unchanged does not pass."""
    others = len(families.shares()) - 1
    missed = (1 - _POWER) * _OTHERS
    of_columns = (1 - _POWER) - missed * others
    scarce = min(families.columns, key=lambda change: change.effective)
    yield _Need(scarce, passable_units(len(families.columns), 1 - of_columns))
    if families.pairs:
        quantile = -float(ndtri(missed / 2 / len(families.pairs)))
        widest = max(families.pairs, key=lambda change: change.unit / math.sqrt(max(change.effective, 1e-9)))
        yield _Need(widest, (quantile + _Z) * widest.unit, MAX_ROWS)
    if families.rows is not None:
        yield _Need(families.rows, BOUND + math.sqrt(-math.log(missed) / 2), MAX_SKETCH)
