"""Rates of faulty rows in the data, tested against the rates in the profile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.monitoring.column_profile import AlignedCounts, CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.columns import Column
from pytest_modelserve.monitoring.decision import CONFIDENCE, Blocks, in_blocks
from pytest_modelserve.monitoring.duplicates import RepeatedRows
from pytest_modelserve.monitoring.formats import format_rate_change, suggest_exclusion
from pytest_modelserve.monitoring.histogram import Integers, count_values
from pytest_modelserve.monitoring.window import NumericSummary, WindowColumn
from pytest_modelserve.settings import is_redacted, shown_value
from pytest_modelserve.stats import binomial_bounds
from pytest_modelserve.stats.proportions import (
    fisher_p_value,
    outside_range_p_value,
    rate_increase_bound,
    unseen_p_value,
)

_Z = 1.6449
"""The normal quantile of the upper bounds."""
UNSEEN = "new category"
"""The fault of values that the profile has not seen."""


@dataclass(frozen=True, slots=True)
class Rate:
    """The rate of one kind of fault in a column, or in whole rows if `column` is "".

    `distance` is the rate in the data minus that in the profile, `p_value` its probability if the data are like the
    profile, and `upper` the 95 % bound of the true difference. For planning, `expected` is the rate of data like the
    profile's, `base` the rate in the profile, and `margin` the distance of its lower bound. `detail` is for messages.
    """

    column: str
    fault: str
    distance: float
    p_value: float
    upper: float
    expected: float
    detail: str
    base: float = 0.0
    margin: float = 0.0

    @property
    def where(self) -> str:
        """The fault and its column: "null in 'age'"."""
        return f"{self.fault} in {self.column!r}" if self.column else self.fault

    @property
    def key(self) -> str:
        """The fault and its column as a key: "age: null"."""
        return f"{self.column}: {self.fault}" if self.column else self.fault


def null_rate(nulls: int, rows: int, reference: ProfiledColumn, blocks: Blocks) -> Rate:
    """Test the rate of nulls by Fisher's exact test."""
    detail = f"{reference.name!r} null in {format_rate_change(reference.nulls / reference.rows, nulls / rows)}"
    error = reference.count_error
    return fisher_rate(reference.nulls, reference.rows, nulls, rows, blocks, reference.name, "null", detail, error)


def infinite_rate(summary: NumericSummary, reference: NumericColumn, blocks: Blocks) -> Rate:
    """Test the rate of infinities among the non-null rows by Fisher's exact test."""
    before, rows = reference.known - reference.finite, summary.rows - summary.nulls
    detail = f"{reference.name!r} infinite in {format_rate_change(before / reference.known, summary.infinities / rows)}"
    counts = before, reference.known, summary.infinities, rows
    return fisher_rate(*counts, blocks, reference.name, "infinite", detail, reference.count_error)


