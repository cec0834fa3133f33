"""Histograms of the columns that moved, profile against data, in few bins: reports draw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn
from pytest_modelserve.monitoring.formats import format_value
from pytest_modelserve.monitoring.window import Pairs, WindowColumn
from pytest_modelserve.settings import is_redacted

MAX_COLUMNS = 6
"""A histogram takes about 350 of the bytes that evidence may have."""
_BINS = 14
_CATEGORIES = 8


def histograms_of(names: Sequence[str], pairs: Pairs) -> dict[str, Mapping[str, Any]]:
    """Return the proportions of rows in each bin, of the profile and of the data, for the first of these columns.

    Numeric columns have `edges` between the bins, as text; the outermost bins are open. Other columns have the largest
    `categories`, and the rest as the last one.
    """
    found: dict[str, Mapping[str, Any]] = {}
    by_name = {reference.name: (column, reference) for column, reference in pairs}
    for name in names[:MAX_COLUMNS]:
        if name in by_name:
            column, reference = by_name[name]
            if isinstance(reference, CategoricalColumn):
                found[name] = _categories(column, reference)
            else:
                found[name] = _numbers(column, reference)
    return found


def _numbers(column: WindowColumn, reference: NumericColumn) -> dict[str, Any]:
    if reference.kind == "boolean":
        shares = np.array([reference.mean, column.mean()])
        return {"categories": ["false", "true"], **_proportions(*np.stack([1 - shares, shares], axis=1))}
    before, after = np.array(reference.counts, dtype=float), column.counts(reference).astype(float)
    edges = np.array(reference.edges)
    kept = _even_edges(edges, before / before.sum() + after / after.sum())
    starts = np.append(0, kept + 1)
    labels = [_label(reference, edges[edge]) for edge in kept]
    return {"edges": labels, **_proportions(np.add.reduceat(before, starts), np.add.reduceat(after, starts))}


def _even_edges(edges: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the numbers of those edges that are nearest to evenly spaced ones between the 1 % and 99 % points."""
    below = np.cumsum(rows)[:-1] / rows.sum()
    low, high = (int(np.searchsorted(below, share)) for share in (0.01, 0.99))
    last = edges.size - 1
    even = np.linspace(edges[min(low, last)], edges[min(high, last)], _BINS - 1)
    return np.unique(np.abs(edges[None] - even[:, None]).argmin(axis=1))


def _label(column: NumericColumn, edge: float) -> str:
    if column.kind == "integer":  # the bin starts at this number
        return f"{np.ceil(edge):.0f}"
    return format_value(column.kind, float(edge)) if column.kind == "datetime" else f"{edge:.4g}"


def _categories(column: WindowColumn, reference: CategoricalColumn) -> dict[str, Any]:
    keys, counted_before, counted_after = column.align(reference)
    before, after = np.array(counted_before, dtype=float), np.array(counted_after, dtype=float)
    before, after = before / max(before.sum(), 1.0), after / max(after.sum(), 1.0)
    largest = np.argsort(-np.maximum(before, after), kind="stable")
    shown, rest = largest[:_CATEGORIES], largest[_CATEGORIES:]
    redacted = is_redacted(reference.name)
    labels = [
        f"category {place}" if redacted else keys[i] if isinstance(keys[i], str) else f"hash bucket {keys[i]}"
        for place, i in enumerate(shown, start=1)
    ]
    if rest.size:
        labels.append(f"{rest.size} others")
        before, after = (np.append(part[shown], part[rest].sum()) for part in (before, after))
    else:
        before, after = before[shown], after[shown]
    return {"categories": [str(label)[:40] for label in labels], **_proportions(before, after)}


def _proportions(before: NDArray[np.float64], after: NDArray[np.float64]) -> dict[str, list[float]]:
    return {
        name: [round(float(share), 4) for share in part / max(part.sum(), 1e-300)]
        for name, part in (("profile", before), ("data", after))
    }
