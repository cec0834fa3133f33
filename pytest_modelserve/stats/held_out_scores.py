"""How well a classifier tells two samples apart in rows that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.stats.kernel_discriminant import Block, Floats

FOLDS = 5
_AXES = 48
"""Principal axes of each block that the classifier sees: beyond these its ridge leaves nothing of digits or tables."""
_RIDGE = 0.1


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Each row's score (n,), the higher the more it looks like a current one, and how far the scores lie apart.

    `distance`, 0 to 1, is the largest amount by which the current rows' distribution function of scores lies below the
    other rows': the one-sided Kolmogorov-Smirnov distance. It estimates from below how far the two distributions of
    rows lie apart (total variation), as far as this classifier sees.
    """

    scores: Floats
    distance: float


def held_out_scores(blocks: tuple[Block, ...], current: NDArray[np.bool_], *, rng: np.random.Generator) -> HeldOut:
    """The scores of ridge discriminants, each row's by one that was fitted to four fifths of the rows without it.

    `blocks` are those of `feature_blocks` for all rows, `current` (n,) marks the current ones, at least one a fold.
    """
    seen = [block.axes[:, :_AXES] / np.sqrt(block.variances[0]) for block in blocks if block.variances.size]
    if not seen:
        return HeldOut(np.zeros(current.size), 0.0)
    rows = np.hstack(seen)
    fold = np.empty(current.size, dtype=np.int64)
    for label in (False, True):
        size = int((current == label).sum())
        fold[current == label] = rng.permutation(np.arange(size) % FOLDS)
    scores = np.empty(current.size)
    for held_out in range(FOLDS):
        fitted, out = fold != held_out, fold == held_out
        before, after = rows[fitted & ~current].mean(axis=0), rows[fitted & current].mean(axis=0)
        centred = rows[fitted] - rows[fitted].mean(axis=0)
        covariance = centred.T @ centred / len(centred)
        covariance[np.diag_indices_from(covariance)] += _RIDGE
        scores[out] = (rows[out] - (before + after) / 2) @ np.linalg.solve(covariance, after - before)
    return HeldOut(scores, one_sided_distance(scores[~current], scores[current]))


def one_sided_distance(reference: Floats, current: Floats) -> float:
    """The largest amount, 0 to 1, by which the current values' distribution function lies below the reference's."""
    both = np.concatenate((reference, current))
    apart = np.searchsorted(np.sort(reference), both, side="right") / len(reference)
    apart -= np.searchsorted(np.sort(current), both, side="right") / len(current)
    return max(float(apart.max()), 0.0)
