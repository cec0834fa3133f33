"""Are the data whole: the columns of the profile, of its kinds, with no more faulty rows than a budget?"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from datetime import datetime

from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity, Subject
from pytest_modelserve.monitoring.columns import Data
from pytest_modelserve.monitoring.comparing import Blocks
from pytest_modelserve.monitoring.judging import CONFIDENCE, judge
from pytest_modelserve.monitoring.quality import told
from pytest_modelserve.monitoring.quality.inspecting import Inspection, inspect_columns, inspect_rows
from pytest_modelserve.monitoring.quality.terms import quality_terms
from pytest_modelserve.monitoring.reference import ReferenceProfile
from pytest_modelserve.monitoring.windows import read_window


def measure_data_quality(
    data: Data | ReferenceProfile,
    profile: ReferenceProfile,
    *,
    max_share: float,
    alpha: float = 0.001,
    closed: Collection[str] = (),
    max_age_s: Mapping[str, float] | None = None,
    now: datetime | float | None = None,
    name: str | None = None,
) -> Evidence:
    """Evidence that at most `max_share`, 0 to 1, more rows of each column of `data` are faulty than in `profile`.

    Rules, without statistics, for what the profile makes impossible; one broken rule is FAIL: a column that is
    missing, additional or of another kind; infinities where the profile has none; a column that is all null, or of one
    value alone, where that has a chance below one in a million; a number outside the profile's range by more than 3
    times its width and more than the tails of the profile would reach in one window of a million (`reach`); in a column
    that is `closed`, a category that the profile does not have; with `max_age_s`, the seconds that the newest time of a
    column may be old at `now` (a datetime with a time zone or seconds since 1970), one that is older, or later than
    `now`.

    Rates, each a share of a column's rows less its share in the profile: nulls; infinities, where the profile has
    some; finite numbers outside the profile's range and categories that are new to it (both 0 in the profile); the
    share of the profile's rows whose category is lost; one value in more rows than all values near it in the profile
    (`repeated_value_rate`); times earlier than the row before, where the profile's keep an order; copies of earlier
    rows (`duplicate_rate`). Times have no range and may all be of one day. Columns of more than 100 categories are not
    watched for new and lost ones, and data that are themselves a profile not for repeated values.

    FAIL: a rate is significantly above what rows like the profile's show, within `alpha` over all of them (Holm;
    Fisher's exact test for all but the range, for which orders are counted, and for new and lost categories, Chernoff's
    bound), and seen above `max_share`. PASS: the upper 95 % bound of every rate is at most `max_share`
    (`excess_bound`: it allows for what the profile's rows leave uncertain, and is the exact bound of a share where the
    profile's is 0; of lost categories that of the largest one, and none of repeated values). Else INCONCLUSIVE, with
    the rows that would do.

    Assumes independent rows, or blocks of `profile.block`: n rows then count as n/block. `name` is what the data are
    called in reports: by default their file's stem.

    Raises InputError for data that cannot be read, or a profile between other edges, and UsageError for budgets out of
    range and for `closed` or `max_age_s` of columns that have no categories or times.
    """
    terms = quality_terms(profile, max_share=max_share, alpha=alpha, closed=closed, max_age_s=max_age_s, now=now)
    started = time.perf_counter()
    window = read_window(data, profile, name=name)
    inspections = [Inspection(window.faults, ())]
    inspections += [*inspect_columns(window, terms), inspect_rows(window, profile, terms)]
    broken = [sentence for inspection in inspections for sentence in inspection.broken]
    rates = [rate for inspection in inspections for rate in inspection.rates]
    rule = Quantity("broken rules", len(broken), "count", budget=Budget("at most", 0))
    judgement = judge(rates, budget=max_share, alpha=alpha) if rates else None
    quantities = [rule]
    if judgement is not None:
        budget = Budget("at most", max_share)
        share = Quantity("excess share", judgement.headline.value, "share difference", judgement.interval, budget)
        quantities.insert(1 if broken else 0, share)
    verdict = max((q.verdict for q in quantities if q.verdict is not None), key=lambda verdict: verdict.severity)
    return Evidence(
        gate="data quality",
        subject=Subject(window.name),
        reference=Subject(profile.name, sha256=profile.digest),
        quantities=tuple(quantities),
        n=window.rows,
        n_unit="rows",
        method=Method(
            f"low end a test of no excess (exact, Holm over {len(rates)} rates)",
            "Fisher 1935; Wilks 1941; Chernoff 1952; Clopper & Pearson 1934; Newcombe 1998; Holm 1979",
            "independent rows"
            + ("" if terms.blocks == Blocks() else f", or blocks of {profile.block} of them")
            + "; the low end is the excess as seen if it differs from none significantly, else at most 0, and no bound",
        ),
        summary=told.SUMMARIES[verdict],
        confidence=CONFIDENCE,
        alpha=alpha,
        findings=told.findings(broken, judgement, rates, max_share=max_share),
        advice=told.advice(verdict, rates, max_share=max_share, rows=window.rows, block=terms.blocks.current),
        details=told.details(broken, rates),
        duration_s=time.perf_counter() - started,
    )
