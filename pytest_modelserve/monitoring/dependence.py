"""Serial dependence of the rows of a column: block length, and how many rows count as one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from pytest_modelserve.errors import UsageError
from pytest_modelserve.monitoring.columns import Column
from pytest_modelserve.stats.autocorrelation import centered_ranks
from pytest_modelserve.stats.block_length import optimal_block_length, short_memory, variance_inflation


@dataclass(frozen=True, slots=True)
class Dependence:
    """The dependence of neighboring rows among `rows` rows; 0 rows if their order is not known.

    `correlation` is the autocorrelation at lag one in `pairs` pairs of neighbors. `block` is the estimated block length
    in rows. `inflation` is how much more a proportion of these rows varies than that of independent rows, so that n
    rows are worth n/inflation. Both are 1 for independent rows.
    """

    rows: int = 0
    pairs: int = 0
    correlation: float = 0.0
    block: float = 1.0
    inflation: float = 1.0

    def __post_init__(self) -> None:
        counted = self.rows >= self.pairs >= 0 and -1 <= self.correlation <= 1
        if not (counted and self.block >= 1 and self.inflation >= 1):
            raise UsageError(
                "a dependence needs at least as many rows as pairs, a correlation in [-1, 1], and a block and an "
                f"inflation of at least 1; got {self}"
            )

    @property
    def z_score(self) -> float:
        """The correlation in standard errors of independent rows, 1/√pairs (Bartlett 1946)."""
        return self.correlation * math.sqrt(self.pairs)

    def merged(self, other: Dependence) -> Dependence:
        """Return the dependence of two data sets one after the other, the same in any order of many.

        The block is the longer one. The inflation is the mean over rows, as the variances of sums add up, and the
        correlation that over pairs. Both are rounded to multiples of 2⁻²⁰/rows, which doubles hold exactly for fewer
        than 2³² rows.
        """
        rows, pairs = self.rows + other.rows, self.pairs + other.pairs
        products = sum(round(part.correlation * part.pairs * 2**20) for part in (self, other))
        inflated = sum(round(part.inflation * part.rows * 2**20) for part in (self, other))
        return Dependence(
            rows,
            pairs,
            min(max(products / (pairs * 2**20), -1.0), 1.0) if pairs else 0.0,
            max(self.block, other.block),
            max(inflated / (rows * 2**20), 1.0) if rows else 1.0,
        )


_SEGMENTS, _SEGMENT_ROWS = 8, 256
"""2,048 rows show whether rows depend on each other; the whole column is read only if they do."""
_MOST_ROWS = 16_384
"""Of longer columns, as many rows evenly spaced: ranks and four Fourier transforms of them take about 5 ms."""
_MOST_CATEGORIES = 4
"""Categories with an indicator each; all others share one."""
_QUARTILES = (-0.25, 0.0, 0.25)
"""The quartiles of centered ranks as proportions."""
_Z = 1.645


def estimate_dependence(column: Column) -> Dependence:
    """Estimate the dependence of a column's rows: of ranks for numbers, of indicators for categories.

    8 segments of 256 rows are read first, or all rows if there are no more. If these depend on each other, or if their
    levels differ, all rows are read, at most 16,384 evenly spaced. The larger estimate of both counts: segments show a
    short memory, and all rows a slow change.
    """
    values = column.values
    if column.kind in (None, "datetime") or not len(values):  # times are not compared
        return Dependence()
    found = _estimate(_segments(values), column)
    if found.inflation > 1 and len(values) > found.rows:
        step = math.ceil(len(values) / _MOST_ROWS)
        whole = _estimate(values[::step], column)
        found = replace(
            found,
            block=max(found.block, step * whole.block),
            inflation=max(found.inflation, 1 + step * (whole.inflation - 1)),
        )
    return replace(found, rows=len(values))


def _estimate(values: NDArray[Any], column: Column) -> Dependence:
    if column.kind == "category":
        return _of_categories([_of_scores(_ranks(indicator)) for indicator in _category_indicators(values).T])
    return _of_scores(_ranks(values))


def _of_scores(scores: NDArray[np.float64]) -> Dependence:
    """Return the dependence of scores (n,) with NaN for null: ranks, or the indicator of a category.

    It is estimated from an autocorrelation with a p-value of 5 % on, so that little is missed. Whether rows are called
    dependent is decided over all columns.
    """
    rows, memory = len(scores), short_memory(scores)
    alone = Dependence(rows, rows, memory.correlation)
    if not memory.significant and alone.z_score < _Z:
        return alone
    length = optimal_block_length(scores)
    # The block length needs the ranks, whose memory shows in more lags. The distance of two distribution functions is
    # that of indicators, which vary less than ranks: 4.0 against 5.7 times as much at the median of a chain of 0.7.
    known = ~np.isnan(scores)[:, np.newaxis]
    indicators = np.where(known, scores[:, np.newaxis] > _QUARTILES, np.nan)
    inflation = variance_inflation(indicators, length.bandwidth)
    return replace(alone, block=max(length.circular, 1.0), inflation=inflation)


def _of_categories(categories: Sequence[Dependence]) -> Dependence:
    """Return the strongest dependence of any category: the test of a column takes the one that changed most.

    The correlation is lowered to that of one test whose p-value is the smallest one times the number of categories.
    """
    strongest = max(categories, key=lambda found: found.z_score)
    p_value = min(float(ndtr(-strongest.z_score)) * len(categories), 0.5)
    return replace(
        strongest,
        correlation=min(-float(ndtri(p_value)), strongest.z_score) / math.sqrt(strongest.pairs),
        block=max(found.block for found in categories),
        inflation=max(found.inflation for found in categories),
    )


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return mean ranks as proportions, −0.5 to 0.5; NaN is null."""
    numbers = values.astype(np.float64)
    known = ~np.isnan(numbers)
    numbers[known] = centered_ranks(numbers[known]) / max(int(known.sum()), 1)
    return numbers


def _category_indicators(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return indicators (n, k) of the most frequent categories, and of all others; None is null."""
    counts = Counter(value for value in values.tolist() if value is not None)
    codes: dict[Any, float] = {name: place for place, (name, _) in enumerate(counts.most_common(_MOST_CATEGORIES))}
    others = float(len(codes))
    coded = np.array([np.nan if value is None else codes.get(value, others) for value in values.tolist()])
    return np.where(np.isnan(coded)[:, np.newaxis], np.nan, coded[:, np.newaxis] == np.arange(others + 1))


def _segments(values: NDArray[Any]) -> NDArray[Any]:
    """Return all rows, or segments spread evenly over them, one after the other."""
    if len(values) <= _SEGMENTS * _SEGMENT_ROWS:
        return values
    starts = np.linspace(0, len(values) - _SEGMENT_ROWS, _SEGMENTS).astype(np.int64)
    return np.concatenate([values[start : start + _SEGMENT_ROWS] for start in starts])
