"""Are the data whole: the columns of the profile, of its kinds, with no more faulty rows than a budget?"""

from __future__ import annotations

import time

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity, Subject, check_error_rates
from pytest_modelserve.monitoring import quality_told, rules
from pytest_modelserve.monitoring.columns import Column, Data, read_table
from pytest_modelserve.monitoring.comparing import Blocks
from pytest_modelserve.monitoring.facts import numeric_facts
from pytest_modelserve.monitoring.judging import CONFIDENCE, judge
from pytest_modelserve.monitoring.matching import match_columns
from pytest_modelserve.monitoring.profiled import CategoricalColumn, ProfiledColumn
from pytest_modelserve.monitoring.profiling import count_categories
from pytest_modelserve.monitoring.rates import Rate, infinite_rate, new_category_rate, null_rate, range_rate
from pytest_modelserve.monitoring.reference import ReferenceProfile


def measure_data_quality(
    data: Data, profile: ReferenceProfile, *, max_share: float, alpha: float = 0.001, name: str | None = None
) -> Evidence:
    """Evidence that at most `max_share`, 0 to 1, more rows of each column of `data` are faulty than in `profile`.

    Rules, without statistics, for what the profile makes impossible; one broken rule is FAIL: a column that is
    missing, additional or of another kind; infinities where the profile has none; a column that is all null, or of one
    value alone, where that has a chance below one in a million.

    Rates, each a share of a column's rows less its share in the profile: nulls; infinities, where the profile has
    some; finite numbers outside the profile's range, and categories that are new to it (both 0 in the profile; columns
    of more than 100 categories are not watched for new ones). FAIL: a rate is significantly above what rows like the
    profile's show, within `alpha` over all of them (Holm; Fisher's exact test for nulls and infinities, order
    statistics for the range, a Chernoff bound for new categories), and seen above `max_share`. PASS: the upper 95 %
    bound of every rate is at most `max_share` (`excess_bound`: it allows for what the profile's rows leave uncertain,
    and is the exact bound of a share where the profile's is 0). Else INCONCLUSIVE, with the rows that would do.

    Assumes independent rows, or blocks of `profile.block`: n rows then count as n/block. `name` is what the data are
    called in reports: by default their file's stem.

    Raises InputError for data that cannot be read, and UsageError for budgets out of range.
    """
    check_error_rates(confidence=CONFIDENCE, alpha=alpha)
    if not 0 < max_share < 1:
        raise UsageError(f"max_share is a share between 0 and 1 (0.01, say), not {max_share}")
    started = time.perf_counter()
    table = read_table(data, names=profile.names, name=name)
    matching = match_columns(table, profile)
    blocks = Blocks(profile.block or 1, profile.block or 1)
    broken, rates = list(matching.faults), list[Rate]()
    for column, reference in matching.pairs:
        column_broken, column_rates = _inspect(column, reference, blocks)
        broken += column_broken
        rates += column_rates
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
        subject=Subject(table.name),
        reference=Subject(profile.name, sha256=profile.digest),
        quantities=tuple(quantities),
        n=table.rows,
        n_unit="rows",
        method=Method(
            f"low end a test of no excess (exact, Holm over {len(rates)} rates)",
            "Fisher 1935; Wilks 1941; Chernoff 1952; Clopper & Pearson 1934; Newcombe 1998; Holm 1979",
            "independent rows"
            + ("" if blocks == Blocks() else f", or blocks of {profile.block} of them")
            + "; the low end is the excess as seen if it differs from none significantly, else at most 0, and no bound",
        ),
        summary=quality_told.SUMMARIES[verdict],
        confidence=CONFIDENCE,
        alpha=alpha,
        findings=quality_told.findings(broken, judgement, rates, max_share=max_share),
        advice=quality_told.advice(verdict, rates, max_share=max_share, rows=table.rows, block=blocks.current),
        details=quality_told.details(broken, rates),
        duration_s=time.perf_counter() - started,
    )


def _inspect(column: Column, reference: ProfiledColumn, blocks: Blocks) -> tuple[list[str], list[Rate]]:
    """The rules that a column breaks and the rates of its faulty rows."""
    if isinstance(reference, CategoricalColumn):
        counts = count_categories(column)
        known = counts.total() if column.kind is not None else 0
        nulls = len(column.values) - known
        found = [rules.all_null(nulls, len(column.values), reference, block=blocks.current)]
        rates = [null_rate(column, nulls, reference, blocks)]
        if known:
            found.append(rules.became_one_category(counts, reference, block=blocks.current))
            if not reference.pooled:
                rates.append(new_category_rate(column, counts, reference, blocks))
        return [sentence for sentence in found if sentence], rates
    facts = numeric_facts(column, reference)
    found = [
        rules.all_null(facts.nulls, facts.rows, reference, block=blocks.current),
        rules.has_infinities(facts, reference),
        rules.became_constant(facts, reference, block=blocks.current),
    ]
    rates = [null_rate(column, facts.nulls, reference, blocks)]
    if facts.rows > facts.nulls and (reference.negative_infinities or reference.positive_infinities):
        rates.append(infinite_rate(column, facts, reference, blocks))
    if facts.finite:
        rates.append(range_rate(column, facts, reference, blocks))
    return [sentence for sentence in found if sentence], rates
