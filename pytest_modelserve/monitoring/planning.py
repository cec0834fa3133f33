"""What these rows could have decided, and how many rows would decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_modelserve.monitoring.comparing import Comparison
from pytest_modelserve.stats.kolmogorov import effective_rows_for_distance, passable_distance, rows_for_distance

_POWER = 0.95
"""With the rows that are asked for, unchanged data pass 19 times in 20: a wrong alarm in a month of nights or less."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows and budgets with which unchanged data pass, in all columns, 19 times in 20.

    `rows` is None where the profile has too few rows for any data to pass; `profile_rows`, and data of as many, are
    enough for both. `passable` is the smallest budget for the rows there are, `passed` the smallest that these very
    rows would have kept.
    """

    rows: int | None
    profile_rows: int
    passable: float
    passed: float


def plan_rows(comparisons: Sequence[Comparison], *, max_distance: float, rows: int, profile_rows: int) -> Plan:
    """The plan by the column with the fewest rows, of `rows` in the data and `profile_rows` in the profile.

    What nulls and blocks leave of rows, they leave of more rows too.
    """
    tests, scarce = len(comparisons), min(comparisons, key=lambda comparison: comparison.effective)
    needed = rows_for_distance(max_distance, reference=scarce.reference_rows, tests=tests, power=_POWER)
    effective = effective_rows_for_distance(max_distance, tests=tests, power=_POWER)
    return Plan(
        rows=None if needed is None else math.ceil(needed * rows / scarce.current_rows),
        profile_rows=math.ceil(2 * effective * profile_rows / scarce.reference_rows),
        passable=passable_distance(scarce.effective, tests=tests, power=_POWER),
        passed=max(comparison.high for comparison in comparisons),
    )
