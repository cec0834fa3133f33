"""The verdict on drift in words: what moved and how, or what is missing for a verdict."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring.column_profile import POOLS, CategoricalColumn, NumericColumn, ProfiledColumn, pool_of
from pytest_modelserve.monitoring.correlations import MAX_ROWS
from pytest_modelserve.monitoring.drift.column_tests import Comparison, Judgement
from pytest_modelserve.monitoring.drift.multivariate_tests import ClassifierChange, PairChange
from pytest_modelserve.monitoring.timestamps import written

if TYPE_CHECKING:
    from pytest_modelserve.monitoring.drift.gate import AnyComparison, Families, Plan
    from pytest_modelserve.monitoring.window import Pairs, WindowColumn

# Times, which columns hold as seconds since 1970 in UTC, as people write them.


# Words for what columns hold, and their numbers: a date where the column holds dates.


_DAY_S = 86_400
_UNITS_S = ((_DAY_S, "days"), (3600, "hours"), (60, "minutes"))


def told_value(kind: str, number: float) -> str:
    """`number` of a column of this kind: "2026-11-22", "2026-11-22 03:04:05" in UTC, or six digits of any other."""
    if kind != "datetime" or not math.isfinite(number):
        return f"{number:.6g}"
    if number % _DAY_S == 0:
        return str(np.datetime64(int(number) // _DAY_S, "D"))
    return written(number)


def told_step(kind: str, difference: float) -> str:
    """A difference of two such numbers: "+3.2 days", "-40 seconds", or three digits of any other."""
    if kind != "datetime":
        return f"{difference:+.3g}"
    size, unit = next(((size, unit) for size, unit in _UNITS_S if abs(difference) >= 2 * size), (1, "seconds"))
    steps = difference / size
    return f"{steps:+.3g} {unit}" if abs(steps) < 1000 else f"{steps:+,.0f} {unit}"


# What changed in a column, in its own units: means and medians, or the shares of categories.


_SHARES_TOLD = 3
_COST = 1.1


def told_change(column: WindowColumn, reference: ProfiledColumn) -> str:
    """How `column` differs from its profile: "mean 325.0 → 354.4 (+29.4), median 324.5 → 353.6"."""
    if isinstance(reference, CategoricalColumn):
        return _told_shares(column, reference)
    before, after = reference.mean, column.mean()
    if math.isnan(after):
        return "no finite value is left"
    if reference.kind == "boolean":
        return f"true in {points(before, after)}"
    return (
        f"mean {_number(reference, before)} → {_number(reference, after)} "
        f"({told_step(reference.kind, after - before)}), "
        f"median {_number(reference, reference.median)} → {_number(reference, column.median())}"
    )


def _number(column: NumericColumn, number: float) -> str:
    return told_value(column.kind, number) if column.kind == "datetime" else f"{number:.4g}"


def told_bins(column: WindowColumn, reference: ProfiledColumn) -> str:
    """Where a column of numbers gained most: "; most gained in [352, 355): 0.3 % → 31.0 % (+30.7 points)"; else ""."""
    if isinstance(reference, CategoricalColumn) or reference.kind == "boolean":
        return ""
    then, now = np.array(reference.counts, dtype=np.float64), column.counts(reference).astype(np.float64)
    below_then = np.concatenate(([0.0], np.cumsum(then) / then.sum()))
    below_now = np.concatenate(([0.0], np.cumsum(now) / now.sum()))
    # Each row that was there before costs a tenth, so that the range ends where rows no longer gain.
    gained = below_now - _COST * below_then
    last = int((gained - np.minimum.accumulate(gained)).argmax())
    first = int(gained[: last + 1].argmin())
    if first == last:
        return ""
    low = reference.edges[first - 1] if first else -math.inf
    high = reference.edges[last - 1] if last < len(then) else math.inf
    before, after = below_then[last] - below_then[first], below_now[last] - below_now[first]
    return f"; most gained {_range(reference, low, high)}: {points(float(before), float(after))}"


def _range(column: NumericColumn, low: float, high: float) -> str:
    """ "in [1.2, 3.4)", "below 3.4", "from 1.2 on"; of whole numbers "at 3" or "from 3 to 7"."""
    if column.kind == "integer" and math.isfinite(low) and math.isfinite(high):
        first, last = math.ceil(low), math.ceil(high) - 1
        return f"at {first}" if first == last else f"from {first} to {last}"
    if math.isinf(low):
        return f"below {_number(column, high)}"
    if math.isinf(high):
        return f"from {_number(column, low)} on"
    return f"in [{_number(column, low)}, {_number(column, high)})"


def _told_shares(column: WindowColumn, reference: CategoricalColumn) -> str:
    keys, before, after = column.beside(reference)
    changes = sorted(
        zip(keys, np.array(before) / reference.known, np.array(after) / sum(after), strict=True),
        key=lambda change: -abs(change[2] - change[1]),
    )
    counts = column.categories() or Counter[str]()
    common = {pool_of(category): category for category, _ in reversed(counts.most_common())}
    told = []
    for key, then, now in changes[:_SHARES_TOLD]:
        if then != now:
            mostly = f" (now mostly {common[key]!r})" if key in common else ""
            label = repr(key) if isinstance(key, str) else f"pool {key} of {POOLS}{mostly}"
            told.append(f"{label} {points(then, now)}")
    return ", ".join(told)


def points(before: float, after: float) -> str:
    """The change of a share: "51.3 % → 75.5 % (+24.1 points)"."""
    return f"{100 * before:.1f} % → {100 * after:.1f} % ({100 * (after - before):+.1f} points)"


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
