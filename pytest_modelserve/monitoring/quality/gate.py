"""The data-quality gate: the columns of the profile, of its kinds, with no more faulty rows than a budget allows."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from pytest_modelserve.errors import UsageError, unknown_choice
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Method,
    Quantity,
    Subject,
    Verdict,
    check_error_rates,
    worst_verdict,
)
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.columns import is_length
from pytest_modelserve.monitoring.decision import CONFIDENCE, Blocks, DriftResult, decide
from pytest_modelserve.monitoring.histogram import Integers
from pytest_modelserve.monitoring.profile import ReferenceProfile, as_profile
from pytest_modelserve.monitoring.quality.rates import (
    UNSEEN,
    CountedCategories,
    Rate,
    disorder_rate,
    duplicate_rate,
    infinite_rate,
    is_ordered,
    lost_category_rate,
    new_category_rate,
    null_rate,
    range_rate,
    repeated_value_rate,
    sample_rows,
)
from pytest_modelserve.monitoring.quality.rules import (
    all_null,
    became_constant,
    became_one_category,
    beyond_tail_limit,
    has_infinities,
    outside_vocabulary,
    too_old,
)
from pytest_modelserve.monitoring.readers import Data, NoRowsError
from pytest_modelserve.monitoring.schema import choose_columns, describe_choice
from pytest_modelserve.monitoring.window import (
    NumericSummary,
    RowsColumn,
    Window,
    WindowColumn,
    read_window,
    window_of_gate,
)
from pytest_modelserve.stats.proportions import rows_for_rate_increase


def measure_data_quality(
    data: Data | ReferenceProfile,
    profile: ReferenceProfile | str | os.PathLike[str],
    *,
    max_rate: float,
    alpha: float = 0.001,
    closed: Collection[str] = (),
    max_age_s: Mapping[str, float] | None = None,
    now: datetime | float | None = None,
    columns: Collection[str] | None = None,
    exclude: Collection[str] = (),
    name: str | None = None,
) -> Evidence:
    """Measure how many more rows of each column of `data` are faulty than in `profile`.

    One broken rule is FAIL: there are no rows; a column is missing, additional, of another kind, or has a value of
    another kind; it is all null or constant, or has infinities and the profile has none, with a probability below one
    in a million; a number lies outside the profile's range by more than 3 widths of it and more than its tails reach in
    one window of a million; a `closed` column has a category that is not in the profile; the newest time is too old.

    Rates are proportions of a column's rows minus the same in the profile: nulls; infinities; finite numbers outside
    the profile's range; new categories; rows of the profile whose category is lost; one repeated value; times earlier
    than the row before, if the profile's are ordered; copies of earlier rows, in samples of one size. Times have no
    range. Columns of more than 100 categories have no new and lost ones; profiles as `data` have no repeated values.

    FAIL: a rate is significantly above the profile's, within `alpha` over all rates (Holm), and observed above
    `max_rate`. The tests are Fisher's exact test, order statistics for the range, and Chernoff's bound for new and lost
    categories. PASS: the upper 95 % bound of every rate is at most `max_rate`. The bound allows for the uncertainty of
    the profile. Otherwise INCONCLUSIVE, with the number of rows that would decide.

    Rows must be independent, or in blocks of `profile.block`: n rows then count as n/block.

    Args:
        data: Anything that `reference_profile` accepts, or a profile made with `like=profile`. None, NaN and NaT are
            null. Data without rows are FAIL.
        profile: The profile of the training data, or the path of its file.
        max_rate: The largest allowed increase of a rate, between 0 and 1.
        alpha: The probability that data like the profile's fail by a rate.
        closed: Names of columns whose categories are all in the profile.
        max_age_s: The largest age of the newest time, in seconds, by column.
        now: The time at which ages are measured: a datetime with a time zone, or seconds since 1970.
        columns: Names of the columns to compare; other columns of the profile and of the data are ignored. By default
            all are compared.
        exclude: Names of columns to leave out, such as ids, which differ in every row; the data alone may have them.
        name: The name of the data in reports. Default: the stem of the file, or "data".

    Returns:
        The evidence. `details` holds the broken rules, and the value, upper bound and p-value of each rate.

    Raises:
        InputError: The data cannot be read, or are a profile with other edges.
        UsageError: A budget is out of range, `closed` or `max_age_s` name a column without categories or times, or
            `columns` or `exclude` has an unknown name.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> profile = ms.reference_profile({"age": rng.normal(40, 12, 10_000)})
        >>> ages = rng.normal(40, 12, 2_000)
        >>> ages[:100] = np.nan
        >>> evidence = ms.measure_data_quality({"age": ages}, profile, max_rate=0.01)
        >>> evidence.verdict.name, evidence.findings[0]
        ('FAIL', "'age' null in 0.0 % → 5.0 % (+5.0 points)")
    """
    whole = as_profile(profile, data)
    profile = choose_columns(whole, columns, exclude)
    terms = _terms(profile, max_rate=max_rate, alpha=alpha, closed=closed, max_age_s=max_age_s, now=now)
    started = time.perf_counter()
    try:
        window, profile = window_of_gate(data, profile, name=name, whole=whole)
    except NoRowsError:
        window = Window(_name_of(data, name), 0, (), ("there are no rows",))
    broken, rates = _inspect(window, profile, terms)
    quantities = [Quantity("broken rules", len(broken), "count", budget=Budget("at_most", 0))]
    result = decide([(1.0, rates)], budget=max_rate, alpha=alpha) if rates else None
    if result is not None:
        budget = Budget.of("max_rate", max_rate)
        increase = Quantity("rate increase", result.headline.distance, "proportion_difference", result.interval, budget)
        quantities.insert(1 if broken else 0, increase)
    verdict = worst_verdict(quantities)
    in_blocks = "" if terms.blocks == Blocks() else f", or in blocks of {profile.block}"
    return Evidence(
        gate="data quality",
        subject=Subject(window.name),
        reference=Subject(whole.name, sha256=whole.digest),
        quantities=tuple(quantities),
        n=window.rows,
        n_unit="rows",
        method=Method(
            f"low end a test of no increase (exact, Holm over {len(rates)} rates)",
            "Fisher 1935; Wilks 1941; Chernoff 1952; Clopper & Pearson 1934; Newcombe 1998; Holm 1979",
            f"independent rows{in_blocks}; the low end is the observed increase if significant, else at most 0, and "
            "not a bound",
        ),
        summary=SUMMARIES[verdict],
        confidence=CONFIDENCE,
        alpha=alpha,
        findings=(
            *_findings(broken, result, rates, max_rate=max_rate),
            *filter(None, [describe_choice(whole, profile)]),
        ),
        advice=_advice(
            verdict,
            broken,
            rates,
            max_rate=max_rate,
            rows=window.rows,
            profile_rows=profile.rows,
            block=terms.blocks.current,
        ),
        details=_details(broken, rates),
        duration_s=time.perf_counter() - started,
    )


def _name_of(data: object, name: str | None) -> str:
    return name or (Path(data).stem if isinstance(data, (str, os.PathLike)) else "data")


# Validated arguments.


@dataclass(frozen=True, slots=True)
class _Terms:
    """The validated arguments of the gate; `now` is in seconds since 1970, NaN if no age is limited."""

    max_rate: float
    alpha: float
    blocks: Blocks
    closed: frozenset[str]
    max_age_s: Mapping[str, float]
    now: float


def _terms(
    profile: ReferenceProfile,
    *,
    max_rate: float,
    alpha: float,
    closed: Collection[str],
    max_age_s: Mapping[str, float] | None,
    now: datetime | float | None,
) -> _Terms:
    check_error_rates(confidence=CONFIDENCE, alpha=alpha)
    if not 0 < max_rate < 1:
        raise UsageError(f"max_rate must lie between 0 and 1 (0.01, for example); got {max_rate}")
    if isinstance(closed, str):
        raise UsageError(f"closed must be a collection of column names; got a string: pass ({closed!r},)")
    for name in closed:
        column = _column(profile, name, "closed")
        if not isinstance(column, CategoricalColumn):
            raise UsageError(f"closed: column {name!r} has no categories in the profile")
        if column.min_count > 1:
            raise UsageError(
                f"closed: column {name!r} has its rare categories pooled, because the profile was saved with "
                f"min_count={column.min_count}: use the profile that it was made of"
            )
        if column.hashed:
            raise UsageError(
                f"closed: column {name!r} has more than 100 categories in the profile, or a long one: no names are "
                "stored"
            )
    if (max_age_s is None) != (now is None):
        raise UsageError("max_age_s and now must be given together: ages are measured from a time that you choose")
    for name, seconds in (max_age_s or {}).items():
        if _column(profile, name, "max_age_s").kind != "datetime":
            raise UsageError(f"max_age_s: column {name!r} has no times in the profile")
        if not 0 < seconds < math.inf:
            raise UsageError(f"max_age_s of {name!r} must be a positive number of seconds; got {seconds}")
    return _Terms(
        max_rate=max_rate,
        alpha=alpha,
        blocks=Blocks(profile.block or 1, profile.block or 1),
        closed=frozenset(closed),
        max_age_s=max_age_s or {},
        now=math.nan if now is None else _epoch_seconds(now),
    )


def _column(profile: ReferenceProfile, name: str, argument: str) -> ProfiledColumn:
    if name not in profile.names:
        raise UsageError(f"{argument}: {unknown_choice('column', name, profile.names)}")
    return profile.column(name)


def _epoch_seconds(now: datetime | float) -> float:
    if isinstance(now, datetime):
        if now.tzinfo is None:
            raise UsageError(f"now must have a time zone; got {now}: datetime.now(UTC) has one")
        return now.timestamp()
    if isinstance(now, bool) or not isinstance(now, (int, float, np.integer, np.floating)) or not math.isfinite(now):
        raise UsageError(f"now must be a datetime with a time zone, or seconds since 1970; got {now!r}")
    return float(now)


# Rules and rates of each column, and of whole rows.

_Inspection = tuple[Sequence[str | None], Sequence[Rate]]
"""A message, or None, for each rule, and the rates."""


def _inspect(window: Window, profile: ReferenceProfile, terms: _Terms) -> tuple[list[str], list[Rate]]:
    broken = list(window.schema_errors)
    rates: list[Rate] = []
    sample = sample_rows(window.rows)
    for column, reference in window.pairs:
        rules, of_column = _inspect_column(column, reference, terms, sample)
        broken += [message for message in rules if message]
        rates += of_column
    repeated = None if profile.duplicates is None else window.repeated_rows()
    if profile.duplicates is not None and repeated is not None and len(window.pairs) == len(profile.columns):
        rates.append(duplicate_rate(repeated, window.rows, profile.duplicates, profile.rows, terms.blocks))
    return broken, rates


def _inspect_column(
    column: WindowColumn, reference: ProfiledColumn, terms: _Terms, sample: Integers | slice
) -> _Inspection:
    if isinstance(reference, CategoricalColumn):
        return _inspect_categories(column, reference, terms)
    summary = column.summary(reference)
    if reference.kind == "datetime":
        return _inspect_times(column, summary, reference, terms)
    return _inspect_numbers(column, summary, reference, terms, sample)


def _inspect_categories(column: WindowColumn, reference: CategoricalColumn, terms: _Terms) -> _Inspection:
    blocks, counted = terms.blocks, CountedCategories.of(column, reference)
    nulls = column.rows - counted.known
    rules = [all_null(nulls, column.rows, reference, blocks)]
    rates = [null_rate(nulls, column.rows, reference, blocks)]
    if counted.known:
        rules.append(became_one_category(counted, blocks))
        if reference.name in terms.closed:
            rules.append(outside_vocabulary(counted))
        elif not reference.hashed:
            rates.append(new_category_rate(counted, blocks))
        if counted.named:
            rates.append(lost_category_rate(counted, blocks, alpha=terms.alpha))
    return rules, rates


def _inspect_numbers(
    column: WindowColumn,
    summary: NumericSummary,
    reference: NumericColumn,
    terms: _Terms,
    sample: Integers | slice,
) -> _Inspection:
    blocks = terms.blocks
    rules = [
        impossible := has_infinities(summary, reference, blocks),
        became_constant(summary, reference, blocks),
        beyond_tail_limit(summary, reference, block=blocks.reference),
    ]
    rates = []
    if not is_length(reference):  # nulls are reported for the texts only
        rules.insert(0, all_null(summary.nulls, summary.rows, reference, blocks))
        rates.append(null_rate(summary.nulls, summary.rows, reference, blocks))
    if summary.rows > summary.nulls and (reference.finite < reference.known or summary.infinities) and not impossible:
        rates.append(infinite_rate(summary, reference, blocks))
    if summary.finite:
        rates.append(range_rate(summary, reference, blocks))
        varies = summary.minimum < summary.maximum  # otherwise a rule reports the one value
        if isinstance(column, RowsColumn) and varies and reference.kind != "boolean":
            rates.append(
                repeated_value_rate(
                    column.column, sample, reference, max_rate=terms.max_rate, alpha=terms.alpha, blocks=blocks
                )
            )
    return rules, rates


def _inspect_times(
    column: WindowColumn, summary: NumericSummary, reference: NumericColumn, terms: _Terms
) -> _Inspection:
    """Times advance: they have no range, no value comes back, and all rows may be of one day."""
    blocks, name = terms.blocks, reference.name
    rules = [all_null(summary.nulls, summary.rows, reference, blocks)]
    if name in terms.max_age_s:
        rules.append(too_old(summary, name, max_age_s=terms.max_age_s[name], now=terms.now))
    rates = [null_rate(summary.nulls, summary.rows, reference, blocks)]
    known, before = summary.rows - summary.nulls, reference.backward
    if (
        known
        and before is not None
        and is_ordered(before, reference.known)
        and (after := column.backward()) is not None
    ):
        rates.append(disorder_rate(name, after, known, before, reference.known, blocks, reference.count_error))
    return rules, rates


# Messages and figures.

SUMMARIES = {
    Verdict.PASS: "no rule is broken, and no rate of faulty rows exceeds the profile's by more than max_rate",
    Verdict.FAIL: "the data break a rule, or a rate of faulty rows exceeds max_rate",
    Verdict.INCONCLUSIVE: "not enough rows to decide whether a rate of faulty rows exceeds max_rate",
}
_MAX_FINDINGS = 10
_MAX_RATES = 100
_POWER = 0.95
"""Data like the profile's pass with this probability if they have the recommended number of rows."""


