"""Profiles of single columns: counts between edges or of categories, and moments."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from pytest_modelserve.errors import UsageError
from pytest_modelserve.monitoring.columns import Number
from pytest_modelserve.monitoring.dependence import Dependence
from pytest_modelserve.monitoring.histogram import Exact, added, moments

MAX_CATEGORIES = 100
MAX_CATEGORY_LENGTH = 100
"""Beyond either, a column is text rather than categories: 100 names of 100 letters are 10 KB of the file."""
HASH_BUCKETS = 64
"""Buckets that the categories of such a column are counted in: the rate of one bucket is then known to 1 or 2 %."""

AlignedCounts = tuple[tuple[str | int, ...], tuple[int, ...], tuple[int, ...]]
"""Categories or numbers of hash buckets, their counts in the profile, and their counts in the data."""


@dataclass(frozen=True, slots=True)
class NumericColumn:
    """Profile of a numeric column: counts between edges, and moments.

    There are one more `counts` than `edges`; a value on an edge lies above it. `rows` are all rows; `nulls` are in no
    bin. Infinities are in the outermost bins; minimum, maximum, mean and std (of the population) ignore them, and are 0
    if no value is finite. `dependence` is that of neighboring rows.

    `sums` are the exact sums of the finite values and of their squares, so that profiles merge to the same mean and std
    in any order; None if an engine added them up, which rounds. `below` and `above` are the rows outside the finite
    range of the profile that this one was made `like`. `source` is the text column whose lengths these are, or the
    embedding that this is one number of. `backward` counts the times earlier than the row before; None for other kinds,
    and if the order of the rows is not known.
    """

    name: str
    kind: Number
    rows: int
    nulls: int
    negative_infinities: int
    positive_infinities: int
    minimum: float
    maximum: float
    mean: float
    std: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    dependence: Dependence
    below: int = 0
    above: int = 0
    sums: Exact | None = None
    source: str | None = None
    backward: int | None = None

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip(self.edges, self.edges[1:], strict=False))
        if not rising or len(self.counts) != len(self.edges) + 1 or sum(self.counts) != self.rows - self.nulls:
            raise UsageError(
                f"column {self.name!r} needs rising edges, one bin more than edges, and counts that add up to its rows"
            )

    @property
    def known(self) -> int:
        """The rows that are not null."""
        return self.rows - self.nulls

    @property
    def finite(self) -> int:
        """The rows that are neither null nor infinite."""
        return self.known - self.negative_infinities - self.positive_infinities

    @property
    def constant(self) -> bool:
        """Whether all non-null values are equal."""
        return 0 < self.finite == self.known and self.minimum == self.maximum

    @property
    def median(self) -> float:
        """The estimated median: interpolated between the edges of its bin, and rounded for integers."""
        cumulated = list(accumulate(self.counts))
        middle = cumulated[-1] / 2
        index = bisect_left(cumulated, middle)
        low = self.edges[index - 1] if index else self.minimum
        high = self.edges[index] if index < len(self.edges) else self.maximum
        low, high = max(low, self.minimum), min(high, self.maximum)
        below = cumulated[index] - self.counts[index]
        median = low + (high - low) * (middle - below) / self.counts[index]
        if self.kind in ("integer", "boolean"):
            return min(max(round(median), math.ceil(low)), math.floor(high))
        return median

    def merged(self, other: NumericColumn) -> NumericColumn:
        """Return the profile of both columns' rows, with exactly the counts of profiling them at once.

        Their dependence is merged. Without `sums`, mean and std agree to rounding (Chan, Golub and LeVeque
        1979).
        """
        if self.edges != other.edges:
            raise UsageError(
                f"the profiles count column {self.name!r} between different edges: make one of them with like=the other"
            )
        sums = added(self.sums, other.sums) if self.sums and other.sums else None
        finite = [column for column in (self, other) if column.finite] or [self]
        mean, std = _merged_moments(self, other) if sums is None else moments(sums, self.finite + other.finite)
        return NumericColumn(
            name=self.name,
            kind=_wider(self, other),
            rows=self.rows + other.rows,
            nulls=self.nulls + other.nulls,
            negative_infinities=self.negative_infinities + other.negative_infinities,
            positive_infinities=self.positive_infinities + other.positive_infinities,
            minimum=min(column.minimum for column in finite),
            maximum=max(column.maximum for column in finite),
            mean=mean,
            std=std,
            edges=self.edges,
            counts=tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
            dependence=self.dependence.merged(other.dependence),
            below=self.below + other.below,
            above=self.above + other.above,
            sums=sums,
            source=self.source,
            backward=None if self.backward is None or other.backward is None else self.backward + other.backward,
        )


@dataclass(frozen=True, slots=True)
class CategoricalColumn:
    """Profile of a text column: counts of categories in alphabetical order, or of hash buckets.

    With more than 100 categories, or one longer than 100 letters, no name is stored: `categories` is empty, and
    `counts` are those of 64 buckets of a hash of the name. Storing only the most frequent names instead would
    overestimate their rates, so that every later window would seem to drift.
    """

    name: str
    rows: int
    nulls: int
    categories: tuple[str, ...]
    counts: tuple[int, ...]
    dependence: Dependence
    kind: Literal["category"] = "category"

    def __post_init__(self) -> None:
        if len(self.counts) != (len(self.categories) or HASH_BUCKETS) or sum(self.counts) != self.rows - self.nulls:
            raise UsageError(
                f"column {self.name!r} needs a count for each category, and counts that add up to its rows"
            )

    @classmethod
    def of(cls, name: str, counts: Mapping[str, int], *, nulls: int, dependence: Dependence) -> CategoricalColumn:
        """Return the profile of these `counts`: by category if they are few and short, else by hash bucket."""
        rows = sum(counts.values()) + nulls
        if len(counts) <= MAX_CATEGORIES and all(len(category) <= MAX_CATEGORY_LENGTH for category in counts):
            named = sorted(counts.items())
            return cls(name, rows, nulls, tuple(c for c, _ in named), tuple(n for _, n in named), dependence)
        return cls(name, rows, nulls, (), _in_buckets(counts.items()), dependence)

    @property
    def source(self) -> None:
        """None: columns derived from others are numeric."""
        return None

    @property
    def known(self) -> int:
        """The rows that are not null."""
        return self.rows - self.nulls

    @property
    def hashed(self) -> bool:
        """Whether the counts are those of hash buckets."""
        return not self.categories

    def align(self, counts: Mapping[str, int]) -> AlignedCounts:
        """Return categories or bucket numbers, with their counts in this profile and in `counts`.

        New categories follow those of the profile, in alphabetical order.
        """
        if self.hashed:
            return tuple(range(HASH_BUCKETS)), self.counts, _in_buckets(counts.items())
        new = tuple(sorted(counts.keys() - set(self.categories)))
        names = (*self.categories, *new)
        return names, (*self.counts, *[0] * len(new)), tuple(counts.get(name, 0) for name in names)

    def merged(self, other: CategoricalColumn) -> CategoricalColumn:
        """Return the profile of both columns' rows, exactly as if they had been counted at once."""
        rows, nulls = self.rows + other.rows, self.nulls + other.nulls
        dependence = self.dependence.merged(other.dependence)
        if not self.known or not other.known:
            return replace(self if self.known else other, rows=rows, nulls=nulls, dependence=dependence)
        if self.hashed or other.hashed:
            counts = tuple(a + b for a, b in zip(hash_bucket_counts(self), hash_bucket_counts(other), strict=True))
            return CategoricalColumn(self.name, rows, nulls, (), counts, dependence)
        named = Counter(dict(zip(self.categories, self.counts, strict=True)))
        named.update(dict(zip(other.categories, other.counts, strict=True)))
        return CategoricalColumn.of(self.name, named, nulls=nulls, dependence=dependence)


