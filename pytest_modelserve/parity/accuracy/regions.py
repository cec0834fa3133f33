"""Regions of few conditions: features as bins, and the scan for those in which a figure is largest.

Every feature is divided into bins: quantiles of numbers, categories, missing values. A region is one condition, a range
of bins, on each of up to three features. All regions of one and two conditions are scored, from tables of counts and
sums over pairs of features. The best region is shortlisted and its rows set aside, until the shortlist is full.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.monitoring.columns import Column
from pytest_modelserve.monitoring.formats import format_value
from pytest_modelserve.parity.accuracy.conditions import column_text, literal_text
from pytest_modelserve.parity.accuracy.estimates import Estimate, Mask

_BINS = 12
"""Bins of a numeric feature: 77 ranges of them."""
_FINE_BINS = 60
"""Bins to which the ends of a chosen range are moved."""
_CATEGORIES = 30
"""Categories of a feature that are searched, the most frequent."""
_PAIRED = 64
"""Features whose pairs are searched, those with the best single conditions: 2,016 pairs."""
_COST = 0.3
"""What the score of a range with two ends is less: there are more of them than with one."""
_MARGIN = 0.5
"""What the score of one more condition must exceed its expected maximum by: two standard deviations of a maximum."""
_CUT = 4.0
"""Standard deviations beyond which the search, and not the test, cuts off what a row adds."""
_EXTENDED = 40
"""Regions of two conditions to which a third is added."""


_Region = tuple[tuple["_Feature", int], ...]
"""The features of a region, each with the number of its condition."""


@dataclass(frozen=True, slots=True)
class _OpenRows:
    """The rows that no shortlisted region has, and what each adds to the change of the metric less the `mean`.

    Most rows of a comparison of labels add the same, `base`: only the `others` are summed up one by one.
    """

    rows: NDArray[np.intp]
    mean: float
    base: float
    mean_square: float
    largest: float
    others: NDArray[np.intp]
    more: NDArray[np.float64]

    @classmethod
    def of(cls, rows: NDArray[np.intp], changes: NDArray[np.float64]) -> _OpenRows:
        """Return these rows, given what each row of all adds (n,)."""
        mean = float(changes[rows].mean())
        residuals = changes[rows] - mean
        base = float(np.median(residuals))
        others = np.flatnonzero(residuals != base)
        mean_square, largest = float((residuals**2).mean()), float(np.abs(residuals).max())
        return cls(rows, mean, base, mean_square, largest, others, residuals[others] - base)

    def tables(self, cells: NDArray[Any], size: int) -> NDArray[np.float64]:
        """Return the number of rows and the sum in each cell, (2, size)."""
        counts = np.bincount(cells, minlength=size)
        totals = self.base * counts + np.bincount(cells[self.others], weights=self.more, minlength=size)
        return np.stack([counts, totals])


class RegionScan:
    """The features of the rows that are searched, and what each row adds to the change of the metric, (n,).

    The score of a region of N rows with residual sum S is S/√(N·v + m·S/3): v is the mean square of all rows, m their
    largest residual. By Bernstein's inequality a score of s has probability at most exp(−s²/2). Residuals are
    limited to 4 standard deviations, so that a few rows are no region. Regions of more conditions are more numerous,
    and their best score is higher by chance. The expected maximum of one normal value for each cell of bins is
    subtracted before they are compared.
    """

    def __init__(
        self, features: Sequence[_Feature], changes: NDArray[np.float64], *, min_rows: int, min_change: float
    ) -> None:
        self.features, self.changes, self.min_rows, self.min_change = features, changes, min_rows, min_change
        self.notes: tuple[str, ...] = ()
        self.paired = features
        if len(features) > _PAIRED:
            every = _OpenRows.of(np.arange(changes.size), changes)
            scores = [self._best_range(every, feature)[0] for feature in features]
            best = sorted(np.argsort(-np.array(scores), kind="stable")[:_PAIRED].tolist())
            self.paired = [features[index] for index in best]
            self.notes = (f"pairs of conditions are searched on {_PAIRED} of {len(features)} features, the best alone",)
        self.cells = _combinations([feature.members.shape[1] for feature in self.paired])
        self.numbers = _combinations([len(feature.members) for feature in self.paired])
        self.tried = 0

    @classmethod
    def of(
        cls, estimate: Estimate, rows: Mask, columns: Mapping[str, Column], *, min_rows: int, min_change: float
    ) -> RegionScan:
        """Return the scan of some rows (n,); UsageError where no feature has two values there."""
        found = estimate.linearized()
        changes = found.influence[rows] * (rows.sum() / rows.size)
        changes = found.value + np.clip(changes, *(_CUT * float(changes.std()) * np.array([-1, 1])))
        features = [made for column in columns.values() if (made := _Feature.of(column, rows)) is not None]
        if not features:
            raise UsageError("features have one value each in the rows searched: there are no regions")
        return cls(features, changes, min_rows=min_rows, min_change=min_change)

    def best_regions(self, depth: int, shortlist: int) -> Iterator[str]:
        """Yield the condition of the best region, then of the best one of the remaining rows, and so on."""
        self.tried = sum(self.numbers[: min(depth, 2)])
        remaining = np.ones(self.changes.size, dtype=np.bool_)
        for _ in range(shortlist):
            chosen = np.flatnonzero(remaining)
            if chosen.size < 2 * self.min_rows or not np.ptp(self.changes[chosen]):
                return
            rows = _OpenRows.of(chosen, self.changes)
            score, region = self._best(rows, depth)
            if score == -math.inf:
                return
            region = self._refined(rows, self._extended(rows, region, depth))
            yield " and ".join(feature.condition(number) for feature, number in region)
            remaining &= ~self._inside(region)

    def _best(self, rows: _OpenRows, depth: int) -> tuple[float, _Region]:
        """Return the best region with its score; −inf where none has enough rows and a loss."""
        found: list[list[tuple[float, _Region]]] = [[]]
        for feature in self.features:
            score, best = self._best_range(rows, feature)
            found[0].append((score, ((feature, best),)))
        if depth > 1:
            found.append(list(self._best_pairs(rows)))
        if depth > 2:
            begun = sorted(found[1], key=lambda each: -each[0])[:_EXTENDED]
            found.append(list(self._best_triples(rows, [region for _, region in begun])))
        compared = [
            (score - _expected_maximum(number), region)
            for regions, number in zip(found, self.cells, strict=False)
            for score, region in regions
        ]
        return max(compared, key=lambda each: each[0])

    def _best_range(self, rows: _OpenRows, feature: _Feature, inside: Mask | None = None) -> tuple[float, int]:
        """Return the best score of a condition on one feature, among the rows `inside` if given, and its number."""
        size = feature.members.shape[1]
        cells = feature.bins[rows.rows]
        if inside is not None:
            cells = np.where(inside[rows.rows], cells, size)
        scores = self._scores(rows.tables(cells, size + 1)[:, :size] @ feature.members.T, rows, feature.costs)
        best = int(scores.argmax())
        return float(scores[best]), best

    def _best_pairs(self, rows: _OpenRows) -> Iterator[tuple[float, _Region]]:
        """Yield the best region of each pair of features."""
        bins = [feature.bins[rows.rows] for feature in self.paired]
        for (one, of_one), (other, of_other) in combinations(zip(self.paired, bins, strict=True), 2):
            shape = one.members.shape[1], other.members.shape[1]
            tables = rows.tables(of_one * shape[1] + of_other, shape[0] * shape[1]).reshape(2, *shape)
            scores = self._scores(one.members @ tables @ other.members.T, rows, one.costs[:, np.newaxis] + other.costs)
            first, second = divmod(int(scores.argmax()), scores.shape[1])
            yield float(scores[first, second]), ((one, first), (other, second))

    def _best_triples(self, rows: _OpenRows, pairs: Sequence[_Region]) -> Iterator[tuple[float, _Region]]:
        """Yield the best region of three conditions that begins with each of the pairs, for each third feature."""
        for pair in pairs:
            inside = self._inside(pair)
            for feature in self.paired:
                if all(feature is not used for used, _ in pair):
                    score, best = self._best_range(rows, feature, inside)
                    self.tried += len(feature.members)
                    yield score, (*pair, (feature, best))

    def _extended(self, rows: _OpenRows, region: _Region, depth: int) -> _Region:
        """Return the region with one more condition, as long as its loss is in one part of it."""
        while len(region) < depth:
            part = _OpenRows.of(rows.rows[self._inside(region)[rows.rows]], self.changes)
            others = [feature for feature in self.features if all(feature is not used for used, _ in region)]
            found = [(*self._best_range(part, feature), feature) for feature in others]
            score, best, feature = max(found, key=lambda each: each[0], default=(-math.inf, 0, None))
            if feature is None or score <= _expected_maximum(self.cells[0]) + _MARGIN:
                break
            region = (*region, (feature, best))
        return region

    def _refined(self, rows: _OpenRows, region: _Region) -> _Region:
        """Return the region with the ends of its ranges moved to the best of finer quantiles, one after the other."""
        for place, (feature, number) in enumerate(region):
            others = (*region[:place], *region[place + 1 :])
            fine = _Feature.of(feature.column, feature.rows, bins=_FINE_BINS)
            if fine is None or len(fine.members) == len(feature.members):
                continue
            inside = self._inside(others)
            score, best = self._best_range(rows, fine, inside)
            if score > self._score_of(rows, feature, number, inside):
                region = (*region[:place], (fine, best), *region[place + 1 :])
        return region

    def _score_of(self, rows: _OpenRows, feature: _Feature, number: int, inside: Mask) -> float:
        size = feature.members.shape[1]
        cells = np.where(inside[rows.rows], feature.bins[rows.rows], size)
        return float(
            self._scores(rows.tables(cells, size + 1)[:, :size] @ feature.members[number], rows, feature.costs[number])
        )

    def _scores(
        self, tables: NDArray[np.float64], rows: _OpenRows, costs: NDArray[np.float64] | float
    ) -> NDArray[np.float64]:
        counts, totals = tables
        refused = (counts < self.min_rows) | (rows.rows.size - counts < self.min_rows) | (totals <= 0)
        refused |= totals + (rows.mean - self.min_change) * counts <= 0
        spread = counts * rows.mean_square + rows.largest * totals / 3
        return np.where(refused, -np.inf, totals / np.sqrt(np.where(refused, 1.0, spread)) - costs)

    def _inside(self, region: _Region) -> Mask:
        inside = np.ones(self.changes.size, dtype=np.bool_)
        for feature, number in region:
            inside &= feature.members[number].astype(np.bool_)[feature.bins]
        return inside


def _combinations(sizes: Sequence[int]) -> tuple[int, int, int]:
    """Return the number of elements of sets of these sizes, of pairs from two sets, and of triples from three."""
    one, two, three = (sum(size**power for size in sizes) for power in (1, 2, 3))
    return one, (one**2 - two) // 2, (one**3 - 3 * one * two + 2 * three) // 6


def _expected_maximum(number: int) -> float:
    """Return about the expected maximum of so many standard normal values.

    √(2·ln n) − (ln ln n + ln 4π)/(2·√(2·ln n)): Leadbetter, Lindgren and Rootzén, Extremes, 1983, theorem 1.5.3. For
    as many values as there are cells it is within 0.3 of the best score of shuffled rows, 12 or 50 features.
    """
    root = math.sqrt(2 * math.log(max(number, 8)))
    return root - (2 * math.log(root) - math.log(2) + math.log(4 * math.pi)) / (2 * root)


# The features as bins, and their conditions as ranges of bins.


@dataclass(frozen=True, slots=True, eq=False)
class _Feature:
    """A column as the bin of each searched row, (n,), and its conditions as sets of bins, (conditions, bins)."""

    column: Column
    rows: Mask
    bins: NDArray[np.int32]
    members: NDArray[np.float64]
    costs: NDArray[np.float64]
    condition: Callable[[int], str]

    @classmethod
    def of(cls, column: Column, rows: Mask, *, bins: int = _BINS) -> _Feature | None:
        """Return the feature of a column in these rows (n,); None where it has a single bin."""
        values = column.values[rows]
        if values.dtype.kind == "O":
            cells, ranges, text = _category_bins(column, values)
        else:
            cells, ranges, text = _number_bins(column, values, bins)
        ends, count = np.array(ranges).reshape(-1, 2), int(cells.max()) + 1
        ends = ends[ends[:, 1] - ends[:, 0] + 1 < count]
        if not ends.size:
            return None
        at = np.arange(count)
        members = ((ends[:, :1] <= at) & (at <= ends[:, 1:])).astype(np.float64)
        costs = _COST * ((ends[:, 0] > 0) & (ends[:, 1] < count - 1) & (ends[:, 0] < ends[:, 1]))
        return cls(column, rows, cells, members, costs, lambda number: text(*ends[number].tolist()))


_Binned = tuple[NDArray[np.int32], list[tuple[int, int]], Callable[[int, int], str]]
"""The bin of each row, the first and last bin of each condition, and the text of one with these."""


def _category_bins(column: Column, values: NDArray[Any]) -> _Binned:
    """Return the bins of texts: the frequent categories, missing values, and the rest."""
    name, counts = column_text(column.name), Counter(values.tolist())
    has_null = counts.pop(None, 0) > 0
    common: list[str | None] = sorted(counts, key=lambda category: (-counts[category], category))[:_CATEGORIES]
    common += [None] * has_null
    numbers = {category: number for number, category in enumerate(common)}

    def text(first: int, _: int) -> str:
        category = common[first]
        return f"{name} is missing" if category is None else f"{name} == {literal_text(category)}"

    cells = np.array([numbers.get(value, len(common)) for value in values.tolist()], dtype=np.int32)
    return cells, [(number, number) for number in range(len(common))], text


def _number_bins(column: Column, values: NDArray[Any], count: int) -> _Binned:
    """Return the bins of numbers: quantiles, or single values if they are few, and missing values."""
    name, numbers = column_text(column.name), values.astype(np.float64)
    null = np.isnan(numbers)
    edges = _edges(column, np.sort(numbers[np.isfinite(numbers)]), count)
    last = edges.size
    cells = np.searchsorted(edges, numbers, side="left").astype(np.int32)  # up to an edge, and it included
    cells[null] = last + 1

    def text(first: int, end: int) -> str:
        if first > last:
            return f"{name} is missing"
        if first == 0 and end == last:
            return f"{name} is not missing"
        if column.kind == "boolean":
            return f"{name} == {bool(first)}"
        low = _edge_text(column, edges[first - 1]) if first else ""
        high = _edge_text(column, edges[end]) if end < last else ""
        if not low or not high:
            return f"{name} > {low}" if low else f"{name} <= {high}"
        if column.kind == "integer" and edges[end] - edges[first - 1] == 1:
            return f"{name} == {high}"
        return f"{low} < {name} <= {high}"

    ranges = [(first, end) for first in range(last + 1) for end in range(first, last + 1)]
    return cells, [*ranges, (last + 1, last + 1)] if null.any() else ranges, text


def _edges(column: Column, ordered: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return the upper ends of the bins but the last: readable numbers near quantiles, or all values of few."""
    distinct = np.unique(ordered)
    if distinct.size <= count:
        return distinct[:-1]
    wanted = np.unique(np.quantile(ordered, np.arange(1, count) / count, method="inverted_cdf"))
    wanted = wanted[wanted < distinct[-1]]
    gap = float(np.diff(wanted).min()) if wanted.size > 1 else float(np.ptp(distinct))
    if column.kind == "datetime":
        unit = next((unit for unit in (86_400, 3600, 60) if unit <= gap), 1)
        wanted = np.floor(wanted / unit) * unit
        return np.asarray(np.unique(wanted))
    for digits in range(2, 17):
        rounded = np.array([float(f"{edge:.{digits}g}") for edge in wanted])
        if (np.abs(rounded - wanted) <= 0.1 * gap).all():
            wanted = rounded
            break
    edges: NDArray[np.float64] = np.unique(wanted)
    return edges


def _edge_text(column: Column, edge: float) -> str:
    return f'"{format_value("datetime", edge)}"' if column.kind == "datetime" else literal_text(edge)
