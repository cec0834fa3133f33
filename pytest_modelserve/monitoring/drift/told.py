"""The verdict on drift in words: what moved and how, or what is missing for a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring.associations import MAX_ROWS
from pytest_modelserve.monitoring.comparing import Comparison
from pytest_modelserve.monitoring.drift.classifying import ClassifierChange
from pytest_modelserve.monitoring.drift.correlating import PairChange
from pytest_modelserve.monitoring.drift.families import AnyComparison, Families
from pytest_modelserve.monitoring.drift.planning import Plan
from pytest_modelserve.monitoring.judging import Judgement
from pytest_modelserve.monitoring.moved import told_bins, told_change
from pytest_modelserve.monitoring.windows import Pairs

_TOLD = 10
_KEPT = 100
"""Columns whose figures stand in the details: those of one take about 80 of the 16,384 bytes that evidence may have."""
_PAIRS_KEPT = 20


def summary(verdict: Verdict, judgement: Judgement[AnyComparison], families: Families, *, dependence: str) -> str:
    """One sentence on everything that was compared."""
    if dependence:
        return "drift cannot be judged: neighbouring rows depend on each other"
    if verdict is Verdict.INCONCLUSIVE:
        return "drift cannot be told from its budget with these rows"
    if verdict is Verdict.PASS:
        more = [", and no pair of columns"] * bool(families.pairs) + [", and no classifier"] * (
            families.rows is not None
        )
        return f"no column{''.join(more)} is further from its profile than its budget"
    moved, told = judgement.beyond, []
    for kind, what, of in ((Comparison, "column", families.columns), (PairChange, "pair", families.pairs)):
        if count := sum(isinstance(change, kind) for change in moved):
            told.append(f"{count} of {len(of)} {what}s")
    if families.rows in moved:
        told.append("the rows as a whole")
    alone = len(moved) == 1 and families.rows not in moved
    return f"{' and '.join(told)} {'is' if alone else 'are'} further from the profile than the budget"


def findings(
    verdict: Verdict,
    judgement: Judgement[AnyComparison],
    families: Families,
    pairs: Pairs,
    *,
    max_distance: float,
    plan: Plan,
    dependence: str,
) -> tuple[str, ...]:
    """Sentences on what made the verdict, the largest distance first."""
    every = [change for _, family in families.shares() for change in family]
    if dependence:
        seen = [change for change in every if change.distance > max_distance]
        return dependence, *_changes(seen, families, pairs, "seen, and not judged: ")
    if verdict is Verdict.FAIL:
        return _changes(judgement.beyond, families, pairs)
    if verdict is Verdict.PASS:
        within = ", ".join(f"{_label(c)} {c.distance:.3f}" for c in judgement.significant[:_TOLD])
        return (f"within the budget, {len(judgement.significant)} differ from the profile: {within}",) if within else ()
    open_ = sorted((c for c in every if c.high > max_distance), key=lambda c: -c.distance)
    told = ", ".join(f"{_label(c)} {c.distance:.3f} (up to {c.high:.3f})" for c in open_[:_TOLD])
    compared = f"{len(open_)} of {len(every)} {'columns' if len(families.shares()) == 1 else 'comparisons'}"
    return (
        f"{compared} undecided, their distances: {told}",
        f"these rows would have passed max_distance={_up(plan.passed)}; unchanged data of as many rows pass "
        f"{_up(plan.passable)} 19 times in 20",
    )


def advice(verdict: Verdict, *, plan: Plan, rows: int, max_distance: float, dependence: str) -> str:
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
    if max_distance < plan.floor:
        return (
            f"raise max_distance to {_up(plan.floor)}: correlations are read in at most {MAX_ROWS:,} rows and whole "
            "rows in those of a sketch; or profile without them"
        )
    if plan.sketch_rows:
        return f"keep more raw rows in the profile (sketch_rows={plan.sketch_rows}), or raise max_distance"
    if plan.rows is None:
        return (
            f"the profile has too few rows: profile about {plan.profile_rows:,} and give as many, or raise max_distance"
        )
    if plan.rows <= rows:
        return "unchanged data pass with so many rows 19 times in 20: look at what is undecided, or give more"
    return f"give about {plan.rows:,} rows, or raise max_distance"


def details(judgement: Judgement[AnyComparison], families: Families, plan: Plan) -> Mapping[str, Any]:
    """The figures of the largest distances, of the whole rows, and the plan."""
    told: dict[str, Any] = {
        "moved": [change.name for change in judgement.beyond[:_KEPT] if not isinstance(change, PairChange)],
        "distances": _figures(families.columns, _KEPT),
    }
    if families.pairs:
        told["moved_pairs"] = [c.name for c in judgement.beyond if isinstance(c, PairChange)][:_PAIRS_KEPT]
        told["pairs"] = _figures(families.pairs, _PAIRS_KEPT)
    if families.rows is not None:
        told["rows_as_a_whole"] = _figures([families.rows], 1)[families.rows.name]
        told["newest_rows"] = list(families.newest)
    return {**told, **asdict(plan)}


def _figures(changes: Sequence[AnyComparison], most: int) -> dict[str, list[float]]:
    ranked = sorted(changes, key=lambda change: -change.distance)
    return {c.name: [round(c.distance, 5), round(c.high, 5), float(f"{c.p_value:.3g}")] for c in ranked[:most]}


def _changes(changes: Sequence[AnyComparison], families: Families, pairs: Pairs, opening: str = "") -> tuple[str, ...]:
    ranked = sorted(changes, key=lambda change: -change.distance)
    told = [f"{opening}{_label(c)} distance {c.distance:.3f}: {_told(c, families, pairs)}" for c in ranked[:_TOLD]]
    if families.rows is not None and families.rows in ranked[_TOLD:]:
        told.append(f"{opening}{_label(families.rows)}: {_told(families.rows, families, pairs)}")
    return (*told, f"and {len(ranked) - _TOLD} more") if len(ranked) > _TOLD else tuple(told)


def _told(change: AnyComparison, families: Families, pairs: Pairs) -> str:
    if isinstance(change, PairChange):
        return change.told
    if isinstance(change, ClassifierChange):
        rows = ", ".join(map(str, families.newest))
        return "a classifier tells these rows from the profile's" + (f", rows {rows} most surely" if rows else "")
    column, reference = next(pair for pair in pairs if pair[0].name == change.name)
    return told_change(column, reference) + told_bins(column, reference)


def _label(change: AnyComparison) -> str:
    return repr(change.name) if isinstance(change, Comparison) else change.name


def _up(distance: float) -> str:
    """Rounded up, so that the number told really is enough."""
    return f"{math.ceil(1000 * distance) / 1000:.3f}"
