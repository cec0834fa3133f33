"""Histogram of durations in integer nanoseconds, whose buckets grow with the value; merged by adding counts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError

SUB_BUCKET_BITS = 7
"""Each power of two has 128 buckets, so that a bucket is at most 0.8 % wide."""
_BASE = 1 << SUB_BUCKET_BITS
# 2**53 ns are 104 days; up to there a float64 holds every integer.
_MOST_NS = 1 << 53
_LAST_BUCKET = (53 - SUB_BUCKET_BITS - 1) * _BASE + 2 * _BASE - 1
Bucket = Annotated[int, Meta(ge=0, le=_LAST_BUCKET)]
Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]  # of a bucket in one second, or of failures: more cannot be meant


@dataclass(slots=True)
class LatencyHistogram:
    """Counts by bucket, and of requests without an answer, which are slower than all others.

    Buckets have fixed limits, the same on every host, so that histograms add up to the same counts in any order. Source
    of the layout: HdrHistogram (Tene).
    """

    counts: dict[Bucket, Count] = field(default_factory=dict)
    unanswered: Count = 0

    @classmethod
    def of(cls, durations_ms: ArrayLike) -> LatencyHistogram:
        """Return the histogram of durations (n,) in milliseconds; infinite ones have no answer, NaN are an error.

        Negative durations, by which clocks may differ, count as 0.
        """
        values = np.asarray(durations_ms, dtype=np.float64)
        if np.isnan(values).any():
            raise InputError(f"durations must not be NaN, got {int(np.isnan(values).sum())} of {values.size}")
        known = values[np.isfinite(values)]
        nanoseconds = np.clip(np.rint(known * 1e6), 0, _MOST_NS - 1).astype(np.int64)
        buckets, counts = np.unique(bucket_of(nanoseconds), return_counts=True)
        return cls(dict(zip(buckets.tolist(), counts.tolist(), strict=True)), int(np.isinf(values).sum()))

    @property
    def n(self) -> int:
        """The number of durations, those without an answer included."""
        return sum(self.counts.values()) + self.unanswered

    def add(self, other: LatencyHistogram) -> None:
        """Add the counts of another histogram to this one."""
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count
        self.unanswered += other.unanswered

    def quantile_ms(self, quantile: float) -> tuple[float, float]:
        """Return the limits of the bucket of the smallest value that at least `quantile` of all do not exceed.

        The quantile of the durations lies between them, exactly. Both are infinite where it has no answer, and NaN
        without durations.
        """
        n, seen = self.n, 0
        if not n:
            return math.nan, math.nan
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen / n >= quantile:
                return bucket_limits_ms(bucket)
        return math.inf, math.inf

    def within(self, max_ms: float) -> int:
        """Return the number of durations in buckets that lie at or below `max_ms` as a whole."""
        return sum(count for bucket, count in self.counts.items() if bucket_limits_ms(bucket)[1] <= max_ms)

    def values_ms(self, *, upper: bool) -> NDArray[np.float64]:
        """Return every duration as the lower or upper limit of its bucket, ascending, (n,)."""
        buckets = sorted(self.counts)
        limits = [bucket_limits_ms(bucket)[int(upper)] for bucket in buckets]
        known = np.repeat(limits, [self.counts[bucket] for bucket in buckets])
        return np.concatenate([known, np.full(self.unanswered, math.inf)])


def merged(histograms: Iterable[LatencyHistogram]) -> LatencyHistogram:
    """Return one histogram of all latencies that the given ones count."""
    total = LatencyHistogram()
    for each in histograms:
        total.add(each)
    return total


def bucket_of(nanoseconds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of the bucket of each duration (n,), from 0 to below 2**53 nanoseconds.

    Below 256 ns each nanosecond has a bucket; above, the 8 leading bits of a duration decide.
    """
    bits = np.frexp(nanoseconds.astype(np.float64))[1]
    shift = np.maximum(bits - (SUB_BUCKET_BITS + 1), 0).astype(np.int64)
    return np.asarray(shift * _BASE + (nanoseconds >> shift))


def bucket_limits_ms(bucket: int) -> tuple[float, float]:
    """Return the smallest and the largest duration of a bucket, in milliseconds."""
    shift = max(bucket // _BASE - 1, 0)
    low = (bucket - shift * _BASE) << shift
    return low / 1e6, (low + (1 << shift) - 1) / 1e6
