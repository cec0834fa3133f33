"""Profiles of single columns: counts between edges or of categories, and moments."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.monitoring.columns import Number
from pytest_modelserve.monitoring.dependence import Dependence
from pytest_modelserve.monitoring.histogram import Exact, added, moments
from pytest_modelserve.settings import PROJECT_KEY_VARIABLE, key_check, project_key

MAX_CATEGORIES = 100
MAX_CATEGORY_LENGTH = 100
"""Beyond either, a column is text rather than categories: 100 names of 100 letters are 10 KB of the file."""
HASH_BUCKETS = 64
"""Buckets that the categories of such a column are counted in: the rate of one bucket is then known to 1 or 2 %."""
OTHERS = "(other)"
"""What rare categories are called together in a profile that was saved with `min_count`."""

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
    and if the order of the rows is not known. `at_minimum` and `at_maximum` rows have these values; 0 if not counted.

    With `min_count` above 1 the column was suppressed (`suppression`): no count is smaller, and minimum and maximum are
    ends with at least as many rows beyond them, unless as many rows share them.
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
    at_minimum: int = 0
    at_maximum: int = 0
    min_count: int = 1

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
        return 0 < self.finite == self.known and self.minimum == self.maximum and bool(self.edges)

    @property
    def count_error(self) -> int:
        """The most rows by which a count, or the rows below an edge, may be wrong: 0 unless suppressed."""
        return self.min_count + self.min_count // 2 if self.min_count > 1 else 0

    @property
    def outside(self) -> int:
        """The finite rows of a suppressed column outside minimum and maximum; 0 for other columns."""
        if self.min_count == 1 or not self.edges:
            return 0
        below = self.counts[0] - self.negative_infinities if self.minimum <= self.edges[0] else 0
        return below + (self.counts[-1] - self.positive_infinities if self.maximum >= self.last_covered else 0)

    @property
    def last_covered(self) -> float:
        """The largest number below the last edge: an edge belongs to the bin above it."""
        return math.nextafter(self.edges[-1], -math.inf)

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
            at_minimum=_at_end(finite, min, "minimum"),
            at_maximum=_at_end(finite, max, "maximum"),
        )


@dataclass(frozen=True, slots=True)
class CategoricalColumn:
    """Profile of a text column: counts of categories in alphabetical order, or of hash buckets.

    With more than 100 categories, or one longer than 100 letters, no name is stored: `categories` is empty, and
    `counts` are those of 64 buckets of a hash of the name. Storing only the most frequent names instead would
    overestimate their rates, so that every later window would seem to drift.

    `key_check` recognizes the project key of the hash; "" is a hash without one. With `min_count` above 1 the column
    was suppressed: no category has fewer rows, the last of `counts` are the rows of all rarer ones (0 or `min_count` at
    least), and there may be fewer hash buckets.
    """

    name: str
    rows: int
    nulls: int
    categories: tuple[str, ...]
    counts: tuple[int, ...]
    dependence: Dependence
    kind: Literal["category"] = "category"
    key_check: str = ""
    min_count: int = 1

    def __post_init__(self) -> None:
        buckets = len(self.counts) if self.min_count > 1 else HASH_BUCKETS
        if len(self.counts) != (len(self.labels) or buckets) or sum(self.counts) != self.rows - self.nulls:
            raise UsageError(
                f"column {self.name!r} needs a count for each category, and counts that add up to its rows"
            )

    @classmethod
    def of(
        cls,
        name: str,
        counts: Mapping[str, int],
        *,
        nulls: int,
        dependence: Dependence,
        like: ProfiledColumn | None = None,
    ) -> CategoricalColumn:
        """Return the profile of these `counts`: by category if they are few and short, else by hash bucket.

        The hash is that of `like`, or else has the project key, if there is one.
        """
        rows = sum(counts.values()) + nulls
        if len(counts) <= MAX_CATEGORIES and all(len(category) <= MAX_CATEGORY_LENGTH for category in counts):
            named = sorted(counts.items())
            return cls(name, rows, nulls, tuple(c for c, _ in named), tuple(n for _, n in named), dependence)
        hashed_like = isinstance(like, CategoricalColumn) and like.hashed
        check = like.key_check if hashed_like and isinstance(like, CategoricalColumn) else key_check(project_key())
        in_buckets = _in_buckets(name, counts.items(), check)
        return cls(name, rows, nulls, (), in_buckets, dependence, key_check=check)

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each count: the categories, and of a suppressed column the others; () for hash buckets."""
        return (*self.categories, OTHERS) if self.min_count > 1 and self.categories else self.categories

    @property
    def count_error(self) -> int:
        """The most rows by which a count may be wrong: 0 unless suppressed."""
        return 2 * (self.min_count - 1)

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

        New categories follow those of the profile, in alphabetical order; a suppressed column counts them as others.
        """
        if self.hashed:
            found = _in_buckets(self.name, counts.items(), self.key_check, buckets=len(self.counts))
            return tuple(range(len(self.counts))), self.counts, found
        if self.min_count > 1:
            named = tuple(counts.get(name, 0) for name in self.categories)
            return self.labels, self.counts, (*named, sum(counts.values()) - sum(named))
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
            check = self.key_check if self.hashed else other.key_check
            both = (hash_bucket_counts(column, check) for column in (self, other))
            counts = tuple(a + b for a, b in zip(*both, strict=True))
            return CategoricalColumn(self.name, rows, nulls, (), counts, dependence, key_check=check)
        named = Counter(dict(zip(self.categories, self.counts, strict=True)))
        named.update(dict(zip(other.categories, other.counts, strict=True)))
        return CategoricalColumn.of(self.name, named, nulls=nulls, dependence=dependence)


ProfiledColumn = NumericColumn | CategoricalColumn


def hash_bucket(category: str, key: bytes | None = None) -> int:
    """Return the hash bucket, 0 to 63, of a category: the same on every machine and in every release."""
    data = category.encode(errors="surrogatepass")
    return hashlib.blake2b(data, digest_size=8, key=key or b"").digest()[0] % HASH_BUCKETS


def hash_key(column: str, check: str) -> bytes | None:
    """Return the key of a column's hash buckets, None without one; UsageError if the project key is another one."""
    key = project_key() if check else None
    if key_check(key) != check:
        raise UsageError(
            f"column {column!r} is counted in hash buckets with a project key: set {PROJECT_KEY_VARIABLE} to the key "
            "that the profile was made with"
        )
    return key


