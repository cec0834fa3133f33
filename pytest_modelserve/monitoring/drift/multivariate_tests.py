"""How far raw rows of the data lie from those that the profile kept, all columns at once: a classifier tells them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from pytest_modelserve.monitoring.column_profile import CategoricalColumn, ProfiledColumn
from pytest_modelserve.monitoring.correlations import MAX_ROWS, Associations
from pytest_modelserve.monitoring.sketch import Sketch, aligned, spread
from pytest_modelserve.stats.autocorrelation import centered_ranks
from pytest_modelserve.stats.two_sample_tests import (
    FEWEST_PAIRS,
    FOLDS,
    POWERS,
    correlation_change,
    correlations_of,
    distance_bound,
    effective_rows,
    feature_blocks,
    held_out_scores,
    permutation_p_value,
)

if TYPE_CHECKING:
    from pytest_modelserve.monitoring.drift.column_tests import Blocks
    from pytest_modelserve.monitoring.histogram import Floats

# Raw rows of two data sets as one table of numbers of like scale, which a classifier can read.


_CUT = 5.0
_HEAVY = 50.0
"""The kurtosis from which a column's ranks are read instead of its values: a standard deviation says little there."""
_FEWEST = 5
"""Rows of both data sets that a category, or null, needs for a column of its own."""


def design_of(values: Floats, categorical: NDArray[np.bool_]) -> Floats:
    """The table (n, features) of all rows (n, columns) of both data sets together, NaN null, of which `categorical`
    columns (columns,) hold codes.

    Numbers are standardised, or their normal scores where tails are heavy, nulls and infinities put at the median and
    the extremes and told by a column of their own; of categories each frequent one has a column. What does not vary is
    left out. Nothing here knows which data set a row is of, so that labels may be permuted afterwards.
    """
    features = [
        feature for column in range(values.shape[1]) for feature in _features(values[:, column], categorical[column])
    ]
    return np.clip(np.column_stack(features), -_CUT, _CUT) if features else np.zeros((len(values), 1))


def _features(values: Floats, categorical: bool) -> Iterator[Floats]:
    missing = np.isnan(values)
    if min(missing.sum(), (~missing).sum()) >= _FEWEST:
        yield _standard(missing.astype(np.float64))
    if missing.all():
        return
    if categorical:
        codes, counts = np.unique(values[~missing], return_counts=True)
        frequent = codes[counts >= _FEWEST]
        if len(codes) > 1:
            for code in frequent:
                yield _standard((values == code).astype(np.float64)) / math.sqrt(len(frequent))
        return
    finite = values[np.isfinite(values)]
    if not finite.size:
        return
    filled = np.clip(np.where(missing, np.median(finite), values), finite.min(), finite.max())
    if filled.min() == filled.max():
        return
    standard = _standard(filled)
    if np.mean(standard**4) > _HEAVY:
        ranks = centered_ranks(filled)
        standard = _standard(ndtri((ranks - ranks.min() + 0.5) / (np.ptp(ranks) + 1)))
    yield standard


def _standard(values: Floats) -> Floats:
    centred = values - values.mean()
    largest = np.abs(centred).max()
    scaled = centred / largest if largest else centred
    deviation = float(np.sqrt(np.mean(scaled**2)))
    standard: Floats = scaled / deviation if deviation else scaled
    return standard


FEWEST_ROWS = 4 * FOLDS
"""Of either data set: with fewer, there is nothing to fit."""
MOST_CURRENT = 4_000
_SEED = 20_171
_PERMUTATIONS = 999, 20_000


@dataclass(frozen=True, slots=True)
class ClassifierChange:
    """All columns at once: the distance of held-out scores, 0 to 1, its chance if nothing changed, and the rows read.

    `newest` are the places, among the current rows that were read, of those that look least like the profile's. Both
    numbers of rows are those read, at most one of each block.
    """

    distance: float
    p_value: float
    reference_rows: float
    current_rows: float
    newest: tuple[int, ...]
    name: str = "all columns together"

    @property
    def value(self) -> float:
        """The distance."""
        return self.distance

    @property
    def effective(self) -> float:
        """The rows that the comparison is worth."""
        return effective_rows(self.reference_rows, self.current_rows)

    @property
    def high(self) -> float:
        """The bound that the true distance of this classifier exceeds in fewer than 5 % of samples."""
        return distance_bound(self.distance, self.effective)


def compare_rows(
    reference: Sketch, current: Sketch, columns: Sequence[ProfiledColumn], *, blocks: Blocks, level: float
) -> ClassifierChange:
    """The classifier two-sample comparison of two sketches with these `columns`, times left out.

    The p-value is that of a kernel discriminant by permutation of rows, precise enough for `level`; the distance that
    of held-out scores of a like classifier. Of each block of dependent rows at most one row is read. With fewer than 20
    rows on either side nothing is known: distance 0, a chance of 1 and a bound of 1.
    """
    _, then, now = aligned(reference, current)
    # Blocks of one length in both, so that rows can change places.
    block = max(blocks.reference, blocks.current)
    then = then[spread(len(then), max(reference.seen // block, 1))]
    kept = spread(len(now), max(current.seen // block, 1))
    now = now[kept]
    if min(len(then), len(now)) < FEWEST_ROWS:
        return ClassifierChange(0.0, 1.0, 0.0, 0.0, ())
    compared = [index for index, column in enumerate(columns) if column.kind != "datetime"]
    categorical = np.array([isinstance(columns[index], CategoricalColumn) for index in compared])
    rows = design_of(np.concatenate((then, now))[:, compared], categorical)
    is_current = np.arange(len(then) + len(now)) >= len(then)
    rng = np.random.default_rng(_SEED)
    features = feature_blocks(rows, rng=rng)
    fewest, most = _PERMUTATIONS
    p_value = permutation_p_value(features, is_current, most=min(max(math.ceil(5 / level), fewest), most), rng=rng)
    found = held_out_scores(features, is_current, rng=rng)
    scores = found.scores[is_current]
    newest = kept[np.argsort(-scores, kind="stable")[:5]]
    return ClassifierChange(found.distance, p_value, len(then), len(now), tuple(newest.tolist()))


def rows_to_compare(kept: int) -> int:
    """How many current rows to read beside `kept` ones of the profile: twice as many, or as many of a large sketch."""
    return max(min(2 * kept, MOST_CURRENT), kept)


# How far the associations of the data lie from those of the profile.


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
