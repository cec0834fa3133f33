"""Change points of many series: circular binary segmentation, with one error rate for all series."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.intervals import check_count, check_error_rate, check_vector, holm

Key = TypeVar("Key", bound=Hashable)
Floats = NDArray[np.float64]

FEWEST_VALUES = 8
"""Shorter series are not tested: not even 8 values in the best order are significant among several series."""
_EXCEEDANCES = 10
_CHUNK = 1_000
_MOST_PERMUTATIONS = 200_000
_MOST_UNITS = 5.0


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """A change between two neighboring values of a series.

    `at` is the index of the first value after it, `before` and `after` are the medians of the values between it and its
    neighbors. `p_value` is that of the series, adjusted for the number of series.
    """

    at: int
    p_value: float
    before: float
    after: float


def change_points(
    series: Mapping[Key, ArrayLike], *, error_rate: float = 0.05, min_segment: int = 3, seed: int = 0
) -> dict[Key, tuple[ChangePoint, ...]]:
    """Return the change points of each series, in order; () for a series without any.

    Each series is tested for exchangeability. The statistic is the largest standardized difference of the mean of an
    interval from that of the other values, max |S_j - S_i| / √((j - i) (n - j + i)) with the partial sums S. It finds
    lasting changes and changes that went back. Values count as their deviations from the median in units of the median
    deviation, at most 5, so that outliers hide no change. The p-value comes from random permutations, which end early
    where it is large. Holm's procedure over the series keeps the probability that a series without change has a change
    point to `error_rate`, however the series depend on each other. Constant series and those with fewer than 8 values
    cannot be significant and do not count.

    Within a changed series both ends of the interval are change points. The parts are searched again at `error_rate`
    over the number of series. A point is kept only if the means on both of its sides differ at that level, again by
    permutations. That level is approximate, because the places are estimates. Each place is where the absolute
    deviations from the medians on both sides are least.

    A trend or dependence between neighboring values is a deviation from exchangeability, too. Sources: Olshen,
    Venkatraman, Lucito and Wigler (2004), Biostatistics 5, 557-572; Besag and Clifford (1991), Biometrika 78, 301-304;
    Holm (1979), Scandinavian Journal of Statistics 6, 65-70.

    Args:
        series: The values (n,) of each series in order, all finite.
        error_rate: The probability of any change point in a table of series without change.
        min_segment: The smallest number of values between two change points, and before the first and after the last.
        seed: Of the permutations. The same series and seed have the same result.

    Returns:
        The change points of each key of `series`.

    Raises:
        UsageError: NaN or infinities, more than one axis, an error rate outside (0, 0.5), or a segment of no value.

    Example:
        >>> from pytest_modelserve.stats import change_points
        >>> found = change_points({"p95": [2.1, 2.0, 2.2, 2.1, 2.0, 2.1, 2.2, 2.1, 3.0, 3.1, 2.9, 3.0, 3.1, 3.2]})
        >>> [(point.at, point.before, point.after) for point in found["p95"]]
        [(8, 2.1, 3.05)]
    """
    check_error_rate("error_rate", error_rate)
    check_count("min_segment", min_segment, minimum=1)
    values = {key: _checked(key, each) for key, each in series.items()}
    fewest = max(FEWEST_VALUES, 2 * min_segment)
    tested = {key: each for key, each in values.items() if each.size >= fewest and (each != each[0]).any()}
    level = error_rate / max(1, len(tested))
    permutations = min(_MOST_PERMUTATIONS, max(2 * _CHUNK, math.ceil(2 / level))) - 1
    search = _Search(min_segment, permutations, seed, level)
    adjusted = dict(zip(tested, holm([search.p_value(each) for each in tested.values()]).tolist(), strict=True))
    return {
        key: _points(each, search, adjusted[key]) if adjusted.get(key, 1.0) <= error_rate else ()
        for key, each in values.items()
    }


def _checked(key: Hashable, values: ArrayLike) -> Floats:
    numbers = check_vector(f"series {key!r}", values)
    if not np.isfinite(numbers).all():
        raise UsageError(f"series {key!r} holds NaN or infinities: leave such values out")
    return numbers


def _points(values: Floats, search: _Search, p_value: float) -> tuple[ChangePoint, ...]:
    """Return the change points of a series whose test is significant: at least one."""
    places = sorted(search.places(values, is_significant=True))
    while len(places) > 1:
        parts = np.split(values, places)
        p_values = [search.p_value(np.concatenate(sides), at=sides[0].size) for sides in pairwise(parts)]
        weakest = int(np.argmax(p_values))
        if p_values[weakest] <= search.level:
            break
        del places[weakest]
    for number in range(len(places)):
        start, end = [0, *places][number], [*places[1:], values.size][number]
        places[number] = start + _best_split(values[start:end], search.min_segment)
    medians = [float(np.median(part)) for part in np.split(values, places)]
    return tuple(
        ChangePoint(at, p_value, before, after) for at, (before, after) in zip(places, pairwise(medians), strict=True)
    )


def _best_split(values: Floats, min_segment: int) -> int:
    def deviation(at: int) -> float:
        return sum(float(np.abs(part - np.median(part)).sum()) for part in (values[:at], values[at:]))

    return min(range(min_segment, values.size - min_segment + 1), key=deviation)


@dataclass(frozen=True, slots=True)
class _Search:
    min_segment: int
    permutations: int
    seed: int
    level: float

    def p_value(self, values: Floats, *, at: int | None = None) -> float:
        """Return the p-value of any change, or of one at a given place.

        It is Besag and Clifford's sequential one, which ends at the tenth statistic at least as large.
        """
        scores = _scores(values)
        statistic = self._largest(scores[None], at)[0]
        generator = np.random.default_rng(self.seed)
        exceeding = seen = 0
        while seen < self.permutations:
            rows = min(_CHUNK if seen else _EXCEEDANCES**2, self.permutations - seen)
            shuffled = generator.permuted(np.tile(np.sort(scores), (rows, 1)), axis=1)
            reached = np.flatnonzero(self._largest(shuffled, at) >= statistic)
            if exceeding + reached.size >= _EXCEEDANCES:
                return _EXCEEDANCES / (seen + int(reached[_EXCEEDANCES - exceeding - 1]) + 1)
            exceeding += reached.size
            seen += rows
        return (exceeding + 1) / (self.permutations + 1)

    def _largest(self, scores: Floats, at: int | None) -> Floats:
        if at is not None:
            return np.asarray(np.round(np.abs(scores[:, :at].mean(axis=1) - scores[:, at:].mean(axis=1)), 9))
        found = [statistics.max(axis=1) for _, _, statistics in _differences(scores, self.min_segment)]
        return np.asarray(np.max(found, axis=0))

    def places(self, values: Floats, *, is_significant: bool = False, start: int = 0) -> Iterator[int]:
        """Yield the ends of the interval that differs most, then those inside the parts that they make."""
        if values.size < 2 * self.min_segment or (values == values[0]).all():
            return
        if not is_significant and self.p_value(values) > self.level:
            return
        candidates = (
            (float(found[0, best]), i, int(ends[best]))
            for i, ends, found in _differences(_scores(values)[None], self.min_segment)
            for best in [int(found[0].argmax())]
        )
        _, first, last = max(candidates, key=lambda each: each[0])
        inner = [at for at in (first, last) if 0 < at < values.size]
        yield from (start + at for at in inner)
        for offset, part in zip([0, *inner], np.split(values, inner), strict=True):
            yield from self.places(part, start=start + offset)


def _scores(values: Floats) -> Floats:
    """Return the deviations from the median in units of their own median, at most 5 of them."""
    deviations = values - np.median(values)
    size = np.abs(deviations)
    return np.asarray(np.clip(deviations / (np.median(size) or size.mean()), -_MOST_UNITS, _MOST_UNITS))


def _differences(scores: Floats, min_segment: int) -> Iterator[tuple[int, NDArray[np.intp], Floats]]:
    """Yield each start i, the ends j, and the statistics (series, ends) of these intervals of scores (series, n)."""
    n = scores.shape[1]
    sums = np.zeros((len(scores), n + 1))
    np.cumsum(scores - scores.mean(axis=1, keepdims=True), axis=1, out=sums[:, 1:])
    for i in (0, *range(min_segment, n - min_segment + 1)):
        ends = np.arange(i + min_segment, n + 1)
        ends = ends[((ends == n) | (ends <= n - min_segment)) & (n - ends + i >= min_segment)]
        if ends.size:
            length = ends - i
            # Rounded, so that equal statistics of different permutations are equal numbers.
            yield i, ends, np.round(np.abs(sums[:, ends] - sums[:, [i]]) / np.sqrt(length * (n - length)), 9)
