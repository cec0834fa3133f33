"""Where a profile compares distributions: at about equally many rows, and on either side of every heavy value."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pytest_modelserve.monitoring.binning import MAX_CELLS, Floats, Integers

_COARSEST_CELLS = 256
"""About one a bin: the coarsest grid that is tried. Each further try halves its cells until the edges fit."""
_SLACK = 2.0**-20
"""How far from the one value of a constant column its edges lie, relative to it: wider than float32 rounds."""
_SLACK_OF_ZERO = 2.0**-500
"""The same for a column of zeros, which tells no scale: as good as nothing, and far from where doubles end."""


def choose_edges(ordered: Floats, *, bins: int) -> Floats:
    """The edges (k,), rising, between bins that hold about n/bins of the `ordered` values (n,), finite and rising.

    Each lies between two neighbouring distinct values, so that a value that was rounded another way stays in its bin.
    A value that holds more than n/bins rows has an edge on either side, also at the ends of the range; so has every
    value where at most `bins` are distinct, and bins then lose nothing. At most 2·bins edges.

    Edges move to a grid on which a table finds bins fast, if none passes more than n/(2·bins) rows on its way and none
    an end of the range; else they stay, and counting is slower.
    """
    n = ordered.size
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] > ordered[:-1], [True])))
    below = starts if starts.size - 1 <= bins else _quantile_starts(starts, bins)
    wanted = _between(ordered, below)
    tolerance = np.where((below == 0) | (below == n), 0, n // (2 * bins))
    for moved in _on_grids(wanted):
        if (np.abs(np.searchsorted(ordered, moved, side="left") - below) <= tolerance).all():
            return np.unique(moved)
    return np.unique(wanted)


def _quantile_starts(starts: Integers, bins: int) -> Integers:
    """The rows below each edge: of `starts`, the first rows of each distinct value and n, those beside quantiles."""
    n = starts[-1]
    quantiles = np.arange(1, bins) * n / bins
    right = np.searchsorted(starts, quantiles, side="left")
    left = right - (starts[right] > quantiles)
    heavy = starts[right] - starts[left] > n / bins
    nearest = np.where(quantiles - starts[left] < starts[right] - quantiles, left, right)[~heavy]
    chosen: Integers = starts[np.unique(np.concatenate((left[heavy], right[heavy], nearest)))]
    return chosen


def _between(ordered: Floats, below: Integers) -> Floats:
    """An edge with exactly `below` (k,) of the ordered rows below it: halfway between two rows, or beyond the range."""
    upper, lower = ordered[np.minimum(below, ordered.size - 1)], ordered[np.maximum(below - 1, 0)]
    middle = lower / 2 + upper / 2
    edges = np.where(middle > lower, middle, upper)
    first, last = ordered[0], ordered[-1]
    second, next_to_last = ordered[ordered > first][:1], ordered[ordered < last][-1:]
    slack = abs(first) * _SLACK or _SLACK_OF_ZERO
    with np.errstate(over="ignore"):  # what is infinite becomes the last number below
        edges[below == 0] = first - (slack if not second.size else (second[0] / 2 - first / 2))
        edges[below == ordered.size] = last + (slack if not second.size else (last / 2 - next_to_last[0] / 2))
    return np.clip(edges, -np.finfo(np.float64).max, np.finfo(np.float64).max)


def _on_grids(wanted: Floats) -> Iterator[Floats]:
    """The wanted edges moved to the nearest points of ever finer grids: those of EvenCells, then of RelativeCells."""
    with np.errstate(over="ignore"):
        spread = wanted[-1] - wanted[0] or abs(wanted[0]) or 1.0
    if math.isfinite(spread):
        coarsest = math.frexp(spread / _COARSEST_CELLS)[1]
        finest = math.frexp(spread / (MAX_CELLS - 4))[1]
        for exponent in range(coarsest, finest - 1, -1):
            half = math.ldexp(0.5, exponent)
            yield (4 * np.round((wanted / half - 3) / 4) + 3) * half
    if wanted[0] > 0:
        bits = wanted.view(np.int64)
        cells = int(bits[-1] - bits[0])
        for shift in range(min(52, (cells // _COARSEST_CELLS).bit_length()), (cells // MAX_CELLS).bit_length(), -1):
            yield ((bits + (1 << (shift - 1))) >> shift << shift).view(np.float64)
