"""How often rows of a column are faulty, against how often they were in the profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.monitoring.drift.column_tests import CONFIDENCE, Blocks, in_blocks
from pytest_modelserve.monitoring.drift.report import points
from pytest_modelserve.monitoring.histogram import Integers, count_values
from pytest_modelserve.stats import binomial_bounds
from pytest_modelserve.stats.proportions import (
    fisher_p_value,
    outside_range_p_value,
    rate_increase_bound,
    unseen_p_value,
)

if TYPE_CHECKING:
    from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn, ProfiledColumn
    from pytest_modelserve.monitoring.columns import Column
    from pytest_modelserve.monitoring.profile import RepeatedRows
    from pytest_modelserve.monitoring.profiler import NumericFacts
    from pytest_modelserve.monitoring.quality.gate import Terms
    from pytest_modelserve.monitoring.window import Beside, WindowColumn


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
    """The rate of `now` rows of `of_now` against `then` of `of_then`: Fisher's exact test, and `rate_increase_bound`.

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
        high=rate_increase_bound(many, n, least, of_n, level=CONFIDENCE),
        usual=share,
        told=told,
        base=share,
        below=least / of_n - binomial_bounds(least, of_n, low_level=CONFIDENCE, high_level=CONFIDENCE).low,
    )


def share_bound(faulty: int, rows: int, block: int) -> float:
    """The upper 95 % bound of the share of which `faulty` of `rows`, in blocks, are a sample."""
    successes, n = in_blocks(faulty, rows, block, up=True)
    return binomial_bounds(successes, n, low_level=CONFIDENCE, high_level=CONFIDENCE).high


# How many rows are of categories that the profile does not have, and of the profile's that the data do not have.


_CATEGORIES_TOLD = 5


@dataclass(frozen=True, slots=True)
class CountedCategories:
    """The categories of the data beside those of the profile, counted once.

    `named` is False where either side has pools alone.
    """

    reference: CategoricalColumn
    beside: Beside
    named: bool

    @classmethod
    def of(cls, column: WindowColumn, reference: CategoricalColumn) -> CountedCategories:
        """Count the categories of a column."""
        counts = column.categories()
        beside = column.beside(reference) if counts is None else reference.beside(counts)
        return cls(reference, beside, counts is not None and not reference.pooled)

    @property
    def known(self) -> int:
        """The rows of the data that are not null."""
        return sum(self.beside[2])

    def alone(self, *, new: bool) -> list[tuple[str | int, int]]:
        """The categories that the data alone have, or the profile alone, with their rows; the most frequent first."""
        names, then, now = self.beside
        here, there = (now, then) if new else (then, now)
        found = [(name, n) for name, n, other in zip(names, here, there, strict=True) if n and not other]
        return sorted(found, key=lambda pair: -pair[1])

    def listed(self, *, new: bool) -> str:
        """The same in words: "'Wien' (12), 'Genf' (3)"."""
        alone = self.alone(new=new)
        told = ", ".join(f"{name!r} ({rows:,})" for name, rows in alone[:_CATEGORIES_TOLD])
        return told + (f" and {len(alone) - _CATEGORIES_TOLD} more" if len(alone) > _CATEGORIES_TOLD else "")


def new_category_rate(counted: CountedCategories, blocks: Blocks) -> Rate:
    """The share of rows whose category the profile, which has names, does not have: 0 in the profile.

    Its chance allows for categories that come in clumps (`unseen_p_value`). Of new rows, as many are to be expected as
    there are rows of categories seen once, over all rows: each would have been new without itself (Good 1953,
    Biometrika 40, 237–264). Data whose categories were counted in pools have at least the rows of the pools that are
    empty in the profile, and nothing bounds how many more.
    """
    reference, (_, then, now) = counted.reference, counted.beside
    unseen, rows = sum(n for _, n in counted.alone(new=True)), counted.known
    least, which = ("", f": {counted.listed(new=True)}") if counted.named else ("at least ", "")
    return Rate(
        column=reference.name,
        fault="new category",
        value=unseen / rows,
        p_value=unseen_p_value(_each_in_blocks(then, blocks.reference), _each_in_blocks(now, blocks.current)),
        high=share_bound(unseen, rows, blocks.current) if counted.named else 1.0,
        usual=reference.counts.count(1) / reference.known,
        told=f"{reference.name!r} of a new category in {least}{unseen:,} of {rows:,} rows{which}",
    )


