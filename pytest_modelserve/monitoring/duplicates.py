"""Rows that equal an earlier row: their number in samples of every size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from pytest_modelserve.monitoring.columns import Column

_SIZES = tuple(dict.fromkeys(round(2 ** (step / 4)) for step in range(4, 161)))
"""Sample sizes, 2 to 2⁴⁰ rows, for which copies are stored: a chord between two is at most 1 % too high."""
_ALLOWANCE = 3.0
_UNIT = 1024
"""Copies are stored in units of 1/1024, so that profiles merge to the same bits in any order."""


@dataclass(frozen=True, slots=True)
class RepeatedRows:
    """The number of `rows` that equal an earlier one in every column, and the number expected in smaller samples.

    `among` is the number of rows searched, of a merged profile those of the smallest part. `once` and `twice` count the
    different rows that occur so often. `curve` has, for each of the sizes of the profile, the copies in units of 1/1024
    and the rows that they are among: a sample of that size has the same proportion of copies.
    """

    rows: int
    among: int
    once: int
    twice: int
    curve: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, multiplicities: ArrayLike) -> RepeatedRows:
        """Return the counts of data whose different rows occur so often (kinds,); 0 is none."""
        times, kinds = np.unique(np.asarray(multiplicities, dtype=np.int64), return_counts=True)
        return cls.of_counts({t: n for t, n in zip(times.tolist(), kinds.tolist(), strict=True) if t})

    @classmethod
    def of_counts(cls, kinds: Mapping[int, int]) -> RepeatedRows:
        """Return the counts of data of which `kinds[t]` different rows occur t times."""
        n = sum(times * number for times, number in kinds.items())
        times, number = (np.array(list(values), dtype=np.float64) for values in (kinds.keys(), kinds.values()))
        curve = [
            (round(_UNIT * max(size - _distinct(times, number, n, size), 0.0) * n / size), n)
            for size in takewhile(lambda size: size <= n, _SIZES)
        ]
        return cls(n - sum(kinds.values()), n, kinds.get(1, 0), kinds.get(2, 0), tuple(curve))

    @classmethod
    def of_content(cls, data: Mapping[str, Any]) -> RepeatedRows:
        """Return the counts that `asdict` made JSON of."""
        return cls(**{**data, "curve": tuple((copies, rows) for copies, rows in data["curve"])})

    def merged(self, other: RepeatedRows) -> RepeatedRows:
        """Add both counts: rows of one data set are not compared with those of the other."""
        longer, shorter = sorted((self.curve, other.curve), key=len, reverse=True)
        both = [(a + c, b + d) for (a, b), (c, d) in zip(longer, shorter, strict=False)]
        return RepeatedRows(
            self.rows + other.rows,
            min(self.among, other.among),
            self.once + other.once,
            self.twice + other.twice,
            (*both, *longer[len(shorter) :]),
        )

    @property
    def total(self) -> int:
        """The rows of all parts."""
        return self.curve[0][1] if self.curve else self.among

    @property
    def largest(self) -> int:
        """The largest number of rows that were compared with each other, for which the copies are known."""
        return self.among if self.total == self.among else _SIZES[len(self.curve) - 1]

    def rate(self, size: int) -> float:
        """Return the expected proportion of copies among `size` rows, up to the largest number of rows."""
        sizes, copies = self._copies()
        return float(np.interp(size, sizes, copies)) / size

    def rate_variance(self, size: int) -> float:
        """Return an upper bound of the variance of `rate(size)` over data sets of independent rows.

        Leaving out a row changes the number of different rows by one if no other equals it, so that the variance of
        that number is at most the expected number of such rows (Efron and Stein 1981, Annals of Statistics 9, 586–596);
        of samples of size s of n rows it is s/n of it. A few more rows allow for its own error.
        """
        sizes, copies = self._copies()
        if size == self.total:
            alone = float(self.once)
        else:
            after = int(np.searchsorted(sizes[:-1], size, side="left")) or 1
            alone = size * (1 - float(np.diff(copies)[after - 1] / np.diff(sizes)[after - 1]))
        return (max(alone, 0.0) + _ALLOWANCE) / size / max(self.total, size)

    def _copies(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return all sample sizes whose copies are known, and these."""
        copies = {1: 0.0} | {at: c / _UNIT / n * at for (c, n), at in zip(self.curve, _SIZES, strict=False)}
        if self.total == self.among:
            copies[self.among] = self.rows
        return np.array(list(copies), dtype=np.float64), np.array(list(copies.values()), dtype=np.float64)

    def rate_of_more(self, size: int, *, z: float = 0.0) -> float:
        """Return the expected proportion of copies among more rows than the largest number; with `z` a lower bound.

        Of D different rows, f₁ that occur `once` and f₂ that occur `twice` give about f₁²/2f₂ that were not seen; the
        more rows, the fewer of them are left (Chao 1987, Biometrics 43, 783–791; Chao et al. 2014, Ecological
        Monographs 84, 45–67). That is too few if some rows are far more frequent than others. The lower bound has as
        many as Chao and Lee (1992, JASA 87, 210–217) estimate, if they are more, and is `z` standard errors lower. The
        error is the smaller of two: that of multinomial counts of counts, which is too large if few rows have a copy,
        and that of f₂ alone, which is too large if many have.
        """
        top, part = self.largest, self.largest / self.total
        once, twice = self.once * part, self.twice * part
        others = top * (1 - self.rate(top)) - once - twice

        def distinct(once: float, twice: float) -> float:
            return others + once + twice + _found(size - top, top, once, twice)

        rate = max(1 - distinct(once, twice) / size, 0.0)
        if not z:
            return rate
        fewer = max(twice - z * math.sqrt(twice + 1), 0.0)
        of_twice = distinct(once + 2 * (twice - fewer), fewer) - distinct(once, twice)
        slopes = (
            distinct(once + 1, twice) - distinct(once, twice),
            distinct(once, twice + 1) - distinct(once, twice),
            1,
        )
        counts = (once, twice, others)
        every = others + once + twice + (once**2 / 2 / twice if twice else once**2 / 2)
        mean = sum(slope * n for slope, n in zip(slopes, counts, strict=True)) / every
        variance = sum(slope**2 * n for slope, n in zip(slopes, counts, strict=True)) - mean**2 * every
        error = min(z * math.sqrt(max(variance, 0.0)), max(of_twice, 0.0))
        coverage = 1 - once / top
        if once and twice:
            seen = others + once + twice
            uneven = max(seen / coverage * 2 * self.rate(2) - 1, 0.0)
            unseen = max(seen / coverage + once / coverage * uneven - seen, once**2 / 2 / twice)
            error += _found(size - top, top, once, once**2 / 2 / unseen) - _found(size - top, top, once, twice)
        return max(rate - error / size, 0.0)


