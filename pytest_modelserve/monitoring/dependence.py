"""Whether the rows of a column depend on their neighbours, judged by a sample of stretches of the file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from pytest_modelserve.monitoring.columns import Column
from pytest_modelserve.monitoring.profiled import ProfiledColumn
from pytest_modelserve.stats.autocorrelation import LagOne, agreement_autocorrelation, rank_autocorrelation

if TYPE_CHECKING:
    from pytest_modelserve.monitoring.windows import WindowColumn

STRONG = 0.1
"""The autocorrelation from which independence is no longer believed. At 0.1 in a chain that forgets geometrically, a
sum varies 22 % more than one of independent rows and an alpha of 0.01 is in truth 0.026."""
ERROR_RATE = 0.001
"""How often, over all columns, rows no more dependent than that may be taken for strongly dependent ones."""
_STRETCHES, _STRETCH = 8, 256
"""2,048 rows in all tell the autocorrelation to 0.02; more would cost as much as counting all of 200,000."""


def lag_of(column: Column) -> LagOne:
    """The autocorrelation at lag one of a column that is not all null, over at most 8 stretches of 256 rows."""
    stretches = _stretches(column.values)
    if column.kind != "category":
        return rank_autocorrelation(stretches)
    codes = {None: -1}
    return agreement_autocorrelation(
        np.array([[codes.setdefault(value, len(codes) - 1) for value in row] for row in stretches.tolist()])
    )


def strongly_dependent(lag: LagOne, *, columns: int) -> bool:
    """Whether the autocorrelation is significantly above 0.1, at an error rate of 0.001 over all `columns`."""
    return lag.low(-float(ndtri(ERROR_RATE / columns))) > STRONG


def _stretches(values: NDArray[Any]) -> NDArray[Any]:
    """All rows as one stretch, or stretches spread evenly over the file, shape (stretches, length)."""
    if len(values) <= _STRETCHES * _STRETCH:
        return values[np.newaxis]
    starts = np.linspace(0, len(values) - _STRETCH, _STRETCHES).astype(np.int64)
    return np.stack([values[start : start + _STRETCH] for start in starts])


def dependence_told(pairs: Sequence[tuple[WindowColumn, ProfiledColumn]], *, data: str) -> str:
    """The strongest dependence of rows on their neighbours, in the data or in the profile; "" where there is none."""
    lags = [(column.lag(), column.name, data) for column, _ in pairs]
    lags += [(reference.lag, reference.name, "the profile") for _, reference in pairs]
    strong = [found for found in lags if strongly_dependent(found[0], columns=len(lags))]
    if not strong:
        return ""
    lag, name, where = max(strong, key=lambda found: found[0].estimate)
    others = f", and {len(strong) - 1} more such" if len(strong) > 1 else ""
    return (
        f"rows depend on their neighbours: autocorrelation {lag.estimate:.2f} at lag one in column {name!r} of {where}"
        f"{others}; so many rows say less than as many independent ones, and how much less is unknown"
    )
