"""How the columns of a data set go together: sums over pairs of columns that tell normal-score correlations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.correlation_change import POWERS

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