def _found(more: int, top: int, once: float, twice: float) -> float:
    """Return the expected number of unseen different rows in `more` rows."""
    if not twice or not once:
        return more * once / top
    unseen = once**2 / 2 / twice
    return -unseen * math.expm1(more * math.log1p(-once / (top * unseen + once)))


def _distinct(times: NDArray[np.float64], kinds: NDArray[np.float64], n: int, size: int) -> float:
    """Return the expected number of different rows in a random sample (Hurlbert 1971, Ecology 52, 577–586)."""
    if size == n:
        return float(kinds.sum())
    left = n - times
    possible = left >= size
    absent = np.zeros(times.size)
    fitting = left[possible]
    absent[possible] = np.exp(
        gammaln(fitting + 1) - gammaln(fitting - size + 1) - gammaln(n + 1) + gammaln(n - size + 1)
    )
    absent[times == 1] = 1 - size / n  # exact, where most rows are
    return float((kinds * (1 - absent)).sum())


_SAMPLE_SIZE = 256
"""Rows that are all different in a column that may distinguish all rows."""
_STEP = 32_768
"""Rows hashed at a time, so that hashes and keys stay in the cache."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2⁶⁴ divided by the golden ratio: Fibonacci hashing (Knuth, The Art of Computer Programming 3, section 6.4)."""
_HALF = np.uint64(32)
_EXACT = 2**53
"""Doubles hold every integer up to this size."""

Hashes = NDArray[np.uint64]


