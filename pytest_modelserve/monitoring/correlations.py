"""How the columns of a data set go together: sums over pairs of columns that tell normal-score correlations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from pytest_modelserve.errors import UsageError
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.histogram import Floats, Integers, bins_of
from pytest_modelserve.monitoring.sketch import spread
from pytest_modelserve.stats.two_sample_tests import POWERS

if TYPE_CHECKING:
    from pytest_modelserve.monitoring.columns import Column

MAX_FEATURES = 64
"""2,016 pairs; the sums of each take about 120 bytes of the file."""
CUT = 20
"""The largest score, two standard deviations: beyond, single rows that are extreme everywhere would decide."""
MAX_ROWS = 50_000
"""Rows read of one data set, spread evenly over it: a correlation is then known to ±0.009."""


@dataclass(frozen=True, slots=True)
class Feature:
    """What of a row is scored: the bin of a number, `scores` one a bin, or whether a row is of one `category`, 1 or 0.

    The scores of bins are ten times the normal quantile of their middle rank in the profile, rounded, −20 to 20.
    """

    column: str
    category: str | None
    scores: tuple[int, ...]

    @property
    def label(self) -> str:
        """What messages call it."""
        return repr(self.column) if self.category is None else f"{self.column!r} = {self.category!r}"


@dataclass(frozen=True, slots=True)
class Associations:
    """Sums of products of the scores of each pair of features, over `rows` rows; a row with a null is in no pair of it.

    `sums` are whole numbers, fifteen a pair in the order of POWERS, the pairs in that of itertools.combinations. Those
    of several data sets add up exactly where their features are the same. No row can be told from them.
    """

    features: tuple[Feature, ...]
    rows: int
    sums: tuple[int, ...]

    def __post_init__(self) -> None:
        count = len(self.features)
        if len(self.sums) != count * (count - 1) // 2 * len(POWERS):
            raise UsageError("associations have fifteen sums for each pair of features")

    def merged(self, other: Associations) -> Associations:
        """Both data sets' rows together, exactly; UsageError for other features."""
        if self.features != other.features:
            raise UsageError("the profiles score their columns differently: make one of them with like=the other")
        sums = tuple(a + b for a, b in zip(self.sums, other.sums, strict=True))
        return Associations(self.features, self.rows + other.rows, sums)

    def content(self) -> dict[str, Any]:
        """All of it as JSON builtins; of scores, which rise, how many bins have each from −20 to 20."""
        features = [[feature.column, feature.category, _lengths(feature.scores)] for feature in self.features]
        return {"features": features, "rows": self.rows, "sums": list(self.sums)}

    @classmethod
    def of_content(cls, data: Mapping[str, Any]) -> Associations:
        """What `content` was made of."""
        features = tuple(Feature(column, category, _scores(lengths)) for column, category, lengths in data["features"])
        return cls(features, data["rows"], tuple(data["sums"]))


def _lengths(scores: tuple[int, ...]) -> list[int]:
    return [scores.count(score) for score in range(-CUT, CUT + 1)] if scores else []


def _scores(lengths: Sequence[int]) -> tuple[int, ...]:
    return tuple(score for score, length in enumerate(lengths, start=-CUT) for _ in range(length))


# From rows to the sums of their associations: which features of a row are scored, how, and in how many rows.


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