def lost_category_rate(counted: CountedCategories, blocks: Blocks, *, alpha: float) -> Rate:
    """The share of the profile's rows whose category, which has a name, no row of the data has.

    Rare categories miss a window by chance, each with probability (1 − s)ⁿ. The chance of losing so many rows allows
    for that: it is `unseen_p_value` with the samples exchanged. Where it is at most `alpha` the share is that of all
    lost categories together; else that of the largest alone, whose bound says how large a category may be lost: which
    rows of the profile are lost is decided by the data, so that their number in the profile is binomial.
    """
    reference, (_, then, now) = counted.reference, counted.beside
    lost = [rows for _, rows in counted.alone(new=False)]
    chance = unseen_p_value(_each_in_blocks(now, blocks.current), _each_in_blocks(then, blocks.reference))
    gone = sum(lost) if chance <= alpha else max(lost, default=0)
    share = 100 * sum(lost) / reference.known
    return Rate(
        column=reference.name,
        fault="lost category",
        value=gone / reference.known,
        p_value=chance,
        high=share_bound(gone, reference.known, blocks.reference) if lost else 0.0,
        usual=0.0,
        told=f"{reference.name!r} without {share:.1f} % of the profile's rows, of categories that are gone: "
        f"{counted.listed(new=False)}",
    )