def _findings(
    broken: Sequence[str], result: DriftResult[Rate] | None, rates: Sequence[Rate], *, max_rate: float
) -> tuple[str, ...]:
    """Return broken rules first, then rates beyond the budget, then the worst undecided one."""
    found = list(broken)
    if result is not None:
        found += [rate.detail for rate in result.beyond]
        undecided = sorted(
            (rate for rate in rates if rate.upper > max_rate and rate not in result.beyond),
            key=lambda rate: -rate.upper,
        )
        if undecided:
            worst = undecided[0]
            found.append(
                f"{len(undecided)} of {len(rates)} rates are undecided; {worst.where}: at most "
                f"{100 * worst.upper:.2f} points above the profile: {worst.detail}"
            )
    more = (f"and {len(found) - _MAX_FINDINGS} more",) if len(found) > _MAX_FINDINGS else ()
    return (*found[:_MAX_FINDINGS], *more)


def _advice(
    verdict: Verdict,
    broken: Sequence[str],
    rates: Sequence[Rate],
    *,
    max_rate: float,
    rows: int,
    profile_rows: int,
    block: int,
) -> str:
    if verdict is Verdict.PASS:
        return ""
    if verdict is Verdict.FAIL:
        additional = any(message.endswith("is not in the profile") for message in broken)
        return "repair what writes these columns, or make a new profile if the change is intended" + (
            "; exclude= leaves columns out" * additional
        )
    plan = _plan(rates, max_rate=max_rate, profile_rows=profile_rows, block=block)
    if plan.rows is None:
        return (
            f"the profile has too few rows ({profile_rows:,}) to compare rates of faulty rows to within max_rate: "
            f"profile about {plan.profile_rows:,} rows and test as many, or raise max_rate"
        )
    if plan.rows <= rows:
        return "data like the profile's pass with this many rows in 95 % of cases: inspect the undecided rates"
    return f"provide about {plan.rows:,} rows in place of {rows:,}, or raise max_rate"


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows with which data like the profile's pass; None if the profile needs `profile_rows` rows first."""

    rows: int | None
    profile_rows: int


