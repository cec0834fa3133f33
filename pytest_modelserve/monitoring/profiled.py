"""What is kept of one column to hold later ones against: counts and a few sums, and no row."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.autocorrelation import LagOne

MAX_CATEGORIES = 100
MAX_CATEGORY_LENGTH = 100
"""Beyond either, a column is text rather than categories: 100 names of 100 letters are 10 KB of the file."""
POOLS = 64
"""Pools that the categories of such a column are counted in: a share of one pool is then still told to 1 or 2 %."""


@dataclass(frozen=True, slots=True)
class NumericColumn:
    """A column of numbers: how many of them lie in each bin, and what they are like.

    `counts` has one bin more than there are `edges`; a value on an edge lies above it. Infinities are counted in the
    outermost bins and told beside them; minimum, maximum, mean and std (of the population) leave them out. `rows` are
    all rows, of which `nulls` are in no bin. `lag` is the rank autocorrelation of neighbouring rows.
    """

    name: str
    kind: Literal["float", "integer", "boolean"]
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
    lag: LagOne

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip(self.edges, self.edges[1:], strict=False))
        if not rising or len(self.counts) != len(self.edges) + 1 or sum(self.counts) != self.rows - self.nulls:
            raise UsageError(f"column {self.name!r} has no rising edges with one bin more, or loses rows")

    @property
    def known(self) -> int:
        """The rows that are not null."""
        return self.rows - self.nulls

    @property
    def constant(self) -> bool:
        """Whether all known values are the same."""
        return self.minimum == self.maximum and not self.negative_infinities and not self.positive_infinities

    def merged(self, other: NumericColumn) -> NumericColumn:
        """Both columns' rows together: counts exactly, mean and std to rounding (Chan, Golub and LeVeque 1979)."""
        if self.edges != other.edges:
            raise UsageError(
                f"the profiles count column {self.name!r} between different edges: make one of them with like=the other"
            )
        n, m = (column.known - column.negative_infinities - column.positive_infinities for column in (self, other))
        share, apart = m / (n + m), other.mean - self.mean
        between = math.sqrt(share * (1 - share)) * apart
        return NumericColumn(
            name=self.name,
            kind=_wider(self.kind, other.kind),
            rows=self.rows + other.rows,
            nulls=self.nulls + other.nulls,
            negative_infinities=self.negative_infinities + other.negative_infinities,
            positive_infinities=self.positive_infinities + other.positive_infinities,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            mean=self.mean + share * apart,
            std=math.hypot(math.sqrt(1 - share) * self.std, math.sqrt(share) * other.std, between),
            edges=self.edges,
            counts=tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
            lag=_joined(self.lag, other.lag),
        )


@dataclass(frozen=True, slots=True)
class CategoricalColumn:
    """A column of categories: how many rows each has.

    With more than 100 categories, or one longer than 100 letters, no name is kept: `categories` is empty and `counts`
    are those of 64 pools, into which a hash of the name sorts every category. Keeping the most frequent ones instead
    would make these look more frequent than they are, and every later window drift.
    """

    name: str
    rows: int
    nulls: int
    categories: tuple[str, ...]
    counts: tuple[int, ...]
    lag: LagOne
    kind: Literal["category"] = "category"

    def __post_init__(self) -> None:
        if len(self.counts) != (len(self.categories) or POOLS) or sum(self.counts) != self.rows - self.nulls:
            raise UsageError(f"column {self.name!r} has no count for each category, or loses rows")

    @classmethod
    def of(cls, name: str, counts: Mapping[str, int], *, nulls: int, lag: LagOne) -> CategoricalColumn:
        """The column with so many rows of each category: by name where they are few and short, else in pools."""
        rows = sum(counts.values()) + nulls
        if len(counts) <= MAX_CATEGORIES and all(len(category) <= MAX_CATEGORY_LENGTH for category in counts):
            named = sorted(counts.items())
            return cls(name, rows, nulls, tuple(c for c, _ in named), tuple(n for _, n in named), lag)
        return cls(name, rows, nulls, (), _in_pools(counts.items()), lag)

    @property
    def known(self) -> int:
        """The rows that are not null."""
        return self.rows - self.nulls

    @property
    def pooled(self) -> bool:
        """Whether the counts are those of pools."""
        return not self.categories

    def in_pools(self) -> tuple[int, ...]:
        """The counts of the 64 pools, whatever is kept."""
        return self.counts if self.pooled else _in_pools(zip(self.categories, self.counts, strict=True))

    def beside(self, counts: Mapping[str, int]) -> tuple[tuple[str | int, ...], tuple[int, ...], tuple[int, ...]]:
        """The categories or pools, their counts here, and in a column with these `counts` of every category.

        Pools go by their number. Categories that are not here follow those that are.
        """
        if self.pooled:
            return tuple(range(POOLS)), self.counts, _in_pools(counts.items())
        new = tuple(sorted(counts.keys() - set(self.categories)))
        names = (*self.categories, *new)
        return names, (*self.counts, *[0] * len(new)), tuple(counts.get(name, 0) for name in names)

    def merged(self, other: CategoricalColumn) -> CategoricalColumn:
        """Both columns' rows together, exactly as if they had been counted at once."""
        nulls, lag = self.nulls + other.nulls, _joined(self.lag, other.lag)
        if self.pooled or other.pooled:
            counts = tuple(a + b for a, b in zip(self.in_pools(), other.in_pools(), strict=True))
            return CategoricalColumn(self.name, self.rows + other.rows, nulls, (), counts, lag)
        named = Counter(dict(zip(self.categories, self.counts, strict=True)))
        named.update(dict(zip(other.categories, other.counts, strict=True)))
        return CategoricalColumn.of(self.name, named, nulls=nulls, lag=lag)


ProfiledColumn = NumericColumn | CategoricalColumn


def pool_of(category: str) -> int:
    """The pool, 0 to 63, of a category: the same on every machine and in every release."""
    return hashlib.blake2b(category.encode(errors="surrogatepass"), digest_size=8).digest()[0] % POOLS


def _in_pools(counts: Iterable[tuple[str, int]]) -> tuple[int, ...]:
    pools = [0] * POOLS
    for category, rows in counts:
        pools[pool_of(category)] += rows
    return tuple(pools)


def _joined(one: LagOne, other: LagOne) -> LagOne:
    pairs = one.pairs + other.pairs
    return LagOne((one.estimate * one.pairs + other.estimate * other.pairs) / pairs if pairs else 0.0, pairs)


def _wider(
    one: Literal["float", "integer", "boolean"], other: Literal["float", "integer", "boolean"]
) -> Literal["float", "integer", "boolean"]:
    return max(one, other, key=("boolean", "integer", "float").index)
