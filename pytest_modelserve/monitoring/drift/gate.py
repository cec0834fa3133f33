"""Have the data moved away from those of the profile, and far enough to matter?"""

from __future__ import annotations

import time

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Subject, check_error_rates
from pytest_modelserve.monitoring.columns import Data
from pytest_modelserve.monitoring.comparing import Blocks
from pytest_modelserve.monitoring.dependence import dependence_told
from pytest_modelserve.monitoring.drift import told
from pytest_modelserve.monitoring.drift.families import Families, compare_families, without_times
from pytest_modelserve.monitoring.drift.planning import plan_rows
from pytest_modelserve.monitoring.judging import CONFIDENCE, judge_families
from pytest_modelserve.monitoring.reference import ReferenceProfile
from pytest_modelserve.monitoring.windows import read_window


def measure_no_drift(
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
    distance = Quantity("distance", judgement.headline.distance, "", interval, Budget("at most", max_distance))
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
        summary=told.summary(verdict, judgement, families, dependence=dependence),
        confidence=CONFIDENCE,
        alpha=alpha,
        findings=told.findings(
            verdict, judgement, families, pairs, max_distance=max_distance, plan=plan, dependence=dependence
        ),
        advice=told.advice(verdict, plan=plan, rows=window.rows, max_distance=max_distance, dependence=dependence),
        details=told.details(judgement, families, plan),
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