def plan_rows(profile: ReferenceProfile, *, max_rate: float, alpha: float, closed: Collection[str]) -> Plan:
    """Return the plan for data like the profile's."""
    terms = _terms(profile, max_rate=max_rate, alpha=alpha, closed=closed, max_age_s=None, now=None)
    _, rates = _inspect(read_window(profile, profile), profile, terms)
    return _plan(rates, max_rate=max_rate, profile_rows=profile.rows, block=terms.blocks.current)


def _plan(rates: Sequence[Rate], *, max_rate: float, profile_rows: int, block: int) -> Plan:
    power = 1 - (1 - _POWER) / len(rates)
    needed = [_rows_needed(rate, max_rate, power) for rate in rates]
    short = [rate for rate, count in zip(rates, needed, strict=True) if count is None]
    if short:
        larger = max(_profile_factor(rate, max_rate, power, profile_rows / block) for rate in short)
        return Plan(None, math.ceil(larger * profile_rows))
    return Plan(max(count for count in needed if count is not None) * block, profile_rows)


_STEP = 1.1
_MOST_TIMES = 1e6


def _profile_factor(rate: Rate, max_rate: float, power: float, profile_blocks: float) -> float:
    """Return how many times as many rows in the profile and in the data let data like the profile's pass.

    The rate of values that the profile has not seen falls with its rows; of other rates the profile's own stays, and
    the distance of its lower bound falls with the root.
    """
    factor = 1.0
    while factor < _MOST_TIMES:
        factor *= _STEP
        is_unseen = rate.fault == UNSEEN
        base = rate.base / factor if is_unseen else rate.base
        larger = replace(
            rate,
            base=base,
            expected=base + (rate.expected - rate.base) / factor,
            margin=rate.margin / (factor if is_unseen else math.sqrt(factor)),
        )
        needed = _rows_needed(larger, max_rate, power)
        if needed is not None and needed <= factor * profile_blocks:
            break
    return factor


def _rows_needed(rate: Rate, max_rate: float, power: float) -> int | None:
    """Return the rows with which data like the profile's pass; None if the profile is too small."""
    if max(rate.expected, rate.base) >= 1:  # a rate that cannot increase
        return 1
    return rows_for_rate_increase(
        rate=rate.expected, base=rate.base, below=rate.margin, limit=max_rate, confidence=CONFIDENCE, power=power
    )


def _details(broken: Sequence[str], rates: Sequence[Rate]) -> Mapping[str, Any]:
    ranked = sorted(rates, key=lambda rate: -rate.upper)[:_MAX_RATES]
    return {
        "broken": list(broken[:_MAX_FINDINGS]),
        "rates": {r.key: [round(r.distance, 5), round(r.upper, 5), float(f"{r.p_value:.3g}")] for r in ranked},
    }
