"""What changed in a column, in its own units: means and medians, or the shares of categories."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from pytest_modelserve.monitoring.profiled import POOLS, CategoricalColumn, NumericColumn, ProfiledColumn, pool_of
from pytest_modelserve.monitoring.telling import told_step, told_value
from pytest_modelserve.monitoring.windows import WindowColumn

_SHARES_TOLD = 3
_COST = 1.1


def told_change(column: WindowColumn, reference: ProfiledColumn) -> str:
    """How `column` differs from its profile: "mean 325.0 → 354.4 (+29.4), median 324.5 → 353.6"."""
    if isinstance(reference, CategoricalColumn):
        return _told_shares(column, reference)
    before, after = reference.mean, column.mean()
    if math.isnan(after):
        return "no finite value is left"
    if reference.kind == "boolean":
        return f"true in {points(before, after)}"
    return (
        f"mean {_number(reference, before)} → {_number(reference, after)} "
        f"({told_step(reference.kind, after - before)}), "
        f"median {_number(reference, reference.median)} → {_number(reference, column.median())}"
    )


def _number(column: NumericColumn, number: float) -> str:
    return told_value(column.kind, number) if column.kind == "datetime" else f"{number:.4g}"


def told_bins(column: WindowColumn, reference: ProfiledColumn) -> str:
    """Where a column of numbers gained most: "; most gained in [352, 355): 0.3 % → 31.0 % (+30.7 points)"; else ""."""
    if isinstance(reference, CategoricalColumn) or reference.kind == "boolean":
        return ""
    then, now = np.array(reference.counts, dtype=np.float64), column.counts(reference).astype(np.float64)
    below_then = np.concatenate(([0.0], np.cumsum(then) / then.sum()))
    below_now = np.concatenate(([0.0], np.cumsum(now) / now.sum()))
    # Each row that was there before costs a tenth, so that the range ends where rows no longer gain.
    gained = below_now - _COST * below_then
    last = int((gained - np.minimum.accumulate(gained)).argmax())
    first = int(gained[: last + 1].argmin())
    if first == last:
        return ""
    low = reference.edges[first - 1] if first else -math.inf
    high = reference.edges[last - 1] if last < len(then) else math.inf
    before, after = below_then[last] - below_then[first], below_now[last] - below_now[first]
    return f"; most gained {_range(reference, low, high)}: {points(float(before), float(after))}"


def _range(column: NumericColumn, low: float, high: float) -> str:
    """ "in [1.2, 3.4)", "below 3.4", "from 1.2 on"; of whole numbers "at 3" or "from 3 to 7"."""
    if column.kind == "integer" and math.isfinite(low) and math.isfinite(high):
        first, last = math.ceil(low), math.ceil(high) - 1
        return f"at {first}" if first == last else f"from {first} to {last}"
    if math.isinf(low):
        return f"below {_number(column, high)}"
    if math.isinf(high):
        return f"from {_number(column, low)} on"
    return f"in [{_number(column, low)}, {_number(column, high)})"


def _told_shares(column: WindowColumn, reference: CategoricalColumn) -> str:
    keys, before, after = column.beside(reference)
    changes = sorted(
        zip(keys, np.array(before) / reference.known, np.array(after) / sum(after), strict=True),
        key=lambda change: -abs(change[2] - change[1]),
    )
    counts = column.categories() or Counter[str]()
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
