"""Values that stand in far more rows than they should: a 0 where nothing was measured, a default never changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.monitoring.binning import Integers, count_values
from pytest_modelserve.monitoring.comparing import Blocks, in_blocks
from pytest_modelserve.monitoring.judging import CONFIDENCE
from pytest_modelserve.monitoring.kinds import Column
from pytest_modelserve.monitoring.profiled import NumericColumn
from pytest_modelserve.monitoring.quality.rates import Rate
from pytest_modelserve.monitoring.quality.terms import Terms
from pytest_modelserve.stats.two_proportions import excess_bound, fisher_p_value

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
        for bin_ in np.flatnonzero(counts / n - then / of > terms.max_share)
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
        high=excess_bound(many, in_all, least, of_all, level=CONFIDENCE),
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
