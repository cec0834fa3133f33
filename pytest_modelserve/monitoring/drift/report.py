"""Messages of the drift gate: which columns changed and how, and what is missing for a verdict."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.special import kolmogi

from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring.column_profile import (
    CategoricalColumn,
    NumericColumn,
    ProfiledColumn,
    hash_bucket,
    hash_key,
)
from pytest_modelserve.monitoring.correlations import MAX_ROWS
from pytest_modelserve.monitoring.decision import DriftResult
from pytest_modelserve.monitoring.drift.column_tests import DriftTest
from pytest_modelserve.monitoring.drift.effective_rows import EffectiveRows
from pytest_modelserve.monitoring.drift.groups import DriftTests, Plan, count
from pytest_modelserve.monitoring.drift.histograms import histograms_of
from pytest_modelserve.monitoring.formats import (
    format_difference,
    format_rate_change,
    format_value,
    suggest_exclusion,
)
from pytest_modelserve.monitoring.window import Pairs, WindowColumn
from pytest_modelserve.settings import shown_value

_MAX_FINDINGS = 10
_MAX_COLUMNS = 100
"""Columns with figures in the details: one takes about 80 of the 16,384 bytes that evidence may have."""
_MAX_PAIRS = 20


def summary(
    verdict: Verdict,
    result: DriftResult[DriftTest],
    tests: DriftTests,
    effective: EffectiveRows,
    *,
    faults: Sequence[str],
) -> str:
    """Return one sentence on the columns that cannot be compared, and on all tests."""
    of_tests = _summary_of_tests(verdict, result, tests, effective)
    columns = f"{len(faults)} column{'s' * (len(faults) != 1)}"
    return f"{columns} cannot be compared with the profile; of the others, {of_tests}" if faults else of_tests


def _summary_of_tests(
    verdict: Verdict, result: DriftResult[DriftTest], tests: DriftTests, effective: EffectiveRows
) -> str:
    if verdict is Verdict.INCONCLUSIVE:
        few = "not enough independent blocks of rows" if effective.dependent else "not enough rows"
        return f"{few} to decide whether drift exceeds max_distance"
    if verdict is Verdict.PASS:
        return f"no distance exceeds max_distance ({', '.join(count(*group) for group in tests.groups.items())})"
    moved = Counter(test.kind for test in result.beyond)
    subjects = [
        "the rows as a whole" if kind == "rows" else f"{moved[kind]} of {count(kind, group)}"
        for kind, group in tests.groups.items()
        if moved[kind]
    ]
    verb = "differs" if len(result.beyond) == 1 and not moved["rows"] else "differ"
    return f"{' and '.join(subjects)} {verb} from the profile by more than max_distance"


def shown(messages: Sequence[str]) -> tuple[str, ...]:
    """Return the first messages, and how many more there are."""
    more = (f"and {len(messages) - _MAX_FINDINGS} more",) if len(messages) > _MAX_FINDINGS else ()
    return (*messages[:_MAX_FINDINGS], *more)


def findings(
    verdict: Verdict,
    result: DriftResult[DriftTest],
    tests: DriftTests,
    pairs: Pairs,
    effective: EffectiveRows,
    *,
    max_distance: float,
    alpha: float,
    plan: Plan,
) -> tuple[str, ...]:
    """Return the reasons for the verdict, the largest distance first, and the dependence of the rows."""
    dependence = (effective.describe(),) if effective.dependent else ()
    every = tests.every()
    if verdict is Verdict.FAIL:
        return *_changes(result.beyond, pairs), *_not_significant(tests, result, max_distance, effective), *dependence
    if verdict is Verdict.PASS:
        within = ", ".join(f"{test.label} {test.distance:.3f}" for test in result.significant[:_MAX_FINDINGS])
        significant = (f"significant, but within max_distance ({len(result.significant)}): {within}",) if within else ()
        return *significant, *dependence
    undecided = sorted((test for test in every if test.upper > max_distance), key=lambda test: -test.distance)
    distances = ", ".join(f"{t.label} {t.distance:.3f} (at most {t.upper:.3f})" for t in undecided[:_MAX_FINDINGS])
    return (
        *(_missing_blocks(tests, pairs, effective, max_distance=max_distance, alpha=alpha) if dependence else ()),
        *dependence,
        f"{len(undecided)} of {len(every)} distances are undecided: {distances}",
        f"these rows would have passed max_distance={_round_up(plan.passed)}; unchanged data of as many rows pass "
        f"{_round_up(plan.passable)} in 95 % of cases",
    )


def _not_significant(
    tests: DriftTests, result: DriftResult[DriftTest], max_distance: float, effective: EffectiveRows
) -> tuple[str, ...]:
    """Return the columns beside those of a FAIL that moved, but not significantly in few blocks."""
    moved = sorted(tests.of("column"), key=lambda test: -test.distance)
    others = [t for t in moved if t.distance > max_distance and t not in result.significant]
    if not effective.dependent or not others:
        return ()
    named = ", ".join(f"{test.label} {test.distance:.3f}" for test in others[:_MAX_FINDINGS])
    return (f"also beyond max_distance, but not significant in so few blocks ({len(others)}): {named}",)


def _missing_blocks(
    tests: DriftTests, pairs: Pairs, effective: EffectiveRows, *, max_distance: float, alpha: float
) -> tuple[str, ...]:
    """Return for each column that moved, but not significantly, the blocks that it has and those that it lacks."""
    columns = tests.of("column")
    level = alpha * next(proportion for proportion, group in tests.weighted() if group is columns) / len(columns)
    moved = sorted((test for test in columns if test.distance > max_distance), key=lambda test: -test.distance)
    lines = []
    for test in moved[:_MAX_FINDINGS]:
        column, reference = next(pair for pair in pairs if pair[1].name == test.name)
        then, now = effective.reference[test.name].block, effective.current[test.name].block
        before, after = reference.rows / then, column.rows / now
        lacking = _lacking_blocks(test, (float(kolmogi(level)) / test.distance) ** 2, before, after)
        lines.append(
            f"{test.label} distance {test.distance:.3f} is not significant in {before:,.0f} blocks of {then:.0f} rows "
            f"in the profile and {after:,.0f} of {now:.0f} in the data: {lacking} needed; {_column_detail(test, pairs)}"
        )
    return (*lines, f"and {len(moved) - _MAX_FINDINGS} more") if len(moved) > _MAX_FINDINGS else tuple(lines)


def _lacking_blocks(test: DriftTest, needed: float, before: float, after: float) -> str:
    """Return the blocks that either side lacks, if `needed` effective rows make the distance significant.

    If the larger side is more than twice as large as needed, only the smaller one has to grow.
    """
    larger = max(test.reference_rows, test.current_rows)
    wanted = needed * larger / (larger - needed) if larger > 2 * needed else 2 * needed
    sides = (("in the profile", before, test.reference_rows), ("of data", after, test.current_rows))
    more = [
        f"about {math.ceil(blocks * (wanted / rows - 1)):,} more blocks {side}"
        for side, blocks, rows in sides
        if rows < wanted
    ]
    return f"{' and '.join(more)} are" if more else "slightly more rows are"


def advice(
    verdict: Verdict,
    effective: EffectiveRows,
    *,
    plan: Plan,
    rows: int,
    profile_rows: int,
    max_distance: float,
    faults: Sequence[str],
) -> str:
    """Return the next step; empty after PASS."""
    if faults:
        return "repair what writes these columns, or leave them out with exclude=; then test again"
    if verdict is Verdict.PASS:
        return ""
    if verdict is Verdict.FAIL:
        return (
            "find the upstream change of these columns; if it is intended, retrain on newer data and profile that data"
        )
    enough = _enough_rows(plan, rows=rows, profile_rows=profile_rows, max_distance=max_distance)
    if effective.dependent:
        return f"{enough}; if independent rows were sorted, so that their order has no meaning, pass block=1"
    return enough


def _enough_rows(plan: Plan, *, rows: int, profile_rows: int, max_distance: float) -> str:
    """Return which side has too few rows, and how many are enough."""
    if max_distance < plan.floor:
        return (
            f"raise max_distance to {_round_up(plan.floor)}: correlations are read from at most {MAX_ROWS:,} rows, and "
            "whole rows from a sketch; or profile without them"
        )
    if plan.sketch_rows:
        as_many = " and test as many" if rows < plan.sketch_rows else ""
        if plan.sketch_rows > profile_rows:
            more = f"the profile has too few rows ({profile_rows:,}): profile about {plan.sketch_rows:,} rows with "
        else:
            more = "store more raw rows in the profile: "
        return f"{more}sketch_rows={plan.sketch_rows}{as_many}, or raise max_distance"
    if plan.rows is None:
        return (
            f"the profile has too few rows ({profile_rows:,}) for data of any size: profile about "
            f"{plan.profile_rows:,} rows and test as many, or raise max_distance"
        )
    if plan.rows <= rows:
        return "unchanged data of this size pass in 95 % of cases: inspect what is undecided, or provide more rows"
    if plan.profile_rows > profile_rows:
        return (
            f"provide about {plan.rows:,} rows in place of {rows:,} against this profile of {profile_rows:,}, or "
            f"profile about {plan.profile_rows:,} rows and test as many, or raise max_distance"
        )
    return (
        f"provide about {plan.rows:,} rows in place of {rows:,} (the {profile_rows:,} of the profile are enough), or "
        "raise max_distance"
    )


def details(
    result: DriftResult[DriftTest],
    tests: DriftTests,
    plan: Plan,
    effective: EffectiveRows,
    *,
    pairs: Pairs,
    faults: Sequence[str],
) -> Mapping[str, Any]:
    """Return the columns that cannot be compared, the figures of the largest distances, histograms, and the plan."""
    figures: dict[str, Any] = {
        "moved": [test.name for test in result.beyond[:_MAX_COLUMNS] if test.kind != "pair"],
        "distances": _figures(tests.of("column"), _MAX_COLUMNS),
    }
    for kind, group in tests.groups.items():
        if kind == "pair":
            figures["moved_pairs"] = [test.name for test in result.beyond if test.kind == "pair"][:_MAX_PAIRS]
        if kind == "rows":
            figures["rows_as_a_whole"] = _figures(group, 1)[group[0].name]
            figures["outlier_rows"] = list(group[0].outliers)
        elif kind != "column":
            figures[f"{kind}s"] = _figures(group, _MAX_PAIRS)
    moved = [test.name for test in sorted(result.beyond, key=lambda test: -test.distance) if test.kind == "column"]
    if moved:
        figures["histograms"] = histograms_of(moved, pairs)
    if faults:
        figures["faulty_columns"] = list(shown(faults))
    if effective.dependent:
        figures["dependence"] = effective.figures()
    return {**figures, **asdict(plan)}


def _figures(tests: Sequence[DriftTest], most: int) -> dict[str, list[float]]:
    ranked = sorted(tests, key=lambda test: -test.distance)[:most]
    return {t.name: [round(t.distance, 5), round(t.upper, 5), float(f"{t.p_value:.3g}")] for t in ranked}


def _changes(
    tests: Sequence[DriftTest],
    pairs: Pairs,
) -> tuple[str, ...]:
    ranked = sorted(tests, key=lambda test: -test.distance)
    shown = [*ranked[:_MAX_FINDINGS], *(test for test in ranked[_MAX_FINDINGS:] if test.kind == "rows")]
    lines = [f"{t.label} distance {t.distance:.3f}: {t.detail or _column_detail(t, pairs)}" for t in shown]
    return (*lines, f"and {len(ranked) - _MAX_FINDINGS} more") if len(ranked) > _MAX_FINDINGS else tuple(lines)


def _column_detail(test: DriftTest, pairs: Pairs) -> str:
    column, reference = next(pair for pair in pairs if pair[0].name == test.name)
    exclusion = suggest_exclusion(test.name, reference.kind, test.distance)
    return describe_change(column, reference) + describe_gain(column, reference) + exclusion


def _round_up(distance: float) -> str:
    """Round up, so that the number shown is really enough."""
    return f"{math.ceil(1000 * distance) / 1000:.3f}"


_MAX_CATEGORIES = 3
_COST = 1.1


def describe_change(column: WindowColumn, reference: ProfiledColumn) -> str:
    """Describe how a column differs: "mean 325.0 → 354.4 (+29.4), median 324.5 → 353.6"."""
    if isinstance(reference, CategoricalColumn):
        return _describe_categories(column, reference)
    before, after = reference.mean, column.mean()
    if math.isnan(after):
        return "no finite value is left"
    if reference.kind == "boolean":
        return f"true in {format_rate_change(before, after)}"
    return (
        f"mean {_number(reference, before)} → {_number(reference, after)} "
        f"({format_difference(reference.kind, after - before)}), "
        f"median {_number(reference, reference.median)} → {_number(reference, column.median())}"
    )


def _describe_categories(column: WindowColumn, reference: CategoricalColumn) -> str:
    keys, before, after = column.align(reference)
    changes = sorted(
        zip(keys, np.array(before) / reference.known, np.array(after) / sum(after), strict=True),
        key=lambda change: -abs(change[2] - change[1]),
    )
    counts = column.categories() or Counter[str]()
    secret = hash_key(column.name, reference.key_check) if reference.hashed else None
    common = {
        hash_bucket(category, secret) % len(reference.counts): category
        for category, _ in reversed(counts.most_common())
    }
    described = []
    for key, then, now in changes[:_MAX_CATEGORIES]:
        if then != now:
            mostly = f" (now mostly {common[key]!r})" if key in common else ""
            label = repr(key) if isinstance(key, str) else f"hash bucket {key} of {len(keys)}{mostly}"
            described.append(f"{shown_value(column.name, label)} {format_rate_change(then, now)}")
    return ", ".join(described)


def describe_gain(column: WindowColumn, reference: ProfiledColumn) -> str:
    """Describe the range that gained most: "; most gained in [352, 355): 0.3 % → 31.0 % (+30.7 points)"; or ""."""
    if isinstance(reference, CategoricalColumn) or reference.kind == "boolean":
        return ""
    before, after = np.array(reference.counts, dtype=np.float64), column.counts(reference).astype(np.float64)
    below_before = np.concatenate(([0.0], np.cumsum(before) / before.sum()))
    below_after = np.concatenate(([0.0], np.cumsum(after) / after.sum()))
    # Each row that was there before costs a tenth, so that the range ends where rows no longer gain.
    gained = below_after - _COST * below_before
    last = int((gained - np.minimum.accumulate(gained)).argmax())
    first = int(gained[: last + 1].argmin())
    if first == last:
        return ""
    low = reference.edges[first - 1] if first else -math.inf
    high = reference.edges[last - 1] if last < len(before) else math.inf
    then, now = below_before[last] - below_before[first], below_after[last] - below_after[first]
    return f"; most gained {_range(reference, low, high)}: {format_rate_change(float(then), float(now))}"


def _number(column: NumericColumn, number: float) -> str:
    return format_value(column.kind, number) if column.kind == "datetime" else f"{number:.4g}"


def _range(column: NumericColumn, low: float, high: float) -> str:
    """Format a range: "in [1.2, 3.4)", "below 3.4", "from 1.2 on"; of integers "at 3" or "from 3 to 7"."""
    if column.kind == "integer" and math.isfinite(low) and math.isfinite(high):
        first, last = math.ceil(low), math.ceil(high) - 1
        return f"at {first}" if first == last else f"from {first} to {last}"
    if math.isinf(low):
        return f"below {_number(column, high)}"
    if math.isinf(high):
        return f"from {_number(column, low)} on"
    return f"in [{_number(column, low)}, {_number(column, high)})"