def repeated_rows(columns: Sequence[Column]) -> RepeatedRows:
    """Count the rows of the columns (n,) that equal an earlier row in every column.

    Null equals null, and 0 equals −0. One column without equal values is enough, and costs one sort. Otherwise rows are
    compared by hashes of 64 bits, with a collision in one of 10⁷ data sets of a million rows. It holds 32 bytes a row.
    """
    numeric = [column.exact for column in columns if column.exact is not None]
    numeric += [column.values for column in columns if column.values.dtype.kind != "O"]
    texts = [column.values for column in columns if column.values.dtype.kind == "O"]
    distinct = next((index for index, values in enumerate(numeric) if _may_be_distinct(values)), 0)
    numeric[:1], numeric[distinct : distinct + 1] = numeric[distinct : distinct + 1], numeric[:1]
    return _count_repeated(numeric, texts)


def _count_repeated(numeric: Sequence[NDArray[Any]], texts: Sequence[NDArray[Any]]) -> RepeatedRows:
    n = len((*numeric, *texts)[0])
    if numeric and not _ties(numeric[0]) and np.count_nonzero(np.isnan(numeric[0])) < 2:
        return RepeatedRows.of_counts({1: n})
    hashes = np.zeros(n, dtype=np.uint64)
    for start in range(0, len(hashes), _STEP):
        rows = slice(start, start + _STEP)
        for values in numeric:
            _mix(hashes[rows], _keys(values[rows]))
    if texts and _ties(hashes):
        for values in texts:
            _mix(hashes, _codes(values))
    hashes.sort()
    ends = np.flatnonzero(np.concatenate((hashes[1:] != hashes[:-1], [True])))
    return RepeatedRows.of(np.diff(ends, prepend=-1))


def _ties(values: NDArray[Any]) -> int:
    ordered = np.sort(values)
    return int(np.count_nonzero(ordered[1:] == ordered[:-1]))


def _keys(values: NDArray[Any]) -> Hashes:
    """Return a 64-bit number for each value, equal only for equal values."""
    if values.dtype.kind != "f":
        return values.astype(np.int64).view(np.uint64)
    numbers: NDArray[np.float64] = np.add(values, 0.0, dtype=np.float64)  # −0 becomes 0
    np.copyto(numbers, np.nan, where=np.isnan(numbers))  # NaN has many bit patterns
    return numbers.view(np.uint64)


def number_keys(values: NDArray[Any], exact: NDArray[Any] | None = None) -> Hashes:
    """Return a 64-bit number for each number, equal only for equal ones of any dtype; `exact` are `Column.exact`."""
    numbers: NDArray[np.float64] = np.add(values, 0.0, dtype=np.float64)
    keys = _keys(numbers)
    whole = values if exact is None and values.dtype.kind in "iu" else exact
    if whole is not None and whole.size and max(int(whole.max()), -int(whole.min())) > _EXACT:
        highest = np.nextafter(float(np.iinfo(whole.dtype).max), 0)  # doubles of the largest integers are beyond them
        rounded = np.minimum(np.nan_to_num(numbers, nan=0.0), highest).astype(whole.dtype)
        keys += (whole - rounded).astype(np.int64).view(np.uint64) * _MULTIPLIER
    return keys


def _codes(values: NDArray[Any]) -> Hashes:
    codes: dict[Any, int] = {}
    return np.fromiter((codes.setdefault(value, len(codes)) for value in values.tolist()), np.uint64, len(values))


def _mix(hashes: Hashes, keys: Hashes) -> None:
    """Mix the keys into the hashes, in place: the product carries differences up, the shift brings them down."""
    np.bitwise_xor(hashes, keys, out=hashes)
    np.multiply(hashes, _MULTIPLIER, out=hashes)
    np.bitwise_xor(hashes, np.right_shift(hashes, _HALF, out=keys), out=hashes)
    np.multiply(hashes, _MULTIPLIER, out=hashes)


def _may_be_distinct(values: NDArray[Any]) -> bool:
    """Return True if a sample of rows, spread over all, has no value twice."""
    sample = values[:: max(len(values) // _SAMPLE_SIZE, 1)]
    return np.unique(sample).size == sample.size
