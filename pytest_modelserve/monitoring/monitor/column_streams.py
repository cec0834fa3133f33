"""Streams of the columns of a profile: location, scale and cuts of numbers, categories, nulls and range."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.drift.effective_rows import DEPENDENCE_ALPHA, EffectiveRows
from pytest_modelserve.monitoring.monitor.stream import QUANTA, Measured, Stream, rate_stream, shift_rate
from pytest_modelserve.monitoring.profile import ReferenceProfile
from pytest_modelserve.monitoring.window import WindowColumn, read_window

Floats = NDArray[np.float64]

_LARGEST_SCORE, _LARGEST_SQUARE = 5.0, 10.0
"""Scores beyond these, in standard deviations, belong to rare values. The mean of a window is then far from normal, and
only the exact rates of the cuts are monitored."""
_CUTS = (0.25, 0.5, 0.75)
_BUCKET_GROUPS = 16
_LOCATION_SHARE, _QUALITY_SHARE = 0.6, 0.1
"""Shares of a column's evidence; scale and cuts, or categories, have the rest."""


@dataclass(frozen=True, slots=True)
class ColumnStreams:
    """The streams of one column, and the function that counts a window's column: totals and rows (streams,)."""

    name: str
    streams: tuple[Stream, ...]
    count: Callable[[WindowColumn], Measured]


class ProfileStreams:
    """The streams of all columns of a profile but times, with equal parts of the evidence."""

    def __init__(self, profile: ReferenceProfile, *, max_shift: float, max_increase: float) -> None:
        self._profile, self._inflations = profile, _inflations(profile)
        self._columns = [
            column_streams(column, self._inflations[column.name], max_shift=max_shift, max_increase=max_increase)
            for column in profile.columns
            if column.kind != "datetime" and column.known
        ]
        if not self._columns:
            raise UsageError(f"profile {profile.name!r} has no column to monitor: times are left out")
        parts = len(self._columns)
        self.streams = tuple(
            replace(stream, weight=stream.weight / parts, column=column.name)
            for column in self._columns
            for stream in column.streams
        )

    def measure(self, data: Any) -> Measured:
        """Return totals and rows (streams,) of `data`; rows that depend on their neighbors count as fewer."""
        window = read_window(data, self._profile)
        if window.schema_errors:
            errors = "; ".join(window.schema_errors)
            raise InputError(f"{window.name} does not fit the profile {self._profile.name!r}: {errors}")
        effective = EffectiveRows.of(window, self._profile, block=None)
        found = {column.name: column for column, _ in window.pairs}
        totals, rows = [], []
        for column in self._columns:
            counted, n = column.count(found[column.name])
            inflation = max(self._inflations[column.name], effective.blocks(column.name).current)
            if inflation > 1:
                fewer = np.where(n > 0, np.maximum(np.floor(n / inflation), 1.0), 0.0)
                counted, n = counted * fewer / np.maximum(n, 1.0), fewer
            totals.append(counted)
            rows.append(n)
        return np.concatenate(totals), np.concatenate(rows)


def _inflations(profile: ReferenceProfile) -> dict[str, float]:
    """Return how many rows of each column of the profile count as one; 1 where they do not depend on each other."""
    if profile.block:
        return dict.fromkeys(profile.names, float(profile.block))
    significant = -float(ndtri(DEPENDENCE_ALPHA / len(profile.columns)))
    dependent = any(column.dependence.z_score > significant for column in profile.columns)
    return {column.name: column.dependence.inflation if dependent else 1.0 for column in profile.columns}


def column_streams(column: ProfiledColumn, inflation: float, *, max_shift: float, max_increase: float) -> ColumnStreams:
    """Return the streams of one column, of whose rows `inflation` count as one."""
    if isinstance(column, NumericColumn):
        return _number_streams(column, inflation, max_shift=max_shift, max_increase=max_increase)
    return _category_streams(column, inflation, max_shift=max_shift, max_increase=max_increase)


def _number_streams(column: NumericColumn, inflation: float, *, max_shift: float, max_increase: float) -> ColumnStreams:
    """Return location and scale where they are near normal, up to three cuts, nulls, and values outside the range."""
    counts = np.array(column.counts, dtype=np.float64)
    names, matrix = number_scores(counts)
    n, streams = counts.sum() / inflation, []
    titles = [f"{column.name!r} {name}" for name in _titles(names, matrix, column)]
    for name, title, weight, scores in zip(names, titles, stream_shares(names), matrix.T, strict=True):
        if name in ("cut", "other"):
            streams.append(shift_rate(title, counts @ scores / inflation, n, max_shift, weight))
        else:
            streams.append(Stream(title, "mean", n, max_shift, f"max_shift={max_shift:g}", weight=weight))
    # The largest value of the reference is one event: the rate beyond both ends is Beta(2, N − 1) (Wilks 1941).
    beyond = (column.negative_infinities + column.positive_infinities + column.outside) / inflation + 1
    outside = rate_stream(
        f"{column.name!r} outside its range", beyond, max(n, 1.0), max_increase, weight=_QUALITY_SHARE / 2
    )
    streams = [_null_stream(column.name, column.nulls, column.rows, inflation, max_increase), outside, *streams]

    def count(window: WindowColumn) -> Measured:
        if window.kind is None:
            all_null = np.append(float(window.rows), np.zeros(len(names) + 1))
            return all_null, all_null
        summary = window.summary(column)
        known = summary.rows - summary.nulls
        totals = window.counts(column) @ matrix
        quality = [summary.nulls, summary.infinities + summary.below + summary.above]
        return np.append(quality, totals), np.append(float(summary.rows), np.full(len(names) + 1, float(known)))

    return ColumnStreams(column.name, tuple(streams), count)