def hash_bucket_counts(column: CategoricalColumn, check: str, buckets: int = HASH_BUCKETS) -> tuple[int, ...]:
    """Return the counts of the hash buckets of a column, with the key that `check` recognizes."""
    if not column.hashed:
        if column.min_count > 1:
            raise InputError(
                f"column {column.name!r} has its rare categories pooled in the profile, and is counted in hash buckets "
                "in the data: pass the rows in place of their profile"
            )
        return _in_buckets(column.name, zip(column.categories, column.counts, strict=True), check, buckets=buckets)
    if column.key_check != check and len(column.counts) > 1 and column.known:
        raise UsageError(f"column {column.name!r} is counted in hash buckets of different project keys")
    return tuple(sum(column.counts[bucket::buckets]) for bucket in range(buckets))


def _in_buckets(
    name: str, counts: Iterable[tuple[str, int]], check: str, *, buckets: int = HASH_BUCKETS
) -> tuple[int, ...]:
    found = [0] * buckets
    key = hash_key(name, check) if buckets > 1 else None
    for category, rows in counts:
        found[hash_bucket(category, key) % buckets] += rows
    return tuple(found)


def _at_end(columns: Iterable[NumericColumn], end: Callable[..., float], name: str) -> int:
    """Return the rows at the minimum or maximum of all columns; 0 if one of these does not know its own."""
    columns = list(columns)
    extreme = end(getattr(column, name) for column in columns)
    rows = [getattr(column, f"at_{name}") for column in columns if getattr(column, name) == extreme]
    return sum(rows) if all(rows) else 0


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
