"""The verdict on drift in words: which columns moved and how, or what is missing for a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring.columns import Column
from pytest_modelserve.monitoring.comparing import Comparison
from pytest_modelserve.monitoring.judging import Judgement
from pytest_modelserve.monitoring.moved import told_change
from pytest_modelserve.monitoring.planning import Plan
from pytest_modelserve.monitoring.profiled import ProfiledColumn

_TOLD = 10
_KEPT = 100
"""Columns whose figures stand in the details: those of one take about 80 of the 16,384 bytes that evidence may have."""

Pairs = Sequence[tuple[Column, ProfiledColumn]]


def summary(verdict: Verdict, judgement: Judgement[Comparison], *, columns: int, dependence: str) -> str:
    """One sentence on all columns."""
    if dependence:
        return "drift cannot be judged: neighbouring rows depend on each other"
    moved = len(judgement.beyond)
    return {
        Verdict.PASS: "no column is further from its profile than its budget",
        Verdict.FAIL: f"{moved} of {columns} columns {'is' if moved == 1 else 'are'} further from the profile than the "
        "budget",
        Verdict.INCONCLUSIVE: "drift cannot be told from its budget with these rows",
    }[verdict]


def findings(
    verdict: Verdict,
    judgement: Judgement[Comparison],
    comparisons: Sequence[Comparison],
    pairs: Pairs,
    *,
    max_distance: float,
    plan: Plan,
    dependence: str,
) -> tuple[str, ...]:
    """Sentences on the columns that made the verdict, the largest distance first."""
    if dependence:
        seen = [comparison for comparison in comparisons if comparison.distance > max_distance]
        return dependence, *_changes(seen, pairs, "seen, and not judged: ")
    if verdict is Verdict.FAIL:
        return _changes(judgement.beyond, pairs)
    if verdict is Verdict.PASS:
        within = ", ".join(f"{c.name!r} {c.distance:.3f}" for c in judgement.significant[:_TOLD])
        return (f"within the budget, {len(judgement.significant)} differ from the profile: {within}",) if within else ()
    open_ = sorted((c for c in comparisons if c.high > max_distance), key=lambda c: -c.distance)
    told = ", ".join(f"{c.name!r} {c.distance:.3f} (up to {c.high:.3f})" for c in open_[:_TOLD])
    return (
        f"{len(open_)} of {len(comparisons)} columns undecided, their distances: {told}",
        f"these rows would have passed max_distance={_up(plan.passed)}; unchanged data of as many rows pass "
        f"{_up(plan.passable)} 19 times in 20",
    )


def advice(verdict: Verdict, *, plan: Plan, rows: int, dependence: str) -> str:
    """What to do next; empty after PASS."""
    if verdict is Verdict.PASS:
        return ""
    if verdict is Verdict.FAIL:
        return (
            "find what changed these columns upstream; where the change is real and wanted, retrain on newer data and "
            "profile them"
        )
    if dependence:
        return (
            "say how many neighbouring rows depend on each other (block=52 for a year of weekly rows), or block=1 "
            "where the order of the rows means nothing"
        )
    if plan.rows is None:
        return (
            f"the profile has too few rows: profile about {plan.profile_rows:,} and give as many, or raise max_distance"
        )
    if plan.rows <= rows:
        return "unchanged data pass with so many rows 19 times in 20: look at what is undecided, or give more"
    return f"give about {plan.rows:,} rows, or raise max_distance"


def details(comparisons: Sequence[Comparison], judgement: Judgement[Comparison], plan: Plan) -> Mapping[str, Any]:
    """The figures of the columns with the largest distances, and the plan."""
    ranked = sorted(comparisons, key=lambda comparison: -comparison.distance)
    return {
        "moved": [comparison.name for comparison in judgement.beyond[:_KEPT]],
        "distances": {
            c.name: [round(c.distance, 5), round(c.high, 5), float(f"{c.p_value:.3g}")] for c in ranked[:_KEPT]
        },
        **asdict(plan),
    }


def _changes(comparisons: Sequence[Comparison], pairs: Pairs, opening: str = "") -> tuple[str, ...]:
    by_name = {column.name: (column, reference) for column, reference in pairs}
    ranked = sorted(comparisons, key=lambda comparison: -comparison.distance)
    told = [f"{opening}{c.name!r} distance {c.distance:.3f}: {told_change(*by_name[c.name])}" for c in ranked[:_TOLD]]
    return (*told, f"and {len(ranked) - _TOLD} more columns") if len(ranked) > _TOLD else tuple(told)


def _up(distance: float) -> str:
    """Rounded up, so that the number told really is enough."""
    return f"{math.ceil(1000 * distance) / 1000:.3f}"
