"""Are the data whole: the columns of the profile, of its kinds, with no more faulty rows than a budget?"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pytest_modelserve.errors import UsageError, unknown_choice
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity, Subject, Verdict, check_error_rates
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.columns import is_length
from pytest_modelserve.monitoring.drift.column_tests import CONFIDENCE, Blocks, Judgement, judge
from pytest_modelserve.monitoring.profile import ReferenceProfile, RepeatedRows
from pytest_modelserve.monitoring.profiler import NumericFacts, repeated_rows
from pytest_modelserve.monitoring.quality.rates import (
    CountedCategories,
    Rate,
    disorder_rate,
    duplicate_rate,
    infinite_rate,
    keeps_order,
    looked_at,
    lost_category_rate,
    new_category_rate,
    null_rate,
    range_rate,
    repeated_value_rate,
)
from pytest_modelserve.monitoring.quality.rules import (
    all_null,
    became_constant,
    became_one_category,
    has_infinities,
    out_of_reach,
    outside_vocabulary,
    told,
    too_old,
)
from pytest_modelserve.monitoring.readers import Data
from pytest_modelserve.monitoring.timestamps import backward_rows, epoch_seconds
from pytest_modelserve.monitoring.window import CountedColumn, RowsColumn, Window, WindowColumn, read_window
from pytest_modelserve.stats.proportions import rows_for_rate_increase

if TYPE_CHECKING:
    from pytest_modelserve.monitoring.histogram import Integers

# What data are held to besides the profile: budgets, and what their user knows and no row tells.


@dataclass(frozen=True, slots=True)
class Terms:
    """The budget and error rate, the rows that depend on each other, and what was declared.

    `closed` are the columns whose categories the profile has all of; `max_age_s` is how old the newest time of a column
    may be at `now`, in seconds since 1970: NaN where no age is given.
    """

    max_rate: float
    alpha: float
    blocks: Blocks
    closed: frozenset[str]
    max_age_s: Mapping[str, float]
    now: float


def quality_terms(
    profile: ReferenceProfile,
    *,
    max_rate: float,
    alpha: float,
    closed: Collection[str],
    max_age_s: Mapping[str, float] | None,
    now: datetime | float | None,
) -> Terms:
    """The terms, checked against the columns of the profile; UsageError that says what does not fit."""
    check_error_rates(confidence=CONFIDENCE, alpha=alpha)
    if not 0 < max_rate < 1:
        raise UsageError(f"max_rate is a share between 0 and 1 (0.01, say), not {max_rate}")
    if isinstance(closed, str):
        raise UsageError(f"closed is a collection of names of columns: ({closed!r},) for one")
    for name in closed:
        _check_closed(name, _named(profile, name, "closed"))
    if (max_age_s is None) != (now is None):
        raise UsageError("max_age_s and now are given together: an age is counted from a moment that the test chooses")
    for name, seconds in (max_age_s or {}).items():
        if _named(profile, name, "max_age_s").kind != "datetime":
            raise UsageError(f"max_age_s: column {name!r} holds no times in the profile")
        if not 0 < seconds < math.inf:
            raise UsageError(f"max_age_s of {name!r} is a positive number of seconds, not {seconds}")
    return Terms(
        max_rate=max_rate,
        alpha=alpha,
        blocks=Blocks(profile.block or 1, profile.block or 1),
        closed=frozenset(closed),
        max_age_s=max_age_s or {},
        now=math.nan if now is None else epoch_seconds(now),
    )


def _named(profile: ReferenceProfile, name: str, where: str) -> ProfiledColumn:
    if name not in profile.names:
        raise UsageError(f"{where}: {unknown_choice('column', name, profile.names)}")
    return profile.column(name)


def _check_closed(name: str, column: ProfiledColumn) -> None:
    if not isinstance(column, CategoricalColumn):
        raise UsageError(f"closed: column {name!r} holds no categories in the profile")
    if column.pooled:
        raise UsageError(
            f"closed: column {name!r} has more than 100 categories in the profile, or a long one, and no names are kept"
        )


# One column, or all of them together, held against the profile: the rules that it breaks and how often its rows do.


@dataclass(frozen=True, slots=True)
class Inspection:
    """Sentences on the rules that are broken, and the rates of faulty rows."""

    broken: tuple[str, ...]
    rates: tuple[Rate, ...]


def inspect_columns(window: Window, terms: Terms) -> list[Inspection]:
    """The inspections of the columns of a kind that fits."""
    sample = looked_at(window.rows)
    return [_inspect(column, reference, terms, sample) for column, reference in window.pairs]


def _inspect(column: WindowColumn, reference: ProfiledColumn, terms: Terms, sample: Integers | slice) -> Inspection:
    if isinstance(reference, CategoricalColumn):
        return _categories(column, reference, terms)
    facts = column.facts(reference)
    if reference.kind == "datetime":
        return _times(column, facts, reference, terms)
    return _numbers(column, facts, reference, terms, sample)


def inspect_rows(window: Window, profile: ReferenceProfile, terms: Terms) -> Inspection:
    """The inspection of whole rows: of their copies, where the profile counted its own and no column is missing."""
    now = _repeated(window)
    if profile.duplicates is None or now is None or len(window.pairs) < len(profile.columns):
        return Inspection((), ())
    return Inspection((), (duplicate_rate(now, window.rows, profile.duplicates, profile.rows, terms.blocks),))


def _categories(column: WindowColumn, reference: CategoricalColumn, terms: Terms) -> Inspection:
    blocks, counted = terms.blocks, CountedCategories.of(column, reference)
    nulls = column.rows - counted.known
    broken = [all_null(nulls, column.rows, reference, block=blocks.current)]
    rates = [null_rate(nulls, column.rows, reference, blocks)]
    if counted.known:
        broken.append(became_one_category(counted, block=blocks.current))
        if reference.name in terms.closed:
            broken.append(outside_vocabulary(counted))
        elif not reference.pooled:
            rates.append(new_category_rate(counted, blocks))
        if counted.named:
            rates.append(lost_category_rate(counted, blocks, alpha=terms.alpha))
    return Inspection(tuple(told(broken)), tuple(rates))


def _numbers(
    column: WindowColumn, facts: NumericFacts, reference: NumericColumn, terms: Terms, sample: Integers | slice
) -> Inspection:
    blocks = terms.blocks
    broken = [
        has_infinities(facts, reference),
        became_constant(facts, reference, block=blocks.current),
        out_of_reach(facts, reference, block=blocks.reference),
    ]
    rates = []
    if not is_length(reference):  # the nulls of texts are told once, with the texts
        broken.insert(0, all_null(facts.nulls, facts.rows, reference, block=blocks.current))
        rates.append(null_rate(facts.nulls, facts.rows, reference, blocks))
    if facts.rows > facts.nulls and (reference.negative_infinities or reference.positive_infinities):
        rates.append(infinite_rate(facts, reference, blocks))
    if facts.finite:
        rates.append(range_rate(facts, reference, blocks))
        varies = facts.minimum < facts.maximum  # else a rule has told the one value already
        if isinstance(column, RowsColumn) and varies and reference.kind != "boolean":
            rates.append(repeated_value_rate(column.column, sample, reference, terms))
    return Inspection(tuple(told(broken)), tuple(rates))


def _times(column: WindowColumn, facts: NumericFacts, reference: NumericColumn, terms: Terms) -> Inspection:
    """Times go on: no range holds for them, no value comes back, and all rows may be of one day."""
    blocks, name = terms.blocks, reference.name
    broken = [all_null(facts.nulls, facts.rows, reference, block=blocks.current)]
    if name in terms.max_age_s:
        broken.append(too_old(facts, name, max_age_s=terms.max_age_s[name], now=terms.now))
    rates = [null_rate(facts.nulls, facts.rows, reference, blocks)]
    now, known = _backward(column), facts.rows - facts.nulls
    if (
        now is not None
        and known
        and reference.backward is not None
        and keeps_order(reference.backward, reference.known)
    ):
        rates.append(disorder_rate(name, now, known, reference.backward, reference.known, blocks))
    return Inspection(tuple(told(broken)), tuple(rates))


def _backward(column: WindowColumn) -> int | None:
    if isinstance(column, RowsColumn):
        return backward_rows(column.column.values)
    if isinstance(column, CountedColumn) and isinstance(column.column, NumericColumn):
        return column.column.backward
    return None


def _repeated(window: Window) -> RepeatedRows | None:
    if window.table is not None:
        return repeated_rows(window.table.columns)
    return window.profile.duplicates if window.profile is not None else None


# The verdict on data quality in words: broken rules, rates beyond the budget, and what is undecided.


_TOLD = 10
_KEPT = 100
_POWER = 0.95
"""With the rows that are asked for, data like the profile's pass 19 times in 20."""

