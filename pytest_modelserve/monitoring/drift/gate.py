"""Have the data moved away from those of the profile, and far enough to matter?"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy.special import ndtri

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Subject, check_error_rates
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, ProfiledColumn
from pytest_modelserve.monitoring.correlations import MAX_ROWS, associate
from pytest_modelserve.monitoring.drift.column_tests import (
    CONFIDENCE,
    Blocks,
    Comparison,
    compare_categories,
    compare_numbers,
    judge_families,
)
from pytest_modelserve.monitoring.drift.multivariate_tests import (
    ClassifierChange,
    PairChange,
    compare_associations,
    compare_rows,
    rows_to_compare,
    rows_to_read,
)
from pytest_modelserve.monitoring.drift.report import advice, details, findings, summary
from pytest_modelserve.monitoring.profile import ReferenceProfile
from pytest_modelserve.monitoring.profiler import dependence_told
from pytest_modelserve.monitoring.sketch import MAX_SKETCH, sketch_of, spread
from pytest_modelserve.monitoring.window import Pairs, RowsColumn, Window, WindowColumn, read_window
from pytest_modelserve.stats.two_sample_tests import KOLMOGOROV_95, standardized_passable_distance

if TYPE_CHECKING:
    from pytest_modelserve.monitoring.readers import Data

# The comparisons of one data set with its profile, in families that share one alpha: columns, pairs, whole rows.


SHARE = 0.25
"""Of alpha, for each of the families that look at columns together; the columns themselves take the rest."""

AnyComparison = Comparison | PairChange | ClassifierChange


@dataclass(frozen=True, slots=True)
class Families:
    """All comparisons, of those that could not be made a sentence each, and the numbers of up to five rows of the data
    that look least like the profile's.
    """

    columns: tuple[Comparison, ...]
    pairs: tuple[PairChange, ...] = ()
    rows: ClassifierChange | None = None
    left_out: tuple[str, ...] = ()
    newest: tuple[int, ...] = ()

    def shares(self) -> list[tuple[float, Sequence[AnyComparison]]]:
        """The families that were compared, each with its share of alpha."""
        others = [family for family in (self.pairs, (self.rows,) if self.rows else ()) if family]
        return [(1 - SHARE * len(others), self.columns), *((SHARE, family) for family in others)]


def compare_families(
    window: Window, profile: ReferenceProfile, blocks: Blocks, *, max_distance: float, alpha: float
) -> Families:
    """Every comparison that the profile has something for; InputError for a column of which nothing is known."""
    columns = tuple(_compare(column, reference, blocks) for column, reference in without_times(window.pairs))
    if not columns:
        raise InputError(f"{window.name} has no column but times, which always move on: there is nothing to compare")
    pairs, no_pairs = _compare_pairs(window, profile, blocks, max_distance)
    rows, no_rows = _compare_rows(window, profile, blocks, alpha * SHARE)
    newest: tuple[int, ...] = ()
    if rows is not None and window.table is not None and profile.sketch is not None:
        read = spread(window.rows, rows_to_compare(profile.sketch.kept))
        newest = tuple(read[list(rows.newest)].tolist())
    times = [reference.name for _, reference in window.pairs if reference.kind == "datetime"]
    no_times = f"times were not compared, as they always move on: {', '.join(map(repr, times))}" if times else ""
    left_out = tuple(sentence for sentence in (no_times, no_pairs, no_rows) if sentence)
    return Families(columns, pairs, rows, left_out, newest)


def without_times(pairs: Pairs) -> Pairs:
    """The pairs of columns but those of times: a later window is of later times, which is no drift."""
    return tuple(pair for pair in pairs if pair[1].kind != "datetime")


def _compare(column: WindowColumn, reference: ProfiledColumn, blocks: Blocks) -> Comparison:
    if column.kind is None:
        raise InputError(f"column {column.name!r} is null in every row: there is nothing to compare with the profile")
    if isinstance(reference, CategoricalColumn):
        _, then, now = column.beside(reference)
        return compare_categories(column.name, then, now, blocks=blocks)
    counts = column.counts(reference)
    if not counts[1:-1].any() and not column.facts(reference).finite:
        raise InputError(f"column {column.name!r} is infinite in every row that is not null: mend it or leave it out")
    return compare_numbers(column.name, reference.counts, counts, blocks=blocks)


def _compare_pairs(
    window: Window, profile: ReferenceProfile, blocks: Blocks, max_distance: float
) -> tuple[tuple[PairChange, ...], str]:
    if profile.associations is None:
        return (), ""
    if window.profile is not None:
        current = window.profile.associations
        if current is None or current.features != profile.associations.features:
            return (), f"correlations were not compared: {window.name} has none that were made like {profile.name!r}"
    else:
        current = associate(
            [column.column for column, _ in window.pairs if isinstance(column, RowsColumn)],
            [reference for _, reference in window.pairs],
            profile.associations.features,
            at_most=rows_to_read(max_distance, profile.associations, block=blocks.current),
        )
    # Rows that were read of far more lie apart, and fewer of them share a block.
    read, of_window = profile.associations.rows / profile.rows, current.rows / window.rows
    pairs = compare_associations(
        profile.associations,
        current,
        reference_block=max(blocks.reference * read, 1.0),
        current_block=max(blocks.current * of_window, 1.0),
    )
    return pairs, ""


def _compare_rows(
    window: Window, profile: ReferenceProfile, blocks: Blocks, level: float
) -> tuple[ClassifierChange | None, str]:
    if profile.sketch is None:
        return None, ""
    if window.profile is not None:
        current = window.profile.sketch
        if current is None:
            return None, f"whole rows were not compared: {window.name} has no sketch"
    else:
        current = sketch_of(
            [column.column for column, _ in window.pairs if isinstance(column, RowsColumn)],
            [reference for _, reference in window.pairs],
            wanted=rows_to_compare(profile.sketch.kept),
        )
    return compare_rows(profile.sketch, current, profile.columns, blocks=blocks, level=level), ""


# What these rows could have decided, and how many rows would decide.


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
    yield _Need(scarce, standardized_passable_distance(len(families.columns), 1 - of_columns))
    if families.pairs:
        quantile = -float(ndtri(missed / 2 / len(families.pairs)))
        widest = max(families.pairs, key=lambda change: change.unit / math.sqrt(max(change.effective, 1e-9)))
        yield _Need(widest, (quantile + _Z) * widest.unit, MAX_ROWS)
    if families.rows is not None:
        yield _Need(families.rows, KOLMOGOROV_95 + math.sqrt(-math.log(missed) / 2), MAX_SKETCH)


def measure_drift(
    data: Data | ReferenceProfile,
    profile: ReferenceProfile,
    *,
    max_distance: float,
    alpha: float = 0.01,
    block: int | None = None,
    name: str | None = None,
) -> Evidence:
    """Evidence that nothing in `data` lies further than `max_distance`, 0 to 1, from what it is in `profile`.

    The distance of a column of numbers is the largest difference of the two distribution functions at the profile's
    edges, of a column of categories the largest difference of the two shares of one category. Null is left out: its
    share is for `measure_data_quality`; so are times, which always move on and are not compared. An infinity counts as
    the largest or the smallest number. Where the profile has
    associations, the distance of each pair of columns is half the change of its normal-score correlation; where it has
    a sketch, that of all columns together is the Kolmogorov-Smirnov distance of a classifier's held-out scores. `data`
    may also be the profile of rows that were counted elsewhere, made `like=profile`.

    FAIL: something differs from the profile significantly, within `alpha` over everything (Holm over columns, Holm over
    pairs, one permutation test of whole rows), and is seen further away than `max_distance`. Pairs and whole rows each
    take a quarter of alpha, if the profile has them, and columns the rest. Unchanged data fail with probability at most
    `alpha`; data that have changed, but by less than `max_distance`, are not protected by it. PASS: every upper bound
    keeps `max_distance`: of columns and scores their distance plus 1.36/√n_eff with n_eff = N·m/(N + m), of pairs that
    plus 1.645 standard errors; data with a column beyond it pass in fewer than 5 % of samples. Else INCONCLUSIVE, with
    the rows that would do and the budget that these could have passed.

    Assumes independent rows, or at most `block` neighbouring ones that depend on each other: N and m rows then count as
    N/block and m/block, and the classifier reads one row of each block (`profile.block` where that is set, for the
    profile's rows and, without `block`, for both). With neither, rows whose autocorrelation at lag one is significantly
    above 0.1 make every verdict INCONCLUSIVE; weaker dependence, or one that few rows do not show, goes unnoticed.
    `block=1` says that the order of the rows, sorted by label perhaps, means nothing. `name` is what the data are
    called in reports: by default their file's stem.

    Raises InputError, naming the column, for data that do not fit the profile (missing, additional, renamed or retyped
    columns, a profile of other edges), a single row and a column that is all null or all infinite; UsageError for
    budgets out of range.
    """
    check_error_rates(confidence=CONFIDENCE, alpha=alpha)
    if not 0 < max_distance < 1:
        raise UsageError(f"max_distance is a distance between 0 and 1 (0.1, say), not {max_distance}")
    if block is not None and block < 1:
        raise UsageError(f"block is a number of rows, at least 1, not {block}")
    started = time.perf_counter()
    window = read_window(data, profile, name=name)
    if window.rows < 2:
        raise InputError(f"{window.name} has one row, and one row has no distribution")
    pairs = without_times(window.whole(profile).pairs)
    given = block or (window.profile.block if window.profile else None)
    blocks = Blocks(profile.block or given or 1, given or profile.block or 1)
    families = compare_families(window, profile, blocks, max_distance=max_distance, alpha=alpha)
    dependence = "" if given or profile.block else dependence_told(pairs, data=window.name)
    judgement = judge_families(families.shares(), budget=max_distance, alpha=alpha)
    interval = Interval(0.0, 1.0, 1 - alpha, CONFIDENCE) if dependence else judgement.interval
    distance = Quantity("distance", judgement.headline.distance, "", interval, Budget("at_most", max_distance))
    verdict = distance.verdict
    assert verdict is not None
    plan = plan_rows(families, max_distance=max_distance, rows=window.rows, profile_rows=profile.rows)
    return Evidence(
        gate="drift",
        subject=Subject(window.name),
        reference=Subject(profile.name, sha256=profile.digest),
        quantities=(distance,),
        n=window.rows,
        n_unit="rows",
        method=_method(families, blocks),
        summary=summary(verdict, judgement, families, dependence=dependence),
        confidence=CONFIDENCE,
        alpha=alpha,
        findings=findings(
            verdict, judgement, families, pairs, max_distance=max_distance, plan=plan, dependence=dependence
        ),
        advice=advice(verdict, plan=plan, rows=window.rows, max_distance=max_distance, dependence=dependence),
        details=details(judgement, families, plan),
        duration_s=time.perf_counter() - started,
    )


def _method(families: Families, blocks: Blocks) -> Method:
    columns = len(families.columns)
    tests = [f"Kolmogorov-Smirnov, Fisher; Holm over {columns} column{'s' * (columns > 1)}"]
    sources = ["Hodges 1958, Arkiv foer Matematik 3:469-486; Fisher 1935, JRSS 98:39-82; Holm 1979"]
    if families.pairs:
        pairs = len(families.pairs)
        tests.append(f"normal-score correlations by fourth moments; Holm over {pairs} pair{'s' * (pairs > 1)}")
        sources.append("Steiger & Hakstian 1982, BJMSP 35:208-215")
    if families.rows is not None:
        tests.append("kernel discriminant of whole rows by permutation")
        sources.append("Harchaoui, Bach & Moulines 2007, NIPS 20")
    return Method(
        f"low end a test of no change ({'; '.join(tests)})",
        "; ".join(sources),
        "independent rows"
        + ("" if blocks == Blocks() else f", or blocks of {blocks.current} (profile: {blocks.reference}) of them")
        + "; the low end is the distance as seen if it differs from none significantly, else 0, and no bound"
        + "".join(f"; {sentence}" for sentence in families.left_out),
    )
