"""How far the associations of the data lie from those of the profile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import ndtri

from pytest_modelserve.monitoring.associations import MAX_ROWS, Associations
from pytest_modelserve.stats.correlation_change import FEWEST_PAIRS, POWERS, correlation_change, correlations_of
from pytest_modelserve.stats.kolmogorov import effective_rows

_FEWEST_ROWS = 2_000
_SPARE = 3.0
"""Rows read of the data, in rows with which unchanged pairs pass: three times as many also see a smaller change."""


@dataclass(frozen=True, slots=True)
class PairChange:
    """One pair of features: half the change of their normal-score correlation, 0 to 1, and what it is from and to.

    `unit` is the standard error of the distance times the square root of the effective rows.
    """

    name: str
    distance: float
    p_value: float
    high: float
    before: float
    after: float
    reference_rows: float
    current_rows: float
    unit: float

    @property
    def value(self) -> float:
        """The distance."""
        return self.distance

    @property
    def effective(self) -> float:
        """The rows that the comparison is worth."""
        return effective_rows(self.reference_rows, self.current_rows)

    @property
    def told(self) -> str:
        """What changed: "correlation 0.02 → 0.61 (+0.59)"."""
        return f"correlation {self.before:.2f} → {self.after:.2f} ({self.after - self.before:+.2f})"


def compare_associations(
    reference: Associations, current: Associations, *, reference_block: float = 1, current_block: float = 1
) -> tuple[PairChange, ...]:
    """Each pair of features of two different columns, of which both sides have the same.

    Of the rows that were read, `block` neighbouring ones, 1 at least, may depend on each other: n count as n/block.

    Left out are pairs of which one feature does not vary in the data: a column whose rows are all alike has no
    correlation, and its own comparison says all there is.
    """
    pairs = list(combinations(reference.features, 2))
    shape = (len(pairs), len(POWERS))
    then, now = (correlations_of(np.array(side.sums, dtype=np.float64).reshape(shape)) for side in (reference, current))
    compared = np.array([one.column != other.column for one, other in pairs], dtype=np.bool_)
    compared &= np.isfinite(now.estimates) | (now.rows < FEWEST_PAIRS)
    then, now = then.of(compared), now.of(compared)
    change = correlation_change(then, now, reference_block=reference_block, current_block=current_block)
    variances = np.fmax(np.fmax(then.variances, now.variances), 0.0)
    names = [f"{one.label} with {other.label}" for (one, other), kept in zip(pairs, compared, strict=True) if kept]
    columns = (
        np.abs(change.changes) / 2,
        change.p_values,
        np.minimum(change.highs / 2, 1.0),
        then.estimates,
        now.estimates,
        then.rows / reference_block,
        now.rows / current_block,
        np.sqrt(np.nan_to_num(variances, nan=1.0)) / 2,
    )
    return tuple(
        PairChange(name, *figures) for name, figures in zip(names, np.column_stack(columns).tolist(), strict=True)
    )


def rows_to_read(max_distance: float, reference: Associations, *, block: int) -> int:
    """How many rows of the data to read, from 2,000 (in blocks) to 50,000: plenty for this budget."""
    units = -float(ndtri(0.05 / max(len(reference.sums) // len(POWERS), 1))) + 1.645
    needed = _SPARE * (units / 2 / max_distance) ** 2 * block
    return math.ceil(min(max(needed, _FEWEST_ROWS * block), MAX_ROWS))
