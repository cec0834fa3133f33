"""From rows to the sums of their associations: which features of a row are scored, how, and in how many rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.special import ndtri

from pytest_modelserve.monitoring.associations import CUT, MAX_FEATURES, MAX_ROWS, Associations, Feature
from pytest_modelserve.monitoring.binning import Floats, Integers, bins_of
from pytest_modelserve.monitoring.columns import Column
from pytest_modelserve.monitoring.profiled import CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.sketch import spread
from pytest_modelserve.stats.correlation_change import POWERS

_SCALE = 10
_CHUNK = 8_192
_MOST = 0.95
"""A feature whose rows are all but 5 % alike has a correlation that a handful of rows decides: it is left out."""
_CATEGORIES = 4
"""Of each column the most frequent ones are scored, each by itself."""


def choose_features(columns: Sequence[ProfiledColumn]) -> tuple[Feature, ...]:
    """What is scored of rows with these columns, 64 features at most: numbers first, then the frequent categories.

    Times are left out: they always move on.
    None where fewer than two columns have any.
    """
    numbers = [
        feature
        for column in columns
        if isinstance(column, NumericColumn) and column.kind != "datetime"
        for feature in _of_numbers(column)
    ]
    categories = [
        feature for column in columns if isinstance(column, CategoricalColumn) for feature in _of_categories(column)
    ]
    chosen = tuple([*numbers, *categories][:MAX_FEATURES])
    return chosen if len({feature.column for feature in chosen}) > 1 else ()


def _of_numbers(column: NumericColumn) -> Iterator[Feature]:
    counts = np.array(column.counts, dtype=np.float64)
    total = counts.sum()
    if not total or counts.max() > _MOST * total:
        return
    middle = np.cumsum(counts) - counts / 2
    # An empty bin at an end has rank 0 or n, whose quantile is infinite: it is cut like any other.
    scores = np.clip(np.round(_SCALE * ndtri(middle / total)), -CUT, CUT).astype(np.int64)
    if scores.min() < scores.max():
        yield Feature(column.name, None, tuple(scores.tolist()))


def _of_categories(column: CategoricalColumn) -> Iterator[Feature]:
    if column.pooled or not column.known:
        return
    ranked = sorted(zip(column.counts, column.categories, strict=True), reverse=True)
    frequent = [name for count, name in ranked if 1 - _MOST <= count / column.known <= _MOST][:_CATEGORIES]
    for name in frequent[:1] if len(ranked) == 2 else frequent:  # of two, one is the other's complement
        yield Feature(column.name, name, ())


def associate(
    columns: Sequence[Column],
    profiled: Sequence[ProfiledColumn],
    features: tuple[Feature, ...],
    *,
    at_most: int = MAX_ROWS,
) -> Associations:
    """The associations of these features in rows in memory, in at most so many rows spread evenly over them.

    `profiled` are the profiles of the columns, in the same order, whose bins are scored.
    """
    rows = spread(len(columns[0].values), at_most)
    by_name = {column.name: (column, reference) for column, reference in zip(columns, profiled, strict=True)}
    scores = np.empty((len(rows), len(features)), order="F")  # written column by column
    known = np.empty_like(scores)
    for index, feature in enumerate(features):
        scores[:, index], known[:, index] = _scored(*by_name[feature.column], feature, rows)
    return Associations(features, len(rows), tuple(pair_sums(scores, known).ravel().tolist()))


def _scored(column: Column, reference: ProfiledColumn, feature: Feature, rows: Integers) -> tuple[Floats, Floats]:
    """The score of each row, and 1 where it is known; 0 where it is not, and any score."""
    values = column.values[rows]
    if column.kind is None:
        return np.zeros(len(rows)), np.zeros(len(rows))
    if isinstance(reference, CategoricalColumn):
        of_text = values.tolist()
        known = np.array([value is not None for value in of_text], dtype=np.float64)
        return np.array([value == feature.category for value in of_text], dtype=np.float64), known
    values = values.astype(np.float64)
    missing = np.isnan(values)
    values[missing] = 0.0
    scores = np.array(feature.scores, dtype=np.float64)[bins_of(values, reference.edges)]
    return scores, (~missing).astype(np.float64)


def pair_sums(scores: Floats, known: Floats) -> Integers:
    """The sums (pairs, 15) of products of powers of each two columns of `scores` (rows, features), which are whole
    numbers up to 20, of the rows where `known` is 1 and not 0.

    Exact: no sum of 50,000 rows comes near 2⁵³, up to which doubles hold whole numbers.
    """
    sums = np.zeros((scores.shape[1] * (scores.shape[1] - 1) // 2, len(POWERS)), dtype=np.int64)
    for start in range(0, len(scores), _CHUNK):
        sums += _sums_of(scores[start : start + _CHUNK], known[start : start + _CHUNK])
    return sums


def _sums_of(scores: Floats, known: Floats) -> Integers:
    first, second = np.triu_indices(scores.shape[1], 1)
    powers = [known]
    for _ in range(4):
        powers.append(powers[-1] * scores)
    sums = np.empty((len(first), len(POWERS)), dtype=np.int64)
    for place, (a, b) in enumerate(POWERS):
        if a >= b:
            products = powers[a].T @ powers[b]
            sums[:, place] = products[first, second]
            if a > b:
                sums[:, POWERS.index((b, a))] = products[second, first]
    return sums
