"""What changed in a column, in its own units: means and medians, or the shares of categories."""

from __future__ import annotations

import math

import numpy as np

from pytest_modelserve.monitoring.columns import Column
from pytest_modelserve.monitoring.profiled import POOLS, CategoricalColumn, NumericColumn, ProfiledColumn, pool_of
from pytest_modelserve.monitoring.profiling import count_categories

_SHARES_TOLD = 3


def told_change(column: Column, reference: ProfiledColumn) -> str:
    """How `column` differs from its profile: "mean 325.0 → 354.4 (+29.4), median 324.5 → 353.6"."""
    if isinstance(reference, CategoricalColumn):
        return _told_shares(column, reference)
    finite = column.values[np.isfinite(column.values)].astype(np.float64)
    if not finite.size:
        return "no finite value is left"
    before, after = reference.mean, float(finite.mean())
    if reference.kind == "boolean":
        return f"true in {points(before, after)}"
    return (
        f"mean {before:.4g} → {after:.4g} ({after - before:+.3g}), "
        f"median {median_of(reference):.4g} → {float(np.median(finite)):.4g}"
    )


def median_of(column: NumericColumn) -> float:
    """About the median of a profiled column: a point between the edges of its bin, a whole one of whole numbers."""
    cumulated = np.cumsum(column.counts)
    middle = cumulated[-1] / 2
    index = int(np.searchsorted(cumulated, middle))
    low = column.edges[index - 1] if index else column.minimum
    high = column.edges[index] if index < len(column.edges) else column.maximum
    low, high = max(low, column.minimum), min(high, column.maximum)
    below = cumulated[index] - column.counts[index]
    median = float(low + (high - low) * (middle - below) / column.counts[index])
    return median if column.kind == "float" else min(max(round(median), math.ceil(low)), math.floor(high))


def _told_shares(column: Column, reference: CategoricalColumn) -> str:
    counts = count_categories(column)
    keys, before, after = reference.beside(counts)
    changes = sorted(
        zip(keys, np.array(before) / reference.known, np.array(after) / sum(counts.values()), strict=True),
        key=lambda change: -abs(change[2] - change[1]),
    )
    common = {pool_of(category): category for category, _ in reversed(counts.most_common())}
    told = []
    for key, then, now in changes[:_SHARES_TOLD]:
        if then != now:
            mostly = f" (now mostly {common[key]!r})" if key in common else ""
            label = repr(key) if isinstance(key, str) else f"pool {key} of {POOLS}{mostly}"
            told.append(f"{label} {points(then, now)}")
    return ", ".join(told)


def points(before: float, after: float) -> str:
    """The change of a share: "51.3 % → 75.5 % (+24.1 points)"."""
    return f"{100 * before:.1f} % → {100 * after:.1f} % ({100 * (after - before):+.1f} points)"
