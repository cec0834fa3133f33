"""The counts and moments that a profile keeps of one column."""

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
from pytest_modelserve.monitoring.histogram import Exact, added, moments
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
    outermost bins and told beside them; minimum, maximum, mean and std (of the population) leave them out, and are 0
    where nothing is finite. `sums` are those of the finite values and their squares, from which profiles merge to the
    same mean and std in every order; None where an engine has added them up, which rounds. `rows` are all rows, of
    which `nulls` are in no bin. `lag` is the rank autocorrelation of neighbouring rows. `below` and `above` are rows
    below and above the finite range of the profile that it was made `like`: 0 in one made like none. `source` is the
    column of texts whose lengths these are, or of embeddings that these are one number of; None for any other.
    `backward` are the times earlier than the row before; None of what is no time, and where no order was known.
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
    lag: LagOne
    below: int = 0
    above: int = 0
    sums: Exact | None = None
    source: str | None = None
    backward: int | None = None

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip(self.edges, self.edges[1:], strict=False))
        if not rising or len(self.counts) != len(self.edges) + 1 or sum(self.counts) != self.rows - self.nulls:
            raise UsageError(f"column {self.name!r} has no rising edges with one bin more, or loses rows")

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
        """Whether all known values are the same."""
        return 0 < self.finite == self.known and self.minimum == self.maximum

    @property
    def median(self) -> float:
        """About the median: a point between the edges of its bin, a whole one of whole numbers."""
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
        """Both columns' rows together, exactly as if they had been counted at once.

        Only the autocorrelation is another, for neither side knows the other's neighbours; and without `sums`, mean and
        std agree to rounding (Chan, Golub and LeVeque 1979).
        """
        if self.edges != other.edges:
            raise UsageError(
                f"the profiles count column {self.name!r} between different edges: make one of them with like=the other"
            )
        sums = added(self.sums, other.sums) if self.sums and other.sums else None
        finite = [column for column in (self, other) if column.finite] or [self]
        mean, std = _pooled(self, other) if sums is None else moments(sums, self.finite + other.finite)
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
            lag=_joined(self.lag, other.lag),
            below=self.below + other.below,
            above=self.above + other.above,
            sums=sums,
            source=self.source,
            backward=None if self.backward is None or other.backward is None else self.backward + other.backward,
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
    def source(self) -> None:
        """None: what is made of other columns is numbers."""
        return None

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
        rows, nulls, lag = self.rows + other.rows, self.nulls + other.nulls, _joined(self.lag, other.lag)
        if not self.known or not other.known:
            return replace(self if self.known else other, rows=rows, nulls=nulls, lag=lag)
        if self.pooled or other.pooled:
            counts = tuple(a + b for a, b in zip(self.in_pools(), other.in_pools(), strict=True))
            return CategoricalColumn(self.name, rows, nulls, (), counts, lag)
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


def _pooled(one: NumericColumn, other: NumericColumn) -> tuple[float, float]:
    n, m = one.finite, other.finite
    if not n or not m:
        return (one.mean, one.std) if n else (other.mean, other.std)
    share, apart = m / (n + m), other.mean - one.mean
    between = math.sqrt(share * (1 - share)) * apart
    std = math.hypot(math.sqrt(1 - share) * one.std, math.sqrt(share) * other.std, between)
    return one.mean + share * apart, std


def _joined(one: LagOne, other: LagOne) -> LagOne:
    """The mean autocorrelation of both sides' pairs, the same in whatever order many are joined.

    estimate · pairs is taken for a whole multiple of 2⁻²⁰. Of what was joined here it is one, and rounding gives it
    back; of fewer than 2³² pairs a double holds it.
    """
    pairs = one.pairs + other.pairs
    total = sum(round(lag.estimate * lag.pairs * 2**20) for lag in (one, other))
    return LagOne(min(max(total / (pairs * 2**20), -1.0), 1.0) if pairs else 0.0, pairs)


def _wider(one: NumericColumn, other: NumericColumn) -> Number:
    if not one.known or not other.known:  # a side that is all null has no kind of its own
        return one.kind if one.known else other.kind
    if (one.kind == "datetime") != (other.kind == "datetime"):
        raise UsageError(f"column {one.name!r} is of kind {one.kind} in one profile and {other.kind} in the other")
    return max(one.kind, other.kind, key=("boolean", "integer", "float", "datetime").index)
