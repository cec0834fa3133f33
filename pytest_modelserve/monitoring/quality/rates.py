"""How often rows of a column are faulty, against how often they were in the profile."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_modelserve.monitoring.comparing import Blocks, in_blocks
from pytest_modelserve.monitoring.facts import NumericFacts
from pytest_modelserve.monitoring.judging import CONFIDENCE
from pytest_modelserve.monitoring.moved import points
from pytest_modelserve.monitoring.profiled import NumericColumn, ProfiledColumn
from pytest_modelserve.stats import binomial_bounds
from pytest_modelserve.stats.two_proportions import excess_bound, fisher_p_value, outside_range_p_value


@dataclass(frozen=True, slots=True)
class Rate:
    """One kind of fault, in one column or in whole rows ("" for a column): its share in the data less that in the
    profile.

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

    @property
    def where(self) -> str:
        """The fault and its column: "null in 'age'"."""
        return f"{self.fault} in {self.column!r}" if self.column else self.fault

    @property
    def key(self) -> str:
        """The same as a key: "age: null"."""
        return f"{self.column}: {self.fault}" if self.column else self.fault


def null_rate(nulls: int, rows: int, reference: ProfiledColumn, blocks: Blocks) -> Rate:
    """The share of nulls, by Fisher's exact test against that of the profile."""
    told = f"{reference.name!r} null in {points(reference.nulls / reference.rows, nulls / rows)}"
    return against(reference.nulls, reference.rows, nulls, rows, blocks, reference.name, "null", told)


def infinite_rate(facts: NumericFacts, reference: NumericColumn, blocks: Blocks) -> Rate:
    """The share of infinities among the rows that are not null, by Fisher's exact test: of a profile that has some."""
    then = reference.negative_infinities + reference.positive_infinities
    rows = facts.rows - facts.nulls
    told = f"{reference.name!r} infinite in {points(then / reference.known, facts.infinities / rows)}"
    return against(then, reference.known, facts.infinities, rows, blocks, reference.name, "infinite", told)


def range_rate(facts: NumericFacts, reference: NumericColumn, blocks: Blocks) -> Rate:
    """The share of finite values outside the profile's range: 0 in the profile, 2/(N + 1) to be expected of new rows.

    Its chance counts order statistics (`outside_range_p_value`), whatever the distribution.
    """
    seen = reference.known - reference.negative_infinities - reference.positive_infinities
    outside = facts.below + facts.above
    few, rows = in_blocks(outside, facts.finite, blocks.current, up=False)
    return Rate(
        column=reference.name,
        fault="out of range",
        value=outside / facts.finite,
        p_value=outside_range_p_value(few, rows, max(seen // blocks.reference, 2)),
        high=share_bound(outside, facts.finite, blocks.current),
        usual=min(2 / (max(seen // blocks.reference, 2) + 1), 1.0),
        told=f"{reference.name!r} outside [{reference.minimum:.6g}, {reference.maximum:.6g}] in {outside:,} of "
        f"{facts.finite:,} rows, with values from {facts.minimum:.6g} to {facts.maximum:.6g}",
    )


def against(then: int, of_then: int, now: int, of_now: int, blocks: Blocks, column: str, fault: str, told: str) -> Rate:
    """The rate of `now` rows of `of_now` against `then` of `of_then`: Fisher's exact test, and `excess_bound`.

    With blocks, whole counts that make the difference no larger stand for the shares, and in the bound no smaller.
    """
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


def share_bound(faulty: int, rows: int, block: int) -> float:
    """The upper 95 % bound of the share of which `faulty` of `rows`, in blocks, are a sample."""
    successes, n = in_blocks(faulty, rows, block, up=True)
    return binomial_bounds(successes, n, low_level=CONFIDENCE, high_level=CONFIDENCE).high