SUMMARIES = {
    Verdict.PASS: "the data are as whole as the profile's, within the budget",
    Verdict.FAIL: "the data are not whole",
    Verdict.INCONCLUSIVE: "whether the data are whole cannot be told with these rows",
}


def findings(
    broken: Sequence[str], judgement: Judgement[Rate] | None, rates: Sequence[Rate], *, max_rate: float
) -> tuple[str, ...]:
    """Broken rules first, then the rates beyond the budget, then those that are undecided."""
    found = list(broken)
    if judgement is not None:
        found += [rate.told for rate in judgement.beyond]
        undecided = sorted(
            (rate for rate in rates if rate.high > max_rate and rate not in judgement.beyond),
            key=lambda rate: -rate.high,
        )
        if undecided:
            worst = undecided[0]
            found.append(
                f"{len(undecided)} of {len(rates)} rates undecided, {worst.where} up to "
                f"{100 * worst.high:.2f} points above the profile: {worst.told}"
            )
    return (*found[:_TOLD], f"and {len(found) - _TOLD} more") if len(found) > _TOLD else tuple(found)


def advice(verdict: Verdict, rates: Sequence[Rate], *, max_rate: float, rows: int, block: int) -> str:
    """What to do next; empty after PASS."""
    if verdict is Verdict.PASS:
        return ""
    if verdict is Verdict.FAIL:
        return "mend what writes these columns, or profile the data anew where the change is wanted"
    power = 1 - (1 - _POWER) / len(rates)
    needed = [_rows_needed(rate, max_rate, power) for rate in rates]
    if None in needed:
        return "profile more rows: so few do not tell the shares of faulty rows to max_rate"
    most = max(count for count in needed if count is not None) * block
    if most <= rows:
        return "data like the profile's pass with so many rows 19 times in 20: look at what is undecided, or give more"
    return f"give about {most:,} rows, or raise max_rate"


