"""The groups of drift tests that share one alpha: columns, pairs of columns, and whole rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from pytest_modelserve.errors import InputError
from pytest_modelserve.monitoring.correlations import MAX_ROWS, associate
from pytest_modelserve.monitoring.drift.column_tests import DriftTest, Kind, compare_column
from pytest_modelserve.monitoring.drift.effective_rows import EffectiveRows
from pytest_modelserve.monitoring.drift.multivariate_tests import (
    compare_associations,
    compare_rows,
    pair_rows_to_read,
    sketch_rows_to_read,
)
from pytest_modelserve.monitoring.profile import ReferenceProfile
from pytest_modelserve.monitoring.sketch import MAX_SKETCH, sketch_of, spread
from pytest_modelserve.monitoring.window import RowsColumn, Window
from pytest_modelserve.stats.two_sample_tests import KOLMOGOROV_95, standardized_passable_distance

ALPHA_PROPORTION = 0.25
"""The part of alpha of each group that tests several columns together; the columns have the rest."""
_POWER = 0.95
"""Unchanged data pass with this probability if they have the planned number of rows."""
_MISSED_PROPORTION = 0.1
"""The part of 1 − _POWER of each group but the columns, which nearly always need the most rows."""
_Z = 1.6449


@dataclass(frozen=True, slots=True)
class Comparison:
    """What every group of tests is given: the data, the profile, and what the gate was asked to decide."""

    window: Window
    profile: ReferenceProfile
    effective: EffectiveRows
    max_distance: float
    alpha: float


Tests = tuple[DriftTest, ...]


@dataclass(frozen=True, slots=True)
class DriftGroup:
    """One kind of drift test.

    `run` returns the tests, and the reason if there are none. `units` returns the test that needs most rows, and its
    units: unchanged data of n effective rows pass `max_distance` = units/√n except with the given probability.
    `max_rows` is the largest number of rows that the tests read.
    """

    run: Callable[[Comparison], tuple[Tests, str]]
    units: Callable[[Tests, float], tuple[DriftTest, float]]
    method: str
    source: str
    max_rows: float = math.inf


@dataclass(frozen=True, slots=True)
class DriftTests:
    """Results of all drift tests by kind, groups without tests left out; `skipped` explains each test not run."""

    groups: Mapping[Kind, Tests]
    skipped: tuple[str, ...] = ()

    def of(self, kind: Kind) -> Tests:
        """Return the tests of one kind, () if none was run."""
        return self.groups.get(kind, ())

    def every(self) -> list[DriftTest]:
        """Return the tests of all groups."""
        return [test for tests in self.groups.values() for test in tests]

    def weighted(self) -> list[tuple[float, Tests]]:
        """Return each group with its proportion of alpha."""
        others = len(self.groups) - 1
        return [
            (1 - ALPHA_PROPORTION * others if kind == "column" else ALPHA_PROPORTION, tests)
            for kind, tests in self.groups.items()
        ]


def run_tests(comparison: Comparison) -> DriftTests:
    """Run every test for which the profile has data; InputError if there are only times."""
    groups, skipped = {}, []
    for kind, group in GROUPS.items():
        tests, reason = group.run(comparison)
        if tests:
            groups[kind] = tests
        if reason:
            skipped.append(reason)
    return DriftTests(groups, tuple(skipped))


def _compare_columns(comparison: Comparison) -> tuple[Tests, str]:
    window = comparison.window
    tests = tuple(
        compare_column(column, reference, comparison.effective.blocks(reference.name))
        for column, reference in window.without_times()
    )
    if not tests:
        raise InputError(f"{window.name} has only columns of times, which are not compared: add other columns")
    times = [reference.name for _, reference in window.pairs if reference.kind == "datetime"]
    return tests, f"times were not compared, because they always advance: {', '.join(map(repr, times))}" * bool(times)


def _compare_pairs(comparison: Comparison) -> tuple[Tests, str]:
    window, profile = comparison.window, comparison.profile
    if profile.associations is None:
        return (), _suppressed("associations", profile, "correlations were not compared")
    blocks = [comparison.effective.blocks(feature.column) for feature in profile.associations.features]
    if window.profile is not None:
        current = window.profile.associations
        if current is None or current.features != profile.associations.features:
            return (), f"correlations were not compared: {window.name} has none that were made like {profile.name!r}"
    else:
        longest = max(block.current for block in blocks)
        current = associate(
            [column.column for column, _ in window.pairs if isinstance(column, RowsColumn)],
            [reference for _, reference in window.pairs],
            profile.associations.features,
            at_most=pair_rows_to_read(comparison.max_distance, profile.associations, block=longest),
        )
    # Rows that are spread over more rows lie further from each other, so that they depend less on each other.
    reference_rate, current_rate = profile.associations.rows / profile.rows, current.rows / window.rows
    return compare_associations(
        profile.associations,
        current,
        reference_block=np.array([1 + (block.reference - 1) * reference_rate for block in blocks]),
        current_block=np.array([1 + (block.current - 1) * current_rate for block in blocks]),
    ), ""


def _suppressed(part: str, profile: ReferenceProfile, lost: str) -> str:
    return f"{lost}: the profile was saved with min_count={profile.min_count}" * (part in profile.left_out)


def _compare_rows(comparison: Comparison) -> tuple[Tests, str]:
    window, profile = comparison.window, comparison.profile
    if profile.sketch is None:
        return (), _suppressed("sketch", profile, "whole rows were not compared")
    if window.profile is not None:
        current = window.profile.sketch
        if current is None:
            return (), f"whole rows were not compared: {window.name} has no sketch"
    else:
        current = sketch_of(
            [column.column for column, _ in window.pairs if isinstance(column, RowsColumn)],
            [reference for _, reference in window.pairs],
            wanted=sketch_rows_to_read(profile.sketch.rows),
        )
    test = compare_rows(
        profile.sketch,
        current,
        profile.columns,
        blocks=comparison.effective.lengths,
        level=comparison.alpha * ALPHA_PROPORTION,
    )
    outliers: tuple[int, ...] = ()
    if window.table is not None:  # from places in the sketch to rows of the data
        outliers = tuple(spread(window.rows, sketch_rows_to_read(profile.sketch.rows))[list(test.outliers)].tolist())
    least_similar = f"; least similar: rows {', '.join(map(str, outliers))}" * bool(outliers)
    detail = f"a classifier distinguishes these rows from the profile's{least_similar}"
    return (replace(test, detail=detail, outliers=outliers),), ""


def _column_units(tests: Tests, missed: float) -> tuple[DriftTest, float]:
    return min(tests, key=lambda test: test.n_effective), standardized_passable_distance(len(tests), 1 - missed)


def _pair_units(tests: Tests, missed: float) -> tuple[DriftTest, float]:
    widest = max(tests, key=lambda test: test.unit / math.sqrt(max(test.n_effective, 1e-9)))
    return widest, (-float(ndtri(missed / 2 / len(tests))) + _Z) * widest.unit


def _rows_units(tests: Tests, missed: float) -> tuple[DriftTest, float]:
    return tests[0], KOLMOGOROV_95 + math.sqrt(-math.log(missed) / 2)


GROUPS: Mapping[Kind, DriftGroup] = {
    "column": DriftGroup(
        _compare_columns,
        _column_units,
        method="Kolmogorov-Smirnov, Fisher; Holm over {}",
        source="Hodges 1958, Arkiv foer Matematik 3:469-486; Fisher 1935, JRSS 98:39-82; Holm 1979",
    ),
    "pair": DriftGroup(
        _compare_pairs,
        _pair_units,
        method="normal-score correlations by fourth moments; Holm over {}",
        source="Steiger & Hakstian 1982, BJMSP 35:208-215",
        max_rows=MAX_ROWS,
    ),
    "rows": DriftGroup(
        _compare_rows,
        _rows_units,
        method="kernel discriminant of whole rows by permutation",
        source="Harchaoui, Bach & Moulines 2007, NIPS 20",
        max_rows=MAX_SKETCH,
    ),
}
"""Every kind of drift test. A new one is a function that returns its tests, and an entry here."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows and budgets with which unchanged data pass all tests in 95 % of cases.

    `rows` is None if the profile has too few rows for any data to pass; a profile of `profile_rows` rows and data of as
    many are enough. `sketch_rows` is the sketch that the profile needs, 0 if its own is large enough. `passable` is the
    smallest budget for the rows at hand, `passed` the smallest that these very data would have passed, and `floor` the
    smallest for any number of rows, as not all rows are read for pairs and whole rows.
    """

    rows: int | None
    profile_rows: int
    sketch_rows: int
    passable: float
    passed: float
    floor: float


@dataclass(frozen=True, slots=True)
class _Requirement:
    """The test of a group that needs the most rows: `units`/√n_effective is the smallest budget that passes."""

    kind: Kind
    test: DriftTest
    units: float

    def effective(self, budget: float) -> float:
        return (self.units / budget) ** 2

    def current(self, budget: float) -> float:
        """Return the blocks of data needed against the rows of the profile; inf if no number is enough."""
        needed, reference = self.effective(budget), self.test.reference_rows
        return needed * reference / (reference - needed) if reference > needed else math.inf

    @property
    def passable(self) -> float:
        return min(self.units / math.sqrt(self.test.n_effective), 1.0) if self.test.n_effective else 1.0


def plan_rows(tests: DriftTests, *, max_distance: float, rows: int, profile_rows: int) -> Plan:
    """Plan the rows for `max_distance`, given `rows` in the data and `profile_rows` in the profile.

    Nulls and blocks are assumed to take the same part of more rows.
    """
    requirements = _requirements(tests)
    column, whole = requirements[0].test, next((need for need in requirements if need.kind == "rows"), None)
    needed = max(need.current(max_distance) for need in requirements) * rows / column.current_rows
    effective = max(need.effective(max_distance) for need in requirements)
    too_small = whole and whole.current(max_distance) > sketch_rows_to_read(int(whole.test.reference_rows))
    return Plan(
        rows=math.ceil(needed) if math.isfinite(needed) else None,
        profile_rows=math.ceil(2 * effective * profile_rows / column.reference_rows),
        sketch_rows=math.ceil(2 * whole.effective(max_distance)) if whole and too_small else 0,
        passable=max(need.passable for need in requirements),
        passed=max(test.upper for test in tests.every()),
        floor=max(need.units / math.sqrt(GROUPS[need.kind].max_rows / 2) for need in requirements),
    )


def _requirements(tests: DriftTests) -> list[_Requirement]:
    missed = (1 - _POWER) * _MISSED_PROPORTION
    of_columns = (1 - _POWER) - missed * (len(tests.groups) - 1)
    return [
        _Requirement(kind, *GROUPS[kind].units(group, of_columns if kind == "column" else missed))
        for kind, group in tests.groups.items()
    ]


def describe_methods(tests: DriftTests) -> tuple[str, str]:
    """Return the names and the sources of all tests that were run."""
    groups = [(GROUPS[kind], count(kind, group)) for kind, group in tests.groups.items()]
    return "; ".join(group.method.format(size) for group, size in groups), "; ".join(g.source for g, _ in groups)


def count(kind: Kind, tests: Sequence[DriftTest]) -> str:
    """Return "6 columns" or "1 pair"; whole rows have no number."""
    return "whole rows" if kind == "rows" else f"{len(tests)} {kind}{'s' * (len(tests) != 1)}"
