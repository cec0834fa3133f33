"""How far raw rows of the data lie from those that the profile kept, all columns at once: a classifier tells them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_modelserve.monitoring.comparing import Blocks
from pytest_modelserve.monitoring.drift.design import design_of
from pytest_modelserve.monitoring.profiled import CategoricalColumn, ProfiledColumn
from pytest_modelserve.monitoring.sketch import Sketch, aligned, spread
from pytest_modelserve.stats.held_out_scores import FOLDS, held_out_scores
from pytest_modelserve.stats.kernel_discriminant import feature_blocks, permutation_p_value
from pytest_modelserve.stats.kolmogorov import distance_bound, effective_rows

FEWEST_ROWS = 4 * FOLDS
"""Of either data set: with fewer, there is nothing to fit."""
MOST_CURRENT = 4_000
_SEED = 20_171
_PERMUTATIONS = 999, 20_000


@dataclass(frozen=True, slots=True)
class ClassifierChange:
    """All columns at once: the distance of held-out scores, 0 to 1, its chance if nothing changed, and the rows read.

    `newest` are the places, among the current rows that were read, of those that look least like the profile's. Both
    numbers of rows are those read, at most one of each block.
    """

    distance: float
    p_value: float
    reference_rows: float
    current_rows: float
    newest: tuple[int, ...]
    name: str = "all columns together"

    @property
    def value(self) -> float:
        """The distance."""
        return self.distance

    @property
    def effective(self) -> float:
        """The rows that the comparison is worth."""
        return effective_rows(self.reference_rows, self.current_rows)

    @property
    def high(self) -> float:
        """The bound that the true distance of this classifier exceeds in fewer than 5 % of samples."""
        return distance_bound(self.distance, self.effective)


def compare_rows(
    reference: Sketch, current: Sketch, columns: Sequence[ProfiledColumn], *, blocks: Blocks, level: float
) -> ClassifierChange:
    """The classifier two-sample comparison of two sketches with these `columns`, times left out.

    The p-value is that of a kernel discriminant by permutation of rows, precise enough for `level`; the distance that
    of held-out scores of a like classifier. Of each block of dependent rows at most one row is read. With fewer than 20
    rows on either side nothing is known: distance 0, a chance of 1 and a bound of 1.
    """
    _, then, now = aligned(reference, current)
    # Blocks of one length in both, so that rows can change places.
    block = max(blocks.reference, blocks.current)
    then = then[spread(len(then), max(reference.seen // block, 1))]
    kept = spread(len(now), max(current.seen // block, 1))
    now = now[kept]
    if min(len(then), len(now)) < FEWEST_ROWS:
        return ClassifierChange(0.0, 1.0, 0.0, 0.0, ())
    compared = [index for index, column in enumerate(columns) if column.kind != "datetime"]
    categorical = np.array([isinstance(columns[index], CategoricalColumn) for index in compared])
    rows = design_of(np.concatenate((then, now))[:, compared], categorical)
    is_current = np.arange(len(then) + len(now)) >= len(then)
    rng = np.random.default_rng(_SEED)
    features = feature_blocks(rows, rng=rng)
    fewest, most = _PERMUTATIONS
    p_value = permutation_p_value(features, is_current, most=min(max(math.ceil(5 / level), fewest), most), rng=rng)
    found = held_out_scores(features, is_current, rng=rng)
    scores = found.scores[is_current]
    newest = kept[np.argsort(-scores, kind="stable")[:5]]
    return ClassifierChange(found.distance, p_value, len(then), len(now), tuple(newest.tolist()))


def rows_to_compare(kept: int) -> int:
    """How many current rows to read beside `kept` ones of the profile: twice as many, or as many of a large sketch."""
    return max(min(2 * kept, MOST_CURRENT), kept)
