"""When the calls that were timed are judged: one look, or several at growing numbers, under one error budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pytest_modelserve.stats import samples_for_quantile, spend

_SAMPLE_FACTOR = 8
"""Calls at the first look beyond the fewest that can pass: with 8 times as many, PASS may rest on about the 97th
percentile instead of the slowest call of all, so that one interruption by the host does not decide."""
_LEAST_S = 0.25
"""Fast calls go on for so long before the first look: some hundred of 10 µs would be over within one mood of the
host."""
PATIENCE_NS = 5_000_000_000
"""What all calls may take together, and when no further look is begun; the fewest that can pass go on until the cap."""
_MOST_CALLS = 100_000
_MOST_LOOKS = 4
_GROWTH = 3
"""Some three times as many calls at each look: four looks reach from a quarter of a second to the 5 s."""


@dataclass(frozen=True, slots=True)
class Looks:
    """After how many calls a quantile is judged, and the levels of its bounds at each of these looks.

    `fewest` is how many independent calls bound the quantile at all.
    """

    calls: tuple[int, ...]
    low_level: float
    high_level: float
    fewest: int


def plan_looks(quantile: float, *, low_error: float, high_error: float, typical_ns: float) -> Looks:
    """The looks for calls of about `typical_ns` nanoseconds: as many as 5 s have room for, four at most.

    The first comes after eight times the fewest calls that can bound the quantile, or a quarter of a second of them if
    those are more; the others lie about three times as far apart. Slow calls get one look, and with it both errors
    undivided. Known before the first timed call, so that the split does not depend on what is judged.
    """
    affordable = min(_MOST_CALLS, int(PATIENCE_NS / typical_ns))
    for count in range(_MOST_LOOKS, 0, -1):
        low_level, high_level = 1 - spend(low_error, count), 1 - spend(high_error, count)
        fewest = samples_for_quantile(quantile, low_level=low_level, high_level=high_level)
        first = max(_SAMPLE_FACTOR * fewest, int(_LEAST_S * 1e9 / typical_ns))
        last = min(affordable, first * _GROWTH ** (count - 1))
        if last > first * _GROWTH ** (count - 1.5):
            break
    calls = np.geomspace(first, last, count).round() if count > 1 else [max(fewest, last)]
    return Looks(tuple(int(n) for n in calls), low_level, high_level, fewest)
