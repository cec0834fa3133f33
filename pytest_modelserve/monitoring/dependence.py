"""Serial dependence of the rows of a column: block length, and how many rows count as one."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.monitoring.columns import Column
from pytest_modelserve.stats.autocorrelation import centered_ranks
from pytest_modelserve.stats.block_length import optimal_block_length, variance_inflation


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
_MOST_ROWS = 65_536
"""Of longer columns, as many rows evenly spaced: four Fourier transforms take about 20 ms."""
_MOST_CATEGORIES = 4
"""Categories with an indicator each; all others share one."""


def estimate_dependence(column: Column) -> Dependence:
    """Estimate the dependence of a column's rows: of ranks for numbers, of indicators for categories.

    8 segments of 256 rows are read first, or all rows if there are no more. If these depend on each other, or if their
    levels differ, all rows are read, at most 65,536 evenly spaced. The larger estimate of both counts: segments show a
    short memory, and all rows a slow change.
    """
    values = column.values
    if column.kind in (None, "datetime"):  # times are not compared
        return Dependence()
    found = _estimate(_segments(values), column)
    if found.block > 1 and len(values) > found.rows:
        step = math.ceil(len(values) / _MOST_ROWS)
        whole = _estimate(values[::step], column)
        found = replace(
            found,
            block=max(found.block, step * whole.block),
            inflation=max(found.inflation, 1 + step * (whole.inflation - 1)),
        )
    return replace(found, rows=len(values))


def _estimate(values: NDArray[Any], column: Column) -> Dependence:
    ranks, indicators = _category_scores(values) if column.kind == "category" else _number_scores(values)
    length = optimal_block_length(ranks)
    alone = Dependence(len(values), len(values), length.correlation)
    if not length.dependent:
        return alone
    return replace(alone, block=max(length.circular, 1.0), inflation=variance_inflation(indicators, length.bandwidth))


def _number_scores(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ranks (n,), and indicators (n, 3) of values above the quartiles; NaN is null.

    The block length needs the ranks, whose memory shows in more lags. The distance of two distribution functions is
    that of indicators, which vary less than ranks: 4.0 against 5.7 times as much at the median of a chain of 0.7.
    """
    numbers = values.astype(np.float64)
    known = ~np.isnan(numbers)
    ranks = np.full(len(numbers), np.nan)
    ranks[known] = centered_ranks(numbers[known])
    rows = max(int(known.sum()), 1)
    indicators = np.where(known[:, np.newaxis], ranks[:, np.newaxis] / rows > (-0.25, 0.0, 0.25), np.nan)
    return ranks, indicators


def _category_scores(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return indicators (n, k) of the most frequent categories, and of all others, twice; None is null."""
    counts = Counter(value for value in values.tolist() if value is not None)
    codes: dict[Any, float] = {name: place for place, (name, _) in enumerate(counts.most_common(_MOST_CATEGORIES))}
    others = float(len(codes))
    coded = np.array([np.nan if value is None else codes.get(value, others) for value in values.tolist()])
    indicators = np.where(np.isnan(coded)[:, np.newaxis], np.nan, coded[:, np.newaxis] == np.arange(others + 1))
    return indicators, indicators


def _segments(values: NDArray[Any]) -> NDArray[Any]:
    """Return all rows, or segments spread evenly over them, one after the other."""
    if len(values) <= _SEGMENTS * _SEGMENT_ROWS:
        return values
    starts = np.linspace(0, len(values) - _SEGMENT_ROWS, _SEGMENTS).astype(np.int64)
    return np.concatenate([values[start : start + _SEGMENT_ROWS] for start in starts])
