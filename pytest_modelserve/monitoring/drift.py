"""Have the data moved away from those of the profile, and far enough to matter?"""

from __future__ import annotations

import time

import numpy as np

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Subject, check_error_rates
from pytest_modelserve.monitoring import drift_told
from pytest_modelserve.monitoring.binning import count_values
from pytest_modelserve.monitoring.columns import Column, Data, read_table
from pytest_modelserve.monitoring.comparing import (
    Blocks,
    Comparison,
    compare_categories,
    compare_numbers,
)
from pytest_modelserve.monitoring.dependence import dependence_told
from pytest_modelserve.monitoring.judging import CONFIDENCE, judge
from pytest_modelserve.monitoring.matching import matched
from pytest_modelserve.monitoring.planning import plan_rows
from pytest_modelserve.monitoring.profiled import CategoricalColumn, ProfiledColumn
from pytest_modelserve.monitoring.profiling import count_categories
from pytest_modelserve.monitoring.reference import ReferenceProfile


def measure_no_drift(
    data: Data,
    profile: ReferenceProfile,
    *,
    max_distance: float,
    alpha: float = 0.01,
    block: int | None = None,
    name: str | None = None,
) -> Evidence:
    """Evidence that no column of `data` lies further than `max_distance`, 0 to 1, from its distribution in `profile`.

    The distance of a column of numbers is the largest difference of the two distribution functions at the profile's
    edges, of a column of categories the largest difference of the two shares of one category. Null is left out: its
    share is for `measure_data_quality`. An infinity counts as the largest or the smallest number.

    FAIL: some column differs from the profile significantly, within `alpha` over all columns (Holm), and is seen
    further away than `max_distance`. Unchanged data fail with probability at most `alpha`; data that have changed, but
    by less than `max_distance`, are not protected by it. PASS: every column's upper bound, its distance plus
    1.36/√n_eff with n_eff = N·m/(N + m), keeps `max_distance`; data with a column beyond it pass in fewer than 5 % of
    samples. Else INCONCLUSIVE, with the rows that would do and the budget that these could have passed.

    Assumes independent rows, or at most `block` neighbouring ones that depend on each other: N and m rows then count as
    N/block and m/block (`profile.block` where that is set, for the profile's rows and, without `block`, for both). With
    neither, rows whose autocorrelation at lag one is significantly above 0.1 make every verdict INCONCLUSIVE; weaker
    dependence, or one that few rows do not show, goes unnoticed. `block=1` says that the order of the rows, sorted by
    label perhaps, means nothing. `name` is what the data are called in reports: by default their file's stem.

    Raises InputError, naming the column, for data that do not fit the profile (missing, additional, renamed or retyped
    columns), a single row and a column that is all null or all infinite; UsageError for budgets out of range.
    """
    check_error_rates(confidence=CONFIDENCE, alpha=alpha)
    if not 0 < max_distance < 1:
        raise UsageError(f"max_distance is a distance between 0 and 1 (0.1, say), not {max_distance}")
    if block is not None and block < 1:
        raise UsageError(f"block is a number of rows, at least 1, not {block}")
    started = time.perf_counter()
    table = read_table(data, names=profile.names, name=name)
    if table.rows < 2:
        raise InputError(f"{table.name} has one row, and one row has no distribution")
    pairs = matched(table, profile)
    blocks = Blocks(profile.block or block or 1, block or profile.block or 1)
    comparisons = [_compare(column, reference, blocks) for column, reference in pairs]
    dependence = "" if block or profile.block else dependence_told(pairs, data=table.name)
    judgement = judge(comparisons, budget=max_distance, alpha=alpha)
    interval = Interval(0.0, 1.0, 1 - alpha, CONFIDENCE) if dependence else judgement.interval
    distance = Quantity("distance", judgement.headline.distance, "", interval, Budget("at most", max_distance))
    verdict = distance.verdict
    assert verdict is not None
    plan = plan_rows(comparisons, max_distance=max_distance, rows=table.rows, profile_rows=profile.rows)
    return Evidence(
        gate="drift",
        subject=Subject(table.name),
        reference=Subject(profile.name, sha256=profile.digest),
        quantities=(distance,),
        n=table.rows,
        n_unit="rows",
        method=Method(
            "low end a test of no change (Kolmogorov-Smirnov, Fisher; "
            f"Holm over {len(pairs)} column{'s' * (len(pairs) > 1)})",
            "Hodges 1958, Arkiv foer Matematik 3:469-486; Fisher 1935, JRSS 98:39-82; Holm 1979",
            "independent rows"
            + ("" if blocks == Blocks() else f", or blocks of {blocks.current} (profile: {blocks.reference}) of them")
            + "; the low end is the distance as seen if it differs from none significantly, else 0, and no bound",
        ),
        summary=drift_told.summary(verdict, judgement, columns=len(pairs), dependence=dependence),
        confidence=CONFIDENCE,
        alpha=alpha,
        findings=drift_told.findings(
            verdict, judgement, comparisons, pairs, max_distance=max_distance, plan=plan, dependence=dependence
        ),
        advice=drift_told.advice(verdict, plan=plan, rows=table.rows, dependence=dependence),
        details=drift_told.details(comparisons, judgement, plan),
        duration_s=time.perf_counter() - started,
    )


def _compare(column: Column, reference: ProfiledColumn, blocks: Blocks) -> Comparison:
    if column.kind is None:
        raise InputError(f"column {column.name!r} is null in every row: there is nothing to compare with the profile")
    if isinstance(reference, CategoricalColumn):
        _, then, now = reference.beside(count_categories(column))
        return compare_categories(column.name, then, now, blocks=blocks)
    counts = count_values(column.values, reference.edges)
    if not counts[1:-1].any() and not np.isfinite(column.values).any():
        raise InputError(f"column {column.name!r} is infinite in every row that is not null: mend it or leave it out")
    return compare_numbers(column.name, reference.counts, counts, blocks=blocks)