ProfiledColumn = NumericColumn | CategoricalColumn


def hash_bucket(category: str) -> int:
    """Return the hash bucket, 0 to 63, of a category: the same on every machine and in every release."""
    return hashlib.blake2b(category.encode(errors="surrogatepass"), digest_size=8).digest()[0] % HASH_BUCKETS


def hash_bucket_counts(column: CategoricalColumn) -> tuple[int, ...]:
    """Return the counts of the 64 hash buckets of a column."""
    return column.counts if column.hashed else _in_buckets(zip(column.categories, column.counts, strict=True))


def _in_buckets(counts: Iterable[tuple[str, int]]) -> tuple[int, ...]:
    buckets = [0] * HASH_BUCKETS
    for category, rows in counts:
        buckets[hash_bucket(category)] += rows
    return tuple(buckets)


def _merged_moments(one: NumericColumn, other: NumericColumn) -> tuple[float, float]:
    n, m = one.finite, other.finite
    if not n or not m:
        return (one.mean, one.std) if n else (other.mean, other.std)
    weight, difference = m / (n + m), other.mean - one.mean
    between = math.sqrt(weight * (1 - weight)) * difference
    std = math.hypot(math.sqrt(1 - weight) * one.std, math.sqrt(weight) * other.std, between)
    return one.mean + weight * difference, std


def _wider(one: NumericColumn, other: NumericColumn) -> Number:
    if not one.known or not other.known:  # a side that is all null has no kind of its own
        return one.kind if one.known else other.kind
    if (one.kind == "datetime") != (other.kind == "datetime"):
        raise UsageError(f"column {one.name!r} has kind {one.kind} in one profile and {other.kind} in the other")
    return max(one.kind, other.kind, key=("boolean", "integer", "float", "datetime").index)
