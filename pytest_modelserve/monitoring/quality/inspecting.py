"""One column, or all of them together, held against the profile: the rules that it breaks and how often its rows do."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_modelserve.monitoring.binning import Integers
from pytest_modelserve.monitoring.derived import is_length
from pytest_modelserve.monitoring.duplicates import RepeatedRows, repeated_rows
from pytest_modelserve.monitoring.facts import NumericFacts
from pytest_modelserve.monitoring.profiled import CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.quality import rules
from pytest_modelserve.monitoring.quality.category_rates import CountedCategories, lost_category_rate, new_category_rate
from pytest_modelserve.monitoring.quality.rates import Rate, infinite_rate, null_rate, range_rate
from pytest_modelserve.monitoring.quality.repeated import looked_at, repeated_value_rate
from pytest_modelserve.monitoring.quality.row_rates import disorder_rate, duplicate_rate, keeps_order
from pytest_modelserve.monitoring.quality.terms import Terms
from pytest_modelserve.monitoring.reference import ReferenceProfile
from pytest_modelserve.monitoring.times import backward_rows
from pytest_modelserve.monitoring.windows import CountedColumn, RowsColumn, Window, WindowColumn


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
    broken = [rules.all_null(nulls, column.rows, reference, block=blocks.current)]
    rates = [null_rate(nulls, column.rows, reference, blocks)]
    if counted.known:
        broken.append(rules.became_one_category(counted, block=blocks.current))
        if reference.name in terms.closed:
            broken.append(rules.outside_vocabulary(counted))
        elif not reference.pooled:
            rates.append(new_category_rate(counted, blocks))
        if counted.named:
            rates.append(lost_category_rate(counted, blocks, alpha=terms.alpha))
    return Inspection(tuple(rules.told(broken)), tuple(rates))


def _numbers(
    column: WindowColumn, facts: NumericFacts, reference: NumericColumn, terms: Terms, sample: Integers | slice
) -> Inspection:
    blocks = terms.blocks
    broken = [
        rules.has_infinities(facts, reference),
        rules.became_constant(facts, reference, block=blocks.current),
        rules.out_of_reach(facts, reference, block=blocks.reference),
    ]
    rates = []
    if not is_length(reference):  # the nulls of texts are told once, with the texts
        broken.insert(0, rules.all_null(facts.nulls, facts.rows, reference, block=blocks.current))
        rates.append(null_rate(facts.nulls, facts.rows, reference, blocks))
    if facts.rows > facts.nulls and (reference.negative_infinities or reference.positive_infinities):
        rates.append(infinite_rate(facts, reference, blocks))
    if facts.finite:
        rates.append(range_rate(facts, reference, blocks))
        varies = facts.minimum < facts.maximum  # else a rule has told the one value already
        if isinstance(column, RowsColumn) and varies and reference.kind != "boolean":
            rates.append(repeated_value_rate(column.column, sample, reference, terms))
    return Inspection(tuple(rules.told(broken)), tuple(rates))


def _times(column: WindowColumn, facts: NumericFacts, reference: NumericColumn, terms: Terms) -> Inspection:
    """Times go on: no range holds for them, no value comes back, and all rows may be of one day."""
    blocks, name = terms.blocks, reference.name
    broken = [rules.all_null(facts.nulls, facts.rows, reference, block=blocks.current)]
    if name in terms.max_age_s:
        broken.append(rules.too_old(facts, name, max_age_s=terms.max_age_s[name], now=terms.now))
    rates = [null_rate(facts.nulls, facts.rows, reference, blocks)]
    now, known = _backward(column), facts.rows - facts.nulls
    if (
        now is not None
        and known
        and reference.backward is not None
        and keeps_order(reference.backward, reference.known)
    ):
        rates.append(disorder_rate(name, now, known, reference.backward, reference.known, blocks))
    return Inspection(tuple(rules.told(broken)), tuple(rates))


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
