"""Associations of columns: sums over pairs of features, for normal-score correlations."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.special import ndtri

from pytest_modelserve.errors import UsageError
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.columns import Column
from pytest_modelserve.monitoring.histogram import Floats, Integers, bins_of
from pytest_modelserve.monitoring.sketch import spread
from pytest_modelserve.settings import is_redacted
from pytest_modelserve.stats.two_sample_tests import POWERS

MAX_FEATURES = 64
"""2,016 pairs; the sums of each take about 120 bytes of the file."""
MAX_SCORE = 20
"""The largest score, two standard deviations: with larger ones, a few extreme rows would decide."""
MAX_ROWS = 50_000
"""Rows read of one data set, spread evenly over it: they give a correlation to ±0.009."""


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature of a row: the score of a number's bin, or whether the row has one `category` (1 or 0).

    The score of a bin is ten times the normal quantile of its middle rank in the profile, rounded, −20 to 20.
    """

    column: str
    category: str | None
    scores: tuple[int, ...]

    def label(self, place: int) -> str:
        """Return the name in messages, which has the feature's place instead of a redacted category."""
        if self.category is None:
            return repr(self.column)
        return f"{self.column!r} = {f'feature {place}' if is_redacted(self.column) else repr(self.category)}"


@dataclass(frozen=True, slots=True)
class Associations:
    """Sums of products of scores for each pair of features, over `rows` rows; a null leaves its row out of a pair.

    `sums` are integers: fifteen for each pair in the order of POWERS, with pairs in the order of
    itertools.combinations. Sums of several data sets with the same features add up exactly. They reveal no row.
    """

    features: tuple[Feature, ...]
    rows: int
    sums: tuple[int, ...]

    def __post_init__(self) -> None:
        count = len(self.features)
        if len(self.sums) != count * (count - 1) // 2 * len(POWERS):
            raise UsageError("sums must have fifteen entries for each pair of features")

    def merged(self, other: Associations) -> Associations:
        """Add the sums of both data sets, exactly; UsageError for other features."""
        if self.features != other.features:
            raise UsageError("the profiles have different features: make one of them with like=the other")
        sums = tuple(a + b for a, b in zip(self.sums, other.sums, strict=True))
        return Associations(self.features, self.rows + other.rows, sums)

    def of_columns(self, names: Collection[str]) -> Associations | None:
        """Return the associations of the features of these columns; None if there is no pair of columns."""
        kept = [index for index, feature in enumerate(self.features) if feature.column in names]
        if len({self.features[index].column for index in kept}) < 2:
            return None
        pairs = list(combinations(range(len(self.features)), 2))
        places = [place for place, (a, b) in enumerate(pairs) if a in kept and b in kept]
        sums = np.array(self.sums, dtype=object).reshape(len(pairs), len(POWERS))[places]
        return Associations(tuple(self.features[index] for index in kept), self.rows, tuple(sums.ravel().tolist()))

    def content(self) -> dict[str, Any]:
        """Return all fields as JSON builtins; rising scores as the number of bins with each score from −20 to 20."""
        features = [[feature.column, feature.category, _lengths(feature.scores)] for feature in self.features]
        return {"features": features, "rows": self.rows, "sums": list(self.sums)}

    @classmethod
    def of_content(cls, data: Mapping[str, Any]) -> Associations:
        """Return the associations that `content` was made of."""
        features = tuple(Feature(column, category, _scores(lengths)) for column, category, lengths in data["features"])
        return cls(features, data["rows"], tuple(data["sums"]))


def _lengths(scores: tuple[int, ...]) -> list[int]:
    return [scores.count(score) for score in range(-MAX_SCORE, MAX_SCORE + 1)] if scores else []


def _scores(lengths: Sequence[int]) -> tuple[int, ...]:
    return tuple(score for score, length in enumerate(lengths, start=-MAX_SCORE) for _ in range(length))


_SCALE = 10
_CHUNK = 8_192
_MAX_RATE = 0.95
"""A feature with 95 % equal rows is left out, because a few rows would decide its correlation."""
_CATEGORIES = 4
"""The most frequent categories of each column, each a feature."""


def choose_features(columns: Sequence[ProfiledColumn]) -> tuple[Feature, ...]:
    """Return at most 64 features of these columns: numbers first, then frequent categories; () for fewer than two.

    Times are left out, because they always advance.
    """
    numbers = [
        feature
        for column in columns
        if isinstance(column, NumericColumn) and column.kind != "datetime"
        for feature in _numeric_features(column)
    ]
    categories = [
        feature for column in columns if isinstance(column, CategoricalColumn) for feature in _category_features(column)
    ]
    chosen = tuple([*numbers, *categories][:MAX_FEATURES])
    return chosen if len({feature.column for feature in chosen}) > 1 else ()


def _numeric_features(column: NumericColumn) -> Iterator[Feature]:
    counts = np.array(column.counts, dtype=np.float64)
    total = counts.sum()
    if not total or counts.max() > _MAX_RATE * total:
        return
    middle = np.cumsum(counts) - counts / 2
    # An empty bin at an end has rank 0 or n, whose quantile is infinite: it is clipped like any other.
    scores = np.clip(np.round(_SCALE * ndtri(middle / total)), -MAX_SCORE, MAX_SCORE).astype(np.int64)
    if scores.min() < scores.max():
        yield Feature(column.name, None, tuple(scores.tolist()))


def _category_features(column: CategoricalColumn) -> Iterator[Feature]:
    if column.hashed or not column.known:
        return
    ranked = sorted(zip(column.counts, column.categories, strict=True), reverse=True)
    frequent = [name for count, name in ranked if 1 - _MAX_RATE <= count / column.known <= _MAX_RATE][:_CATEGORIES]
    for name in frequent[:1] if len(ranked) == 2 else frequent:  # two categories are complements
        yield Feature(column.name, name, ())


def associate(
    columns: Sequence[Column],
    profiled: Sequence[ProfiledColumn],
    features: tuple[Feature, ...],
    *,
    at_most: int = MAX_ROWS,
) -> Associations:
    """Return the associations of `features` in `at_most` rows, spread evenly over the rows in memory.

    `profiled` are the profiles of the columns, in the same order, which give the bins.
    """
    rows = spread(len(columns[0].values), at_most)
    by_name = {column.name: (column, reference) for column, reference in zip(columns, profiled, strict=True)}
    scores = np.empty((len(rows), len(features)), order="F")  # written column by column
    known = np.empty_like(scores)
    for index, feature in enumerate(features):
        scores[:, index], known[:, index] = _scored(*by_name[feature.column], feature, rows)
    return Associations(features, len(rows), tuple(pair_sums(scores, known).ravel().tolist()))


def _scored(column: Column, reference: ProfiledColumn, feature: Feature, rows: Integers) -> tuple[Floats, Floats]:
    """Return the score of each row, and 1 if it is known; else 0, with an arbitrary score."""
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
    """Return the sums (pairs, 15) of products of powers of each two columns of `scores` (rows, features).

    Only rows with `known` 1 count. The sums are exact: scores are integers up to 20, so that no sum over 50,000 rows
    comes near 2⁵³, up to which doubles hold integers.
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
