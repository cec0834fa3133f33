"""The area under the ROC curve, and how it scatters: DeLong's structural components."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import _arguments
from pytest_modelserve.stats.linearised import Linearised, unequal


def auc_linearised(
    scores: ArrayLike, positive: NDArray[np.bool_], weights: NDArray[np.float64] | None = None
) -> Linearised:
    """The probability that a positive row has a higher score than a negative one, ties counted half, row by row.

    `scores` (n,) may be any numbers that rise with the belief in the positive class, infinities included; `positive`
    (n,) says which rows are. `weights` (n,) count rows several times. A positive row pulls by its structural component
    V₁₀ (the share of negative rows below it), a negative one by V₀₁ (the share of positive rows above it), each less
    the area and over the share of its class. The sum of their squares over n² is DeLong's variance but for the factors
    m/(m − 1) of its two sample variances. Rows of one cluster add their pulls up as in Obuchowski (1997), Biometrics
    53, 567–578.

    `largest` is given only where no row pulls at all, with perfectly separated classes: the area is 1, or 0, and
    DeLong's variance says nothing.

    By sorting, O(n log n). Source: DeLong, DeLong and Clarke-Pearson (1988), Biometrics 44, 837–845; the algorithm, Sun
    and Xu (2014), IEEE Signal Processing Letters 21, 1389–1393.

    UsageError for NaN, for arrays of different lengths and unless both classes have rows of positive weight.
    """
    numbers = _arguments.vector("scores", scores)
    if numbers.size != positive.size:
        raise UsageError(f"every score has a class: {numbers.size} scores, {positive.size} classes")
    if np.isnan(numbers).any():
        raise UsageError("scores that are NaN have no rank: leave them out")
    counted = np.ones(numbers.size) if weights is None else weights
    of_positive, of_negative = counted[positive], counted[~positive]
    whole_positive, whole_negative = float(of_positive.sum()), float(of_negative.sum())
    if not (whole_positive > 0 and whole_negative > 0):
        raise UsageError("an area under the ROC curve needs rows of both classes")
    components = np.empty(numbers.size)
    components[positive] = _share_below(numbers[positive], numbers[~positive], of_negative)
    components[~positive] = 1 - _share_below(numbers[~positive], numbers[positive], of_positive)
    area = float(of_positive @ components[positive]) / whole_positive
    n = numbers.size
    scale = np.where(positive, n / whole_positive, n / whole_negative)
    influence = counted * (components - area) * scale
    influence -= influence.mean()  # rounding: the pulls add up to 0
    constant = bool((np.abs(components - area) < 1e-12).all())
    largest = n * unequal(counted) / min(whole_positive, whole_negative) if constant else 0.0
    return Linearised(area, np.zeros(n) if constant else influence, largest)


def delong_covariance(
    scores: ArrayLike, positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The areas (models,) of several models on the same rows, and DeLong's covariance of them, (models, models).

    `scores` (models, n), `positive` (n,). S₁₀/m + S₀₁/n of the components' sample covariances, exactly as published.
    Source: DeLong, DeLong and Clarke-Pearson (1988), Biometrics 44, 837–845. UsageError as for `auc_linearised`, and
    unless both classes have at least two rows.
    """
    rows = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    areas = [auc_linearised(row, positive) for row in rows]
    m, k = int(positive.sum()), int((~positive).sum())
    if min(m, k) < 2:
        raise UsageError(f"a covariance needs two rows of each class, not {m} and {k}")
    pulls = np.array([area.influence for area in areas]) / positive.size
    of_positive, of_negative = m * pulls[:, positive], k * pulls[:, ~positive]
    covariance = np.cov(of_positive).reshape(len(rows), -1) / m + np.cov(of_negative).reshape(len(rows), -1) / k
    return np.array([area.value for area in areas]), covariance


def area_variance(area: float, positives: float, negatives: float) -> float:
    """The variance of an estimated area under the ROC curve, were both classes' scores about exponential.

    [A(1 − A) + (m − 1)(Q₁ − A²) + (k − 1)(Q₂ − A²)]/(m·k) with Q₁ = A/(2 − A) and Q₂ = 2A²/(1 + A); for planning, where
    no scores are at hand. Source: Hanley and McNeil (1982), Radiology 143, 29–36.

    UsageError for an area outside [0, 1] and for fewer than one row of either class.
    """
    if not 0 <= area <= 1 or min(positives, negatives) < 1:
        raise UsageError(
            f"an area from 0 to 1 and rows of both classes are needed, not {area}, {positives}, {negatives}"
        )
    first, second = area / (2 - area) - area**2, 2 * area**2 / (1 + area) - area**2
    return (area * (1 - area) + (positives - 1) * first + (negatives - 1) * second) / (positives * negatives)


def _share_below(
    points: NDArray[np.float64], others: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The weighted share of `others` below each point, equal ones counted half."""
    order = np.argsort(others, kind="stable")
    ordered, sums = others[order], np.concatenate([[0.0], np.cumsum(weights[order])])
    below, up_to = (sums[np.searchsorted(ordered, points, side=side)] for side in ("left", "right"))
    return np.asarray((below + up_to) / (2 * sums[-1]))