def _each_in_blocks(counts: Sequence[int], block: int) -> list[int]:
    return [max(count // block, 1) if count else 0 for count in counts]


# What is wrong with rows beside each other: copies of earlier ones, and times that run backwards.


_ORDERLESS = 0.25
"""Times in no order are earlier than the one before in half of all rows. A profile halfway there keeps none that a
window could lose."""


def duplicate_rate(now: RepeatedRows, rows: int, then: RepeatedRows, reference_rows: int, blocks: Blocks) -> Rate:
    """The share of rows that equal an earlier one, by Fisher's exact test against that of the profile.

    The more rows, the more have an equal: of rows drawn from one distribution the chance of the i-th to be a copy
    rises with i, and no faster than i. Fewer rows than the profile's are therefore expected to have at most its share,
    more rows at most its share times as many as they are: the profile's rows then count as that many times fewer. The
    number of copies varies less than a binomial one (occupied cells are negatively associated: Joag-Dev and Proschan
    1983, Annals of Statistics 11, 286–295), so that the test is conservative.
    """
    base = max(reference_rows * min(then.among, now.among) // now.among, 1)
    copies = min(then.rows, base)
    told = f"{now.rows:,} of {rows:,} rows equal an earlier one, {points(copies / base, now.rows / rows)}"
    return against(copies, base, now.rows, rows, blocks, "", "duplicate rows", told)


def keeps_order(backward: int, known: int) -> bool:
    """Whether times, of which `backward` of `known` are earlier than the one before, come in some order at all."""
    return backward <= _ORDERLESS * known


def disorder_rate(name: str, now: int, known: int, then: int, reference_known: int, blocks: Blocks) -> Rate:
    """The share of times earlier than the one before, by Fisher's exact test against that of the profile.

    A time can only be earlier than the one before if that one is late, so that two in a row are rarer than among
    independent rows: their number varies less than a binomial one, and the test is conservative.
    """
    told = f"{name!r} earlier than the row before in {points(then / reference_known, now / known)}"
    return against(then, reference_known, now, known, blocks, name, "out of order", told)


# Values that stand in far more rows than they should: a 0 where nothing was measured, a default never changed.


_LOOKED_AT = 8192
"""Rows of a long column are looked at, so that it costs little: a value in 1 % of the rows is then one in 82."""
_GOLDEN = 0.6180339887498949
"""The fractions of its multiples fill an interval evenly and never repeat (Weyl): a rhythm of the rows meets none."""
_FAULT = "repeated value"


def looked_at(rows: int) -> Integers | slice:
    """The rows in which repeated values are looked for: all, or of 16,384 and more 8,192, in no period."""
    if rows < 2 * _LOOKED_AT:
        return slice(None)
    numbers = np.arange(_LOOKED_AT)
    return ((numbers + numbers * _GOLDEN % 1) * (rows / _LOOKED_AT)).astype(np.int64)


def repeated_value_rate(column: Column, sample: Integers | slice, reference: NumericColumn, terms: Terms) -> Rate:
    """The share of rows with one value, less that of all of the profile's rows in its bin, which bounds its own.

    A value can only be too frequent in a bin that grew: its chance is that of the bin's growth, by Fisher's exact test,
    times the number of bins. Where that is at most alpha and the growth above the budget, the values of the bins that
    grew are counted, and a value is told that makes up more than half of its bin. Else the rate is 0 with a bound
    of 0: it can fail data and takes no part in passing them, because only values that stand out are looked for. The
    rows of the `sample` are looked at; the share is that of all rows.

    Not watched: values outside the profile's range, which `range_rate` tells, and columns whose bins hold a single
    value each: there, a value that grows is a change of the distribution.
    """
    seen = column.values[sample]
    counts, then = count_values(seen, reference.edges), np.array(reference.counts)
    n, of, blocks = max(int(counts.sum()), 1), reference.known, terms.blocks
    chances = {
        int(bin_): _chance(int(counts[bin_]), n, int(then[bin_]), of, blocks) * counts.size
        for bin_ in np.flatnonzero(counts / n - then / of > terms.max_rate)
    }
    suspects = [bin_ for bin_, chance in chances.items() if chance <= terms.alpha]
    value = _repeated(seen, suspects, reference) if suspects else None
    if value is None:
        return Rate(reference.name, _FAULT, 0.0, 1.0, 0.0, 0.0, "")
    bin_ = int(np.searchsorted(reference.edges, value, side="right"))
    known = len(column.values) - int(np.count_nonzero(np.isnan(column.values)))
    repeats, usual = int(np.count_nonzero(column.values == value)), int(then[bin_])
    many, in_all = in_blocks(repeats, known, blocks.current, up=True)
    least, of_all = in_blocks(usual, of, blocks.reference, up=False)
    return Rate(
        column=reference.name,
        fault=_FAULT,
        value=repeats / known - usual / of,
        p_value=chances[bin_],
        high=rate_increase_bound(many, in_all, least, of_all, level=CONFIDENCE),
        usual=0.0,
        told=f"{reference.name!r} is {value:.6g} in {100 * repeats / known:.1f} % of the rows, in the profile in at "
        f"most {100 * usual / of:.1f} %",
    )


def _chance(now: int, of_now: int, then: int, of_then: int, blocks: Blocks) -> float:
    return fisher_p_value(
        *in_blocks(now, of_now, blocks.current, up=False), *in_blocks(then, of_then, blocks.reference, up=True)
    )


def _repeated(seen: NDArray[Any], suspects: Sequence[int], reference: NumericColumn) -> float | None:
    """The most frequent value of the bins that grew, if it lies in range, makes up most of its bin, and other bins
    hold several values; else None."""
    values, rows = np.unique(seen[np.isfinite(seen)].astype(np.float64), return_counts=True)
    bins = np.searchsorted(reference.edges, values, side="right")
    distinct, in_bin = np.bincount(bins), np.bincount(bins, weights=rows)
    grown = np.isin(bins, suspects)
    several = in_bin > 1
    several[bins[grown]] = False
    if 2 * np.count_nonzero(distinct[several] == 1) > np.count_nonzero(several):
        return None
    inside = grown & (values >= reference.minimum) & (values <= reference.maximum) & (2 * rows > in_bin[bins])
    return float(values[np.where(inside, rows, 0).argmax()]) if inside.any() else None