def range_rate(summary: NumericSummary, reference: NumericColumn, blocks: Blocks) -> Rate:
    """Test the rate of finite values outside the profile's range, by order statistics for any distribution.

    The rate is 0 in the profile and 2/(N + 1) expected in new rows. A suppressed profile has rows outside the range
    that it shows, and the rates are compared by Fisher's exact test.
    """
    outside = summary.below + summary.above
    low, high = (shown_value(reference.name, f"{end:.6g}") for end in (summary.minimum, summary.maximum))
    ends = f"[{reference.minimum:.6g}, {reference.maximum:.6g}]"
    detail = (
        f"{reference.name!r} outside {'its range' if is_redacted(reference.name) else ends} in {outside:,} of "
        f"{summary.finite:,} rows, with values from {low} to {high}"
        f"{suggest_exclusion(reference.name, reference.kind, outside / summary.finite)}"
    )
    if reference.min_count > 1:
        counts = reference.outside, max(reference.finite, 1), outside, summary.finite
        error = reference.count_error if reference.edges else reference.finite
        return fisher_rate(*counts, blocks, reference.name, "out of range", detail, error)
    few, rows = in_blocks(outside, summary.finite, blocks.current, up=False)
    reference_blocks = max(reference.finite // blocks.reference, 2)
    return Rate(
        column=reference.name,
        fault="out of range",
        distance=outside / summary.finite,
        p_value=outside_range_p_value(few, rows, reference_blocks),
        upper=rate_bound(outside, summary.finite, blocks.current),
        expected=min(2 / (reference_blocks + 1), 1.0),
        detail=detail,
    )


def fisher_rate(
    before: int,
    n_before: int,
    after: int,
    n_after: int,
    blocks: Blocks,
    column: str,
    fault: str,
    detail: str,
    error: int = 0,
) -> Rate:
    """Test `after` of `n_after` rows against `before` of `n_before` by Fisher's exact test.

    With blocks, counts are rounded so that the difference does not grow, and for the bound so that it does not shrink.
    `error` is the number of rows by which `before` may be wrong.
    """
    few, n = in_blocks(after, n_after, blocks.current, up=False)
    many, _ = in_blocks(after, n_after, blocks.current, up=True)
    most, reference_n = in_blocks(min(before + error, n_before), n_before, blocks.reference, up=True)
    least, _ = in_blocks(max(before - error, 0), n_before, blocks.reference, up=False)
    base = before / n_before
    return Rate(
        column=column,
        fault=fault,
        distance=after / n_after - base,
        p_value=fisher_p_value(few, n, most, reference_n),
        upper=rate_increase_bound(many, n, least, reference_n, level=CONFIDENCE),
        expected=base,
        detail=detail,
        base=base,
        margin=least / reference_n
        - binomial_bounds(least, reference_n, low_level=CONFIDENCE, high_level=CONFIDENCE).low,
    )


def rate_bound(faulty: int, rows: int, block: int) -> float:
    """Return the upper 95 % bound of a rate, given `faulty` of `rows` in blocks."""
    successes, n = in_blocks(faulty, rows, block, up=True)
    return binomial_bounds(successes, n, low_level=CONFIDENCE, high_level=CONFIDENCE).high


# Categories that are new, or that were lost.

_MAX_CATEGORIES = 5


@dataclass(frozen=True, slots=True)
class CountedCategories:
    """The categories of the data and of the profile, counted once.

    `named` is False if either side has only hash buckets.
    """

    reference: CategoricalColumn
    aligned: AlignedCounts
    named: bool

    @classmethod
    def of(cls, column: WindowColumn, reference: CategoricalColumn) -> CountedCategories:
        """Count the categories of a column."""
        counts = column.categories()
        aligned = column.align(reference) if counts is None else reference.align(counts)
        return cls(reference, aligned, counts is not None and not reference.hashed)

    @property
    def known(self) -> int:
        """The rows of the data that are not null."""
        return sum(self.aligned[2])

    def unmatched(self, *, new: bool) -> list[tuple[str | int, int]]:
        """Return the new categories, or the lost ones, with their rows; the most frequent first."""
        names, before, after = self.aligned
        present, absent = (after, before) if new else (before, after)
        found = [(name, n) for name, n, other in zip(names, present, absent, strict=True) if n and not other]
        return sorted(found, key=lambda pair: -pair[1])

    def format_unmatched(self, *, new: bool) -> str:
        """Format up to five of these categories: "'Wien' (12), 'Genf' (3)"."""
        found = self.unmatched(new=new)
        if found and is_redacted(self.reference.name):
            return f"{len(found):,} redacted names"
        text = ", ".join(f"{name!r} ({rows:,})" for name, rows in found[:_MAX_CATEGORIES])
        return text + (f" and {len(found) - _MAX_CATEGORIES} more" if len(found) > _MAX_CATEGORIES else "")


def new_category_rate(counted: CountedCategories, blocks: Blocks) -> Rate:
    """Test the rate of rows with a category that is not in the profile, allowing for overdispersion.

    The expected rate is that of categories seen once (Good 1953, Biometrika 40, 237–264): each of these rows would have
    been new without itself. Its standard error is that of Robbins (1968) and Esty (1983). Hash buckets
    that are empty in the profile give only a lower bound of the new rows.
    """
    reference, (_, before, after) = counted.reference, counted.aligned
    if reference.min_count > 1:
        detail = f"{reference.name!r} has a rare or a new category in {after[-1]:,} of {counted.known:,} rows"
        counts = before[-1], reference.known, after[-1], counted.known
        return fisher_rate(*counts, blocks, reference.name, "rare or new category", detail, reference.count_error)
    unseen, rows = sum(n for _, n in counted.unmatched(new=True)), counted.known
    at_least, which = ("", f": {counted.format_unmatched(new=True)}") if counted.named else ("at least ", "")
    once, twice = reference.counts.count(1), reference.counts.count(2)
    expected = once / reference.known
    margin = min(_Z * math.sqrt((once + 2 * twice) * blocks.reference) / reference.known, expected)
    now = unseen / rows
    upper = now - expected + math.hypot(rate_bound(unseen, rows, blocks.current) - now, margin)
    return Rate(
        column=reference.name,
        fault=UNSEEN,
        distance=now - expected,
        p_value=unseen_p_value(_each_in_blocks(before, blocks.reference), _each_in_blocks(after, blocks.current)),
        upper=min(upper, 1.0) if counted.named else 1.0,
        expected=expected,
        detail=f"{reference.name!r} has a new category in {at_least}{unseen:,} of {rows:,} rows{which}",
        base=expected,
        margin=margin,
    )


def lost_category_rate(counted: CountedCategories, blocks: Blocks, *, alpha: float) -> Rate:
    """Test the rate of the profile's rows whose category is absent from the data.

    Rare categories are absent by chance, each with probability (1 − rate)ⁿ. The p-value, `unseen_p_value` with the
    samples exchanged, allows for that. If it is at most `alpha`, the rate is that of all lost categories; otherwise it
    is that of the largest one. The data decide which rows are lost, so that their number in the profile is binomial.
    """
    reference, (_, before, after) = counted.reference, counted.aligned
    lost = [rows for _, rows in counted.unmatched(new=False)]
    p_value = unseen_p_value(_each_in_blocks(after, blocks.current), _each_in_blocks(before, blocks.reference))
    rows = sum(lost) if p_value <= alpha else max(lost, default=0)
    return Rate(
        column=reference.name,
        fault="lost category",
        distance=rows / reference.known,
        p_value=p_value,
        upper=rate_bound(rows, reference.known, blocks.reference) if lost else 0.0,
        expected=0.0,
        detail=f"{reference.name!r} lost categories with {100 * sum(lost) / reference.known:.1f} % of the profile's "
        f"rows: {counted.format_unmatched(new=False)}",
    )


def _each_in_blocks(counts: Sequence[int], block: int) -> list[int]:
    return [max(count // block, 1) if count else 0 for count in counts]


# Copies of earlier rows, and times out of order.

_MAX_BACKWARD = 0.25
"""Times in random order are earlier than the one before in half of all rows. With half of that, a profile has no order
that the data could lose."""


def duplicate_rate(after: RepeatedRows, rows: int, before: RepeatedRows, reference_rows: int, blocks: Blocks) -> Rate:
    """Test the rate of rows that equal an earlier one against that of as many rows of the profile.

    More rows have more copies, so that both rates are those of samples of one size. The p-value is Fisher's for samples
    as large as the smaller data set: the number of copies varies less than a binomial one (occupied cells are
    negatively associated: Joag-Dev and Proschan 1983, Annals of Statistics 11, 286–295), so that the test is
    conservative. The difference and its bound, by the smaller of a binomial variance and `RepeatedRows.rate_variance`,
    are those of samples as large as the data. If these have more rows than the profile, its rate is extrapolated
    (`RepeatedRows.rate_of_more`).
    """
    size, common = after.largest, min(after.largest, before.largest)
    now = after.rate(size)
    reach = _Z * math.sqrt(after.rate_variance(size) * blocks.current)
    high = min(rate_bound(math.ceil(now * rows), rows, blocks.current), now + reach)
    if size <= before.largest:
        then = before.rate(size)
        least, n = in_blocks(math.floor(then * reference_rows), reference_rows, blocks.reference, up=False)
        reach = _Z * math.sqrt(before.rate_variance(size) * blocks.reference)
        low = min(max(binomial_bounds(least, n, low_level=CONFIDENCE, high_level=CONFIDENCE).low, then - reach), then)
    else:
        then, low = before.rate_of_more(size), before.rate_of_more(size, z=_Z * math.sqrt(blocks.reference))
    few = in_blocks(math.floor(after.rate(common) * rows), rows, blocks.current, up=False)
    most = in_blocks(
        min(math.ceil(before.rate(common) * reference_rows), reference_rows), reference_rows, blocks.reference, up=True
    )
    return Rate(
        column="",
        fault="duplicate rows",
        distance=now - then,
        p_value=fisher_p_value(*few, *most),
        upper=min(now - then + math.hypot(high - now, then - low), 1.0),
        expected=then,
        detail=f"{after.rows:,} of {rows:,} rows equal an earlier one, {format_rate_change(then, now)}",
        base=then,
        margin=then - low,
    )


def is_ordered(backward: int, known: int) -> bool:
    """Return True if times, of which `backward` of `known` are earlier than the one before, are mostly in order."""
    return backward <= _MAX_BACKWARD * known


def disorder_rate(
    name: str, after: int, known: int, before: int, reference_known: int, blocks: Blocks, error: int = 0
) -> Rate:
    """Test the rate of times earlier than the one before by Fisher's exact test.

    A time is earlier only if the one before is late, so that two in a row are rarer than among independent rows. Their
    number varies less than a binomial one, and the test is conservative.
    """
    detail = f"{name!r} earlier than the row before in {format_rate_change(before / reference_known, after / known)}"
    return fisher_rate(before, reference_known, after, known, blocks, name, "out of order", detail, error)


# Values in far more rows than expected: a 0 for a missing measurement, a default that was never changed.

SAMPLE_SIZE = 8192
"""Rows of a long column to test, so that the cost stays small: a value in 1 % of all rows is then in 82 of these."""
_GOLDEN = 0.6180339887498949
"""The fractions of its multiples are evenly distributed and never repeat (Weyl), so that no period is followed."""
_FAULT = "repeated value"


def sample_rows(rows: int) -> Integers | slice:
    """Return the rows to scan for repeated values: all, or 8,192 quasi-random ones of 16,384 and more."""
    if rows < 2 * SAMPLE_SIZE:
        return slice(None)
    numbers = np.arange(SAMPLE_SIZE)
    return ((numbers + numbers * _GOLDEN % 1) * (rows / SAMPLE_SIZE)).astype(np.int64)


def repeated_value_rate(
    column: Column,
    sample: Integers | slice,
    reference: NumericColumn,
    *,
    max_rate: float,
    alpha: float,
    blocks: Blocks,
) -> Rate:
    """Test the rate of the most repeated value against the rate of its whole bin in the profile.

    A value can be too frequent only in a bin that grew. If a bin grew by more than `max_rate`, with a p-value (Fisher's
    times the number of bins) of at most `alpha`, its values are counted; a value with more than half of the rows of
    its bin is reported. Otherwise the rate and its bound are 0: the test can fail data, but does not let them pass.

    Bins are counted in the rows of `sample`, the value in all rows. Values outside the profile's range are left to
    `range_rate`; columns with one value in each bin are left out, as a change of the distribution explains the growth.
    """
    seen = column.values[sample]
    counts, before = count_values(seen, reference.edges), np.array(reference.counts)
    n, reference_n = max(int(counts.sum()), 1), reference.known
    p_values = {
        int(bin_): _growth_p_value(
            int(counts[bin_]), n, min(int(before[bin_]) + reference.count_error, reference_n), reference_n, blocks
        )
        * counts.size
        for bin_ in np.flatnonzero(counts / n - before / reference_n > max_rate)
    }
    suspects = [bin_ for bin_, p_value in p_values.items() if p_value <= alpha]
    exact = seen if column.exact is None else column.exact[sample][~np.isnan(seen)]
    value = _most_repeated(exact, suspects, reference) if suspects else None
    if value is None:
        return Rate(reference.name, _FAULT, 0.0, 1.0, 0.0, 0.0, "")
    bin_ = int(np.searchsorted(reference.edges, value, side="right"))
    known = len(column.values) - int(np.count_nonzero(np.isnan(column.values)))
    every = column.values if column.exact is None else column.exact[~np.isnan(column.values)]
    repeats, in_bin = int(np.count_nonzero(every == value)), int(before[bin_])
    text = shown_value(reference.name, f"{value:.6g}")
    many, blocks_known = in_blocks(repeats, known, blocks.current, up=True)
    least, blocks_reference = in_blocks(in_bin, reference_n, blocks.reference, up=False)
    return Rate(
        column=reference.name,
        fault=_FAULT,
        distance=repeats / known - in_bin / reference_n,
        p_value=p_values[bin_],
        upper=rate_increase_bound(many, blocks_known, least, blocks_reference, level=CONFIDENCE),
        expected=0.0,
        detail=f"{reference.name!r} is {text} in {100 * repeats / known:.1f} % of the rows, in the profile in at "
        f"most {100 * in_bin / reference_n:.1f} %",
    )


def _growth_p_value(after: int, n_after: int, before: int, n_before: int, blocks: Blocks) -> float:
    return fisher_p_value(
        *in_blocks(after, n_after, blocks.current, up=False), *in_blocks(before, n_before, blocks.reference, up=True)
    )


def _most_repeated(seen: NDArray[Any], suspects: Sequence[int], reference: NumericColumn) -> int | float | None:
    """Return the most frequent value of the bins `suspects`, or None.

    It must be in range and have most rows of its bin, and most other bins must hold several values.
    """
    finite = seen[np.isfinite(seen)]
    values, rows = np.unique(finite if finite.dtype.kind in "iu" else finite.astype(np.float64), return_counts=True)
    bins = np.searchsorted(reference.edges, values, side="right")
    distinct, in_bin = np.bincount(bins), np.bincount(bins, weights=rows)
    grown = np.isin(bins, suspects)
    several = in_bin > 1
    several[bins[grown]] = False
    if 2 * np.count_nonzero(distinct[several] == 1) > np.count_nonzero(several):
        return None
    inside = grown & (values >= reference.minimum) & (values <= reference.maximum) & (2 * rows > in_bin[bins])
    value: int | float = values[np.where(inside, rows, 0).argmax()].item()
    return value if inside.any() else None