def _titles(names: Sequence[str], matrix: Floats, column: NumericColumn) -> list[str]:
    cuts = [column.edges[int(scores.sum()) - 1] for name, scores in zip(names, matrix.T, strict=True) if name == "cut"]
    short = [f"below {cut:.4g}" for cut in cuts]
    cuts_named = iter(short if len(set(short)) == len(short) else [f"below {cut!r}" for cut in cuts])
    return [
        next(cuts_named) if name == "cut" else f"other than {column.minimum:g}" if name == "other" else name
        for name in names
    ]


def number_scores(counts: Floats) -> tuple[list[str], Floats]:
    """Return the names of a number's streams, and their scores in each bin (bins, streams).

    "location" is the normal score of the middle of the bin's ranks, and "scale" its square. Both have mean 0 and
    variance 1 over the `counts` (bins,) of the reference, and are rounded to 2⁻¹². "cut" is 1 below an edge, else 0.
    "other" is 1 for any value but that of a constant.
    """
    n, below, populated = counts.sum(), np.cumsum(counts), counts > 0
    # Bins beyond the reference's extremes have the scores of these: the mean of a few huge scores is far from normal.
    ranks = (below - counts / 2) / n
    scores = _standardized(ndtri(np.clip(ranks, ranks[populated].min(), ranks[populated].max())), counts)
    squares = _standardized(scores**2, counts)
    found: list[tuple[str, Floats]] = []
    if populated.sum() > 2 and np.abs(scores[populated]).max() <= _LARGEST_SCORE:
        found.append(("location", scores))
        if np.abs(squares[populated]).max() <= _LARGEST_SQUARE:
            found.append(("scale", squares))
    edges = np.flatnonzero((below[:-1] > 0) & (below[:-1] < n))
    nearest = {int(edges[np.abs(below[edges] / n - cut).argmin()]) for cut in _CUTS} if edges.size else set()
    found += [("cut", (np.arange(counts.size) <= edge).astype(np.float64)) for edge in sorted(nearest)]
    if not nearest:
        found.append(("other", (~populated).astype(np.float64)))
    return [name for name, _ in found], np.stack([values for _, values in found], axis=1)


def stream_shares(names: Sequence[str]) -> list[float]:
    """Return the weight of each of a number's streams in the evidence of its column."""
    has_location = "location" in names
    others = (1 - _QUALITY_SHARE - _LOCATION_SHARE * has_location) / max(len(names) - has_location, 1)
    return [_LOCATION_SHARE if name == "location" else others for name in names]


def _standardized(scores: Floats, counts: Floats) -> Floats:
    center = scores @ counts / counts.sum()
    sd = math.sqrt((scores - center) ** 2 @ counts / counts.sum()) or 1.0
    rounded: Floats = np.round((scores - center) / sd / QUANTA["mean"]) * QUANTA["mean"]
    return rounded


def _category_streams(
    column: CategoricalColumn, inflation: float, *, max_shift: float, max_increase: float
) -> ColumnStreams:
    """Return the rates of all categories, or of 16 groups of hash buckets, of new categories, and of nulls.

    Only the most frequent categories of the reference would be a biased choice: their true rates are lower.
    """
    n = column.known / inflation
    names: tuple[str | int, ...] = column.labels or tuple(range(len(column.counts)))
    if column.hashed:
        titles = [f"{column.name!r} in hash group {group}" for group in range(_BUCKET_GROUPS)]
    else:
        titles = [f"{column.name!r} = {name!r}" for name in names]
    events = _grouped(column.counts, hashed=column.hashed)
    streams = [
        shift_rate(title, number / inflation, n, max_shift, 1.0) for title, number in zip(titles, events, strict=True)
    ]
    has_new = not column.hashed and column.min_count == 1  # else new ones count with the other categories
    if has_new:
        # The rate of unseen categories: Good (1953), with the variance of Esty (1983) as further events.
        times = Counter(column.counts)
        unseen = min(times[1] + 2 * times[2], column.known) / inflation
        streams.append(replace(shift_rate(f"{column.name!r} in new categories", unseen, n, max_shift, 1.0), side=1))
    streams = [replace(stream, weight=(1 - _QUALITY_SHARE / 2) / len(streams)) for stream in streams]
    streams.append(_null_stream(column.name, column.nulls, column.rows, inflation, max_increase))

    def count(window: WindowColumn) -> Measured:
        aligned, _, after = (names, (), (0,) * len(names)) if window.kind is None else window.align(column)
        if aligned[: len(names)] != names:
            raise InputError(
                f"column {column.name!r} is counted in hash buckets, and in {len(names)} categories in the profile: "
                "make the data's profile with like= the reference"
            )
        totals = _grouped(after[: len(names)], hashed=column.hashed)
        totals += [sum(after[len(names) :])] if has_new else []
        known = sum(after)
        rows = [*[known] * len(totals), window.rows]
        return np.array([*totals, window.rows - known], dtype=np.float64), np.array(rows, dtype=np.float64)

    return ColumnStreams(column.name, tuple(streams), count)


def _grouped(counts: Sequence[int], *, hashed: bool) -> list[int]:
    """Return the counts themselves, or of hash buckets those of 16 fixed groups."""
    return [sum(counts[group::_BUCKET_GROUPS]) for group in range(_BUCKET_GROUPS)] if hashed else list(counts)


def _null_stream(name: str, nulls: int, rows: int, inflation: float, max_increase: float) -> Stream:
    title = f"{name!r} null"
    return rate_stream(title, nulls / inflation, rows / inflation, max_increase, weight=_QUALITY_SHARE / 2)
