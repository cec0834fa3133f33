"""What one pass over a column of numbers tells of its rows beyond their distribution: nulls, infinities, range."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pytest_modelserve.monitoring.binning import chunks
from pytest_modelserve.monitoring.columns import Column
from pytest_modelserve.monitoring.profiled import NumericColumn


@dataclass(frozen=True, slots=True)
class NumericFacts:
    """Rows of a column of numbers: null, infinite, below and above the finite range of the profile, and the extremes.

    `minimum` is inf and `maximum` −inf where nothing is finite.
    """

    rows: int
    nulls: int
    infinities: int
    below: int
    above: int
    minimum: float
    maximum: float

    @property
    def finite(self) -> int:
        """The rows that are neither null nor infinite."""
        return self.rows - self.nulls - self.infinities


def numeric_facts(column: Column, reference: NumericColumn) -> NumericFacts:
    """The facts of a column of numbers, held against the range of its profile."""
    nulls = infinities = below = above = 0
    minimum, maximum = math.inf, -math.inf
    for rows in chunks(len(column.values)):
        chunk = column.values[rows]
        low, high = chunk.min(), chunk.max()
        if not (np.isfinite(low) and np.isfinite(high)):  # NaN makes both NaN
            finite = np.isfinite(chunk)
            missing = int(np.count_nonzero(np.isnan(chunk)))
            nulls, infinities = nulls + missing, infinities + int((~finite).sum()) - missing
            chunk = chunk[finite]
            if not chunk.size:
                continue
            low, high = chunk.min(), chunk.max()
        if low < reference.minimum:
            below += int(np.count_nonzero(chunk < reference.minimum))
        if high > reference.maximum:
            above += int(np.count_nonzero(chunk > reference.maximum))
        minimum, maximum = min(minimum, float(low)), max(maximum, float(high))
    return NumericFacts(len(column.values), nulls, infinities, below, above, minimum, maximum)
