"""Drift tests of several columns at once: correlations of pairs, and a classifier two-sample test of whole rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from pytest_modelserve.monitoring.column_profile import CategoricalColumn, ProfiledColumn
from pytest_modelserve.monitoring.correlations import MAX_ROWS, Associations
from pytest_modelserve.monitoring.decision import Blocks
from pytest_modelserve.monitoring.drift.column_tests import DriftTest
from pytest_modelserve.monitoring.histogram import Floats
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

_MIN_ROWS_READ = 2_000
_SPARE = 3.0
"""Rows read, in multiples of those with which unchanged pairs pass: three times as many show smaller changes."""


def compare_associations(
    reference: Associations,
    current: Associations,
    *,
    reference_block: float | Floats = 1,
    current_block: float | Floats = 1,
) -> tuple[DriftTest, ...]:
    """Compare the normal-score correlation of each pair of features of different columns; the distance is half of it.

    n rows count as n/block, with blocks of at least 1: one for all features, or one for each (features,), of which a
    pair has the larger one. Pairs with a feature that does not vary in the data are left out:
    they have no correlation, and the test of their column finds the change.
    """
    pairs = list(combinations(reference.features, 2))
    shape = (len(pairs), len(POWERS))
    before, after = (
        correlations_of(np.array(side.sums, dtype=np.float64).reshape(shape)) for side in (reference, current)
    )
    compared = np.array([one.column != other.column for one, other in pairs], dtype=np.bool_)
    compared &= np.isfinite(after.estimates) | (after.rows < FEWEST_PAIRS)
    before, after = before.of(compared), after.of(compared)
    reference_block, current_block = (
        _of_pairs(block, len(reference.features))[compared] for block in (reference_block, current_block)
    )
    change = correlation_change(before, after, reference_block=reference_block, current_block=current_block)
    variances = np.fmax(np.fmax(before.variances, after.variances), 0.0)
    labels = [feature.label(place) for place, feature in enumerate(reference.features, start=1)]
    names = [" with ".join(both) for both, used in zip(combinations(labels, 2), compared, strict=True) if used]
    figures = (
        np.abs(change.changes) / 2,
        change.p_values,
        np.minimum(change.highs / 2, 1.0),
        before.rows / reference_block,
        after.rows / current_block,
        before.estimates,
        after.estimates,
        np.sqrt(np.nan_to_num(variances, nan=1.0)) / 2,
    )
    return tuple(
        DriftTest(name, "pair", distance, p, upper, n, m, f"correlation {r0:.2f} → {r1:.2f} ({r1 - r0:+.2f})", unit)
        for name, (distance, p, upper, n, m, r0, r1, unit) in zip(names, np.column_stack(figures).tolist(), strict=True)
    )


def _of_pairs(blocks: float | Floats, features: int) -> Floats:
    """Return the larger block of each pair of features."""
    of_features = np.broadcast_to(np.asarray(blocks, dtype=np.float64), (features,))
    first, second = np.triu_indices(features, 1)
    return np.maximum(of_features[first], of_features[second])


def pair_rows_to_read(max_distance: float, reference: Associations, *, block: float) -> int:
    """Return the number of rows of the data to read: 2,000 blocks to 50,000 rows, depending on `max_distance`."""
    units = -float(ndtri(0.05 / max(len(reference.sums) // len(POWERS), 1))) + 1.645
    needed = _SPARE * (units / 2 / max_distance) ** 2 * block
    return math.ceil(min(max(needed, _MIN_ROWS_READ * block), MAX_ROWS))


MIN_ROWS = 4 * FOLDS
"""Rows of either data set: with fewer, there is nothing to fit."""
MAX_CURRENT_ROWS = 4_000
_SEED = 20_171
_PERMUTATIONS = 999, 20_000


def compare_rows(
    reference: Sketch, current: Sketch, columns: Sequence[ProfiledColumn], *, blocks: Blocks, level: float
) -> DriftTest:
    """Compare whole rows of two sketches with these `columns` by a classifier two-sample test, without times.

    The p-value is that of a kernel discriminant by permutation of rows, precise enough for `level`. The distance is the
    Kolmogorov-Smirnov distance of held-out scores of the same kind of classifier. The rows of a block keep together in
    permutations and folds, and count as one. With fewer than 20 rows, or 5 blocks of several, on either side the
    distance is 0, and the p-value and the upper bound are 1.

    `outliers` are the five sketch rows of `current` that are least similar to the reference.
    """
    _, before, after = aligned(reference, current)
    # Equal blocks with equally many rows of each sketch, so that those of both data sets are exchangeable.
    block = max(blocks.reference, blocks.current)
    sides = ((len(before), reference.seen), (len(after), current.seen))
    group_rows = max(min(math.floor(rows * block / seen) for rows, seen in sides), 1)
    groups = [min(max(int(seen // block), 1), rows // group_rows) for rows, seen in sides]
    if min(groups) < (MIN_ROWS if group_rows == 1 else FOLDS):
        return _rows_test(0.0, 1.0, 0, 0, ())
    chosen, positions = (spread(rows, count * group_rows) for (rows, _), count in zip(sides, groups, strict=True))
    before, after = before[chosen], after[positions]
    compared = [index for index, column in enumerate(columns) if column.kind != "datetime"]
    categorical = np.array([isinstance(columns[index], CategoricalColumn) for index in compared])
    rows = feature_matrix(np.concatenate((before, after))[:, compared], categorical)
    is_current = np.arange(len(before) + len(after)) >= len(before)
    rng = np.random.default_rng(_SEED)
    features = feature_blocks(rows, rng=rng)
    fewest, most = _PERMUTATIONS
    p_value = permutation_p_value(
        features,
        is_current,
        most=min(max(math.ceil(5 / level), fewest), most),
        rng=rng,
        group_rows=group_rows,
    )
    scored = held_out_scores(features, is_current, rng=rng, group_rows=group_rows)
    outliers = positions[np.argsort(-scored.scores[is_current], kind="stable")[:5]]
    return _rows_test(scored.distance, p_value, groups[0], groups[1], tuple(outliers.tolist()))


def _rows_test(distance: float, p_value: float, before: float, after: float, outliers: tuple[int, ...]) -> DriftTest:
    upper = distance_bound(distance, effective_rows(before, after))
    return DriftTest("whole rows", "rows", distance, p_value, upper, float(before), float(after), outliers=outliers)


def sketch_rows_to_read(sketch_rows: int) -> int:
    """Return the number of rows of the data to compare with a sketch: twice its rows, or as many if it is large."""
    return max(min(2 * sketch_rows, MAX_CURRENT_ROWS), sketch_rows)


_MAX_DEVIATIONS = 5.0
_HEAVY_KURTOSIS = 50.0
"""From this kurtosis on, ranks are used instead of values: the standard deviation then says little about most rows."""
_MIN_CATEGORY_ROWS = 5
"""Rows of both data sets that a category, or null, needs for a feature of its own."""


def feature_matrix(values: Floats, categorical: NDArray[np.bool_]) -> Floats:
    """Return standardized features (n, features) of all rows (n, columns) of both data sets; NaN is null.

    Numbers are standardized, or normal scores if their tails are heavy. Nulls are put at the median and infinities at
    the extremes; nulls also get an indicator. Each frequent category has an indicator. Constant features are left out.
    The features do not depend on which data set a row belongs to, as a permutation test requires.
    """
    features = [
        feature for column in range(values.shape[1]) for feature in _features(values[:, column], categorical[column])
    ]
    return (
        np.clip(np.column_stack(features), -_MAX_DEVIATIONS, _MAX_DEVIATIONS)
        if features
        else np.zeros((len(values), 1))
    )


def _features(values: Floats, categorical: bool) -> Iterator[Floats]:
    missing = np.isnan(values)
    if min(missing.sum(), (~missing).sum()) >= _MIN_CATEGORY_ROWS:
        yield _standardized(missing.astype(np.float64))
    if missing.all():
        return
    if categorical:
        codes, counts = np.unique(values[~missing], return_counts=True)
        frequent = codes[counts >= _MIN_CATEGORY_ROWS]
        if len(codes) > 1:
            for code in frequent:
                yield _standardized((values == code).astype(np.float64)) / math.sqrt(len(frequent))
        return
    finite = values[np.isfinite(values)]
    if not finite.size:
        return
    filled = np.clip(np.where(missing, np.median(finite), values), finite.min(), finite.max())
    if filled.min() == filled.max():
        return
    standardized = _standardized(filled)
    if np.mean(standardized**4) > _HEAVY_KURTOSIS:
        ranks = centered_ranks(filled)
        standardized = _standardized(ndtri((ranks - ranks.min() + 0.5) / (np.ptp(ranks) + 1)))
    yield standardized


def _standardized(values: Floats) -> Floats:
    centered = values - values.mean()
    largest = np.abs(centered).max()
    scaled = centered / largest if largest else centered
    deviation = float(np.sqrt(np.mean(scaled**2)))
    standardized: Floats = scaled / deviation if deviation else scaled
    return standardized
