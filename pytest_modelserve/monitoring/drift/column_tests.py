"""Drift tests of single columns: numbers by Kolmogorov-Smirnov, categories by Fisher's exact test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from pytest_modelserve.monitoring.column_profile import CategoricalColumn, ProfiledColumn
from pytest_modelserve.monitoring.decision import Blocks, Inflations, in_blocks
from pytest_modelserve.monitoring.window import WindowColumn
from pytest_modelserve.stats.proportions import fisher_p_value
from pytest_modelserve.stats.two_sample_tests import (
    distance_bound,
    distribution_distance,
    effective_rows,
    kolmogorov_p_value,
)

Kind = Literal["column", "pair", "rows"]


@dataclass(frozen=True, slots=True)
class DriftTest:
    """One comparison of the data with the profile.

    `distance` lies between 0 and 1, `p_value` is its probability if nothing changed, and `upper` is the bound that the
    true distance exceeds in fewer than 5 % of samples. Both numbers of rows are non-null rows divided by their block or
    inflation. `unit` is the standard error of the distance times √n_effective, of pairs only. `outliers` are the rows
    of the data that are least similar to the profile's.
    """

    name: str
    kind: Kind
    distance: float
    p_value: float
    upper: float
    reference_rows: float
    current_rows: float
    detail: str = ""
    unit: float = 0.0
    outliers: tuple[int, ...] = ()

    @property
    def n_effective(self) -> float:
        """The number of independent rows that the comparison is worth: N·m/(N + m)."""
        return effective_rows(self.reference_rows, self.current_rows)

    @property
    def label(self) -> str:
        """The name in messages: columns are quoted."""
        return repr(self.name) if self.kind == "column" else self.name


def compare_column(column: WindowColumn, reference: ProfiledColumn, blocks: Blocks | Inflations) -> DriftTest:
    """Compare one column with its profile; it has a finite value, or a category."""
    if isinstance(reference, CategoricalColumn):
        _, before, after = column.align(reference)
        return compare_categories(column.name, before, after, blocks=blocks, error=reference.count_error)
    return compare_numbers(
        column.name, reference.counts, column.counts(reference), blocks=blocks, error=reference.count_error
    )


_LEVEL, _KOLMOGOROV = 0.01, 1.6276
"""A level, and the distance times √n that is significant at it by Kolmogorov's test."""


def compare_numbers(
    name: str, reference: ArrayLike, current: ArrayLike, *, blocks: Blocks | Inflations, error: int = 0
) -> DriftTest:
    """Compare two counts (bins,) between the same edges by the distance of their distribution functions.

    The p-value is Kolmogorov's, or Fisher's for the edge with the largest difference, doubled to be two-sided, times
    the number of edges between bins with rows (Bonferroni), where that finds smaller differences: of two values, such
    as booleans, and of values that are rare. Both samples together decide which, so that neither is favored.

    `error` is the number of rows by which the reference's rows below an edge may be wrong: the distance is smaller by
    their proportion, and the bound larger.
    """
    before, after = np.asarray(reference, dtype=np.float64), np.asarray(current, dtype=np.float64)
    rows = float(before.sum()) / blocks.reference, float(after.sum()) / blocks.current
    distance, n = distribution_distance(before, after), effective_rows(*rows)
    wrong = error / float(before.sum())
    most, distance = min(distance + wrong, 1.0), max(distance - wrong, 0.0)
    below = np.cumsum((before + after)[before + after > 0])[:-1] / (before + after).sum()
    spread = float(np.sqrt(below * (1 - below)).max(initial=0.0))
    edges = max(below.size, 1)
    p_value = (
        min(_edge_p_value(before, after, blocks, error) * edges, 1.0)
        if -float(ndtri(_LEVEL / 2 / edges)) * spread < _KOLMOGOROV
        else kolmogorov_p_value(distance, n)
    )
    return DriftTest(name, "column", distance, p_value, distance_bound(most, n), *rows)


def _edge_p_value(
    before: NDArray[np.float64], after: NDArray[np.float64], blocks: Blocks | Inflations, error: int
) -> float:
    """Return the two-sided p-value of Fisher's test at the edge with the largest difference."""
    below_before, below_after = np.cumsum(before), np.cumsum(after)
    edge = int(np.abs(below_before / below_before[-1] - below_after / below_after[-1]).argmax())
    n_before, n_after = int(below_before[-1]), int(below_after[-1])
    near = _nearer(int(below_before[edge]), n_before, int(below_after[edge]), n_after, error)
    return _two_sided_p_value(near, n_before, int(below_after[edge]), n_after, blocks)


def _nearer(before: int, n_before: int, after: int, n_after: int, error: int) -> int:
    """Return the count of the reference, moved by at most `error` rows to the rate of the data."""
    return min(max(round(after / n_after * n_before), before - error), before + error) if error else before


def _two_sided_p_value(before: int, n_before: int, after: int, n_after: int, blocks: Blocks | Inflations) -> float:
    """Return Fisher's p-value, doubled; with blocks, counts are rounded so that the difference does not grow."""
    counts = [(after, n_after, blocks.current), (before, n_before, blocks.reference)]
    higher, lower = sorted(counts, key=lambda count: count[0] / count[1], reverse=True)
    return 2 * fisher_p_value(*in_blocks(*higher, up=False), *in_blocks(*lower, up=True))


def compare_categories(
    name: str, reference: ArrayLike, current: ArrayLike, *, blocks: Blocks | Inflations, error: int = 0
) -> DriftTest:
    """Compare two counts (categories,) by the largest difference of a category's proportion.

    The p-value is Fisher's for that category, doubled to be two-sided, times the number of categories (Bonferroni).
    With blocks, counts are rounded so that the difference does not grow. `error` is as in `compare_numbers`.
    """
    before, after = np.asarray(reference, dtype=np.int64), np.asarray(current, dtype=np.int64)
    n_before, n_after = int(before.sum()), int(after.sum())
    differences = np.abs(before / n_before - after / n_after)
    worst = int(differences.argmax())
    categories = int(((before > 0) | (after > 0)).sum())
    near = _nearer(int(before[worst]), n_before, int(after[worst]), n_after, error)
    p_value = _two_sided_p_value(near, n_before, int(after[worst]), n_after, blocks)
    wrong = error / n_before
    distance, most = max(float(differences[worst]) - wrong, 0.0), min(float(differences[worst]) + wrong, 1.0)
    rows = (n_before / blocks.reference, n_after / blocks.current)
    return DriftTest(
        name,
        "column",
        distance,
        # The difference of one of two categories is that of the other.
        min(p_value * (categories if categories > 2 else 1), 1.0),
        distance_bound(most, effective_rows(*rows)),
        *rows,
    )
