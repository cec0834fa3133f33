"""Do neighbouring rows depend on each other? The autocorrelation at lag one of numbers and of categories."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import UsageError


@dataclass(frozen=True, slots=True)
class LagOne:
    """An autocorrelation at lag one, −1 to 1, from so many pairs of neighbours; 0 from none where nothing varies."""

    estimate: float
    pairs: int

    def __post_init__(self) -> None:
        if not -1 <= self.estimate <= 1 or self.pairs < 0:
            raise UsageError(f"not an autocorrelation: {self.estimate} from {self.pairs} pairs")

    def low(self, z: float) -> float:
        """The estimate less `z` standard errors, each 1/√pairs; −1 at least, and without pairs.

        1/√pairs is the error where rows are independent (Bartlett 1946) and too large where they are not.
        """
        return max(self.estimate - z / math.sqrt(self.pairs), -1.0) if self.pairs else -1.0


def rank_autocorrelation(values: ArrayLike) -> LagOne:
    """Spearman's correlation of each value with the next one in its stretch; ties share their mean rank.

    `values` (stretches, length) are ranked together, so that levels that differ between stretches count as dependence.
    A pair with a NaN is left out. Values that are all equal say nothing: 0 from 0 pairs.

    UsageError for anything but two axes.
    """
    numbers = _table(np.asarray(values, dtype=np.float64))
    known = ~np.isnan(numbers)
    scores = np.zeros(numbers.shape)
    scores[known] = centred_ranks(numbers[known])
    squares = float(np.dot(scores.ravel(), scores.ravel()))
    pairs = int(np.count_nonzero(known[:, :-1] & known[:, 1:]))
    if not squares or not pairs:
        return LagOne(0.0, 0)
    products = float((scores[:, :-1] * scores[:, 1:]).sum())  # an unknown value scores 0
    estimate = products / pairs / (squares / int(np.count_nonzero(known)))
    return LagOne(min(max(estimate, -1.0), 1.0), pairs)


def agreement_autocorrelation(codes: NDArray[np.int64]) -> LagOne:
    """How much more often neighbours are of one category than by chance: (P(equal) − Σp²)/(1 − Σp²).

    `codes` (stretches, length) are numbers from 0 for categories and −1 for an unknown one, whose pairs are left out.
    For two categories it is their ordinary autocorrelation. One category alone says nothing: 0 from 0 pairs. Source:
    Scott's π of each row with its neighbour; Scott (1955), Public Opinion Quarterly 19, 321–325.

    UsageError for anything but two axes.
    """
    table = _table(codes)
    known = table >= 0
    together = known[:, :-1] & known[:, 1:]
    pairs = int(together.sum())
    shares = np.bincount(table[known]) / max(int(known.sum()), 1)
    by_chance = float(np.dot(shares, shares))
    if not pairs or by_chance >= 1:
        return LagOne(0.0, 0)
    equal = float(((table[:, :-1] == table[:, 1:]) & together).sum()) / pairs
    return LagOne(min(max((equal - by_chance) / (1 - by_chance), -1.0), 1.0), pairs)


def centred_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean ranks less their mean, as scipy.stats.rankdata has them, without its second of importing."""
    order = np.argsort(values)
    ordered = values[order]
    ranks = np.empty(values.size)
    changes = ordered[1:] != ordered[:-1]
    if changes.all():
        ranks[order] = np.arange(values.size)
    else:
        first = np.flatnonzero(np.concatenate(([True], changes)))
        sizes = np.diff(first, append=values.size)
        ranks[order] = np.repeat(first + (sizes - 1) / 2, sizes)
    ranks -= (values.size - 1) / 2
    return ranks


def _table(values: NDArray[Any]) -> NDArray[Any]:
    if values.ndim != 2:
        raise UsageError(f"values have two axes, stretches and their rows, not the shape {values.shape}")
    return values
