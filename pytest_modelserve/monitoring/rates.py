"""How often rows of a column are faulty, against how often they were in the profile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_modelserve.monitoring.columns import Column
from pytest_modelserve.monitoring.comparing import Blocks, in_blocks
from pytest_modelserve.monitoring.facts import NumericFacts
from pytest_modelserve.monitoring.judging import CONFIDENCE
from pytest_modelserve.monitoring.moved import points
from pytest_modelserve.monitoring.profiled import CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.stats import binomial_bounds
from pytest_modelserve.stats.two_proportions import excess_bound, fisher_p_value, outside_range_p_value
from pytest_modelserve.stats.unseen import unseen_p_value

_CATEGORIES_TOLD = 5


@dataclass(frozen=True, slots=True)
class Rate:
    """One kind of fault in one column: its share in the data less its share in the profile.

    `p_value` is its chance if the data are like the profile, `high` the 95 % bound of the true difference. `usual` is
    the share to expect of data like the profile's; `base` that of the profile and `below` how far its lower bound lies
    from it. `told` says what was found.
    """

    column: str
    fault: str
    value: float
    p_value: float
    high: float
    usual: float
    told: str
    base: float = 0.0
    below: float = 0.0


def null_rate(column: Column, nulls: int, reference: ProfiledColumn, blocks: Blocks) -> Rate:
    """The share of nulls, by Fisher's exact test against that of the profile."""
    rows = len(column.values)
    told = f"{column.name!r} null in {points(reference.nulls / reference.rows, nulls / rows)}"
    return _against(reference.nulls, reference.rows, nulls, rows, blocks, column.name, "null", told)


def infinite_rate(column: Column, facts: NumericFacts, reference: NumericColumn, blocks: Blocks) -> Rate:
    """The share of infinities among the rows that are not null, by Fisher's exact test: of a profile that has some."""
    then = reference.negative_infinities + reference.positive_infinities
    rows = facts.rows - facts.nulls
    told = f"{column.name!r} infinite in {points(then / reference.known, facts.infinities / rows)}"
    return _against(then, reference.known, facts.infinities, rows, blocks, column.name, "infinite", told)


def range_rate(column: Column, facts: NumericFacts, reference: NumericColumn, blocks: Blocks) -> Rate:
    """The share of finite values outside the profile's range: 0 in the profile, 2/(N + 1) to be expected of new rows.

    Its chance counts order statistics (`outside_range_p_value`), whatever the distribution.
    """
    seen = reference.known - reference.negative_infinities - reference.positive_infinities
    outside = facts.below + facts.above
    few, rows = in_blocks(outside, facts.finite, blocks.current, up=False)
    return Rate(
        column=column.name,
        fault="out of range",
        value=outside / facts.finite,
        p_value=outside_range_p_value(few, rows, max(seen // blocks.reference, 2)),
        high=_high(outside, facts.finite, blocks.current),
        usual=min(2 / (max(seen // blocks.reference, 2) + 1), 1.0),
        told=f"{column.name!r} outside [{reference.minimum:.6g}, {reference.maximum:.6g}] in {outside:,} of "
        f"{facts.finite:,} rows, with values from {facts.minimum:.6g} to {facts.maximum:.6g}",
    )


def new_category_rate(column: Column, counts: Counter[str], reference: CategoricalColumn, blocks: Blocks) -> Rate:
    """The share of rows whose category the profile does not have: 0 in the profile.

    Its chance allows for categories that come in clumps (`unseen_p_value`). Of new rows, as many are to be expected as
    there are rows of categories seen once, over all rows: each would have been new without itself (Good 1953,
    Biometrika 40, 237–264).
    """
    names, then, now = reference.beside(counts)
    new = Counter({str(name): now[index] for index, name in enumerate(names) if not then[index]})
    unseen, rows = new.total(), counts.total()
    named = ", ".join(f"{category!r} ({times:,})" for category, times in new.most_common(_CATEGORIES_TOLD))
    more = f" and {len(new) - _CATEGORIES_TOLD} more" if len(new) > _CATEGORIES_TOLD else ""
    return Rate(
        column=column.name,
        fault="new category",
        value=unseen / rows,
        p_value=unseen_p_value(_each_in_blocks(then, blocks.reference), _each_in_blocks(now, blocks.current)),
        high=_high(unseen, rows, blocks.current),
        usual=reference.counts.count(1) / reference.known,
        told=f"{column.name!r} of a new category in {unseen:,} of {rows:,} rows: {named}{more}",
    )


def _each_in_blocks(counts: Sequence[int], block: int) -> list[int]:
    return [max(count // block, 1) if count else 0 for count in counts]


def _against(
    then: int, of_then: int, now: int, of_now: int, blocks: Blocks, column: str, fault: str, told: str
) -> Rate:
    few, n = in_blocks(now, of_now, blocks.current, up=False)
    many, _ = in_blocks(now, of_now, blocks.current, up=True)
    most, of_n = in_blocks(then, of_then, blocks.reference, up=True)
    least, _ = in_blocks(then, of_then, blocks.reference, up=False)
    share = then / of_then
    return Rate(
        column=column,
        fault=fault,
        value=now / of_now - share,
        p_value=fisher_p_value(few, n, most, of_n),
        high=excess_bound(many, n, least, of_n, level=CONFIDENCE),
        usual=share,
        told=told,
        base=share,
        below=least / of_n - binomial_bounds(least, of_n, low_level=CONFIDENCE, high_level=CONFIDENCE).low,
    )


def _high(faulty: int, rows: int, block: int) -> float:
    successes, n = in_blocks(faulty, rows, block, up=True)
    return binomial_bounds(successes, n, low_level=CONFIDENCE, high_level=CONFIDENCE).high