def details(broken: Sequence[str], rates: Sequence[Rate]) -> Mapping[str, Any]:
    """The broken rules, and the figures of the highest rates: value, upper bound, chance."""
    ranked = sorted(rates, key=lambda rate: -rate.high)[:_KEPT]
    return {
        "broken": list(broken[:_TOLD]),
        "rates": {
            rate.key: [round(rate.value, 5), round(rate.high, 5), float(f"{rate.p_value:.3g}")] for rate in ranked
        },
    }


def _rows_needed(rate: Rate, max_rate: float, power: float) -> int | None:
    """The rows with which data like the profile's pass; None where the profile is too small for that."""
    return rows_for_rate_increase(
        rate=rate.usual, base=rate.base, below=rate.below, limit=max_rate, confidence=CONFIDENCE, power=power
    )


def measure_data_quality(
    data: Data | ReferenceProfile,
    profile: ReferenceProfile,
    *,
    max_rate: float,
    alpha: float = 0.001,
    closed: Collection[str] = (),
    max_age_s: Mapping[str, float] | None = None,
    now: datetime | float | None = None,
    name: str | None = None,
) -> Evidence:
    """Evidence that at most `max_rate`, 0 to 1, more rows of each column of `data` are faulty than in `profile`.

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
    bound), and seen above `max_rate`. PASS: the upper 95 % bound of every rate is at most `max_rate`
    (`rate_increase_bound`: it allows for what the profile's rows leave uncertain, and is the exact bound of a share
    where the profile's is 0; of lost categories that of the largest one, and none of repeated values). Else
    INCONCLUSIVE, with
    the rows that would do.

    Assumes independent rows, or blocks of `profile.block`: n rows then count as n/block. `name` is what the data are
    called in reports: by default their file's stem.

    Raises InputError for data that cannot be read, or a profile between other edges, and UsageError for budgets out of
    range and for `closed` or `max_age_s` of columns that have no categories or times.
    """
    terms = quality_terms(profile, max_rate=max_rate, alpha=alpha, closed=closed, max_age_s=max_age_s, now=now)
    started = time.perf_counter()
    window = read_window(data, profile, name=name)
    inspections = [Inspection(window.faults, ())]
    inspections += [*inspect_columns(window, terms), inspect_rows(window, profile, terms)]
    broken = [sentence for inspection in inspections for sentence in inspection.broken]
    rates = [rate for inspection in inspections for rate in inspection.rates]
    rule = Quantity("broken rules", len(broken), "count", budget=Budget("at_most", 0))
    judgement = judge(rates, budget=max_rate, alpha=alpha) if rates else None
    quantities = [rule]
    if judgement is not None:
        budget = Budget("at_most", max_rate)
        share = Quantity("excess share", judgement.headline.value, "proportion_difference", judgement.interval, budget)
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
        summary=SUMMARIES[verdict],
        confidence=CONFIDENCE,
        alpha=alpha,
        findings=findings(broken, judgement, rates, max_rate=max_rate),
        advice=advice(verdict, rates, max_rate=max_rate, rows=window.rows, block=terms.blocks.current),
        details=details(broken, rates),
        duration_s=time.perf_counter() - started,
    )
