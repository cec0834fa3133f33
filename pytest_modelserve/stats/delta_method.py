"""Delta method: estimates with the influence of each row, their bounds, and the area under the ROC curve (DeLong)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.intervals import Bounds, check_error_rate, check_level, check_vector
from pytest_modelserve.stats.means import BlockMeans, block_means, half_width
from pytest_modelserve.stats.sample_size import VerdictProbabilities, values_needed

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Linearized:
    """An estimate `value` with the `influence` (n,) of each row on it; the influences add up to 0.

    The mean of value + influence is the estimate and has its variance for large n, so an interval for that mean is one
    for the estimate. A difference of two estimates on the same rows has the difference of the influences, and the rows
    of a cluster have the sum of theirs.

    `largest` is the most by which the influences of any two possible rows can differ: it bounds the effect of kinds of
    rows that were not observed. 0 where it is unknown.

    Source: the influence function, Hampel (1974), Journal of the American Statistical Association 69, 383–393; as a
    variance estimate the infinitesimal jackknife, Efron (1982), The Jackknife, chapter 6.
    """

    value: float
    influence: Floats
    largest: float = 0.0

    @property
    def values(self) -> Floats:
        """One value per row, (n,), whose mean is the estimate."""
        return self.value + self.influence

    def minus(self, other: Linearized) -> Linearized:
        """Subtract another estimate on the same rows."""
        return Linearized(self.value - other.value, self.influence - other.influence, max(self.largest, other.largest))

    def negative(self) -> Linearized:
        """Change the sign of the estimate."""
        return Linearized(-self.value, -self.influence, self.largest)


def mean_of(values: Floats, weights: Floats | None = None, *, largest: float = 0.0) -> Linearized:
    """Return the mean of `values` (n,), weighted if `weights` (n,) are given; `largest` is the range of a value.

    UsageError for weights that add up to 0.
    """
    return ratio_of(values, np.ones(len(values)), weights, spread=largest)


def ratio_of(
    numerators: Floats, denominators: Floats, weights: Floats | None = None, *, spread: float = 0.0
) -> Linearized:
    """Return Σ numerators / Σ denominators, both (n,), with each row counted `weights` (n,) times.

    `spread` is the most by which numerator − ratio·denominator can differ between two rows. Source of the variance:
    Cochran, Sampling Techniques, 3rd ed. 1977, section 2.11. UsageError for denominators that add up to 0.
    """
    counted = np.ones(len(numerators)) if weights is None else weights
    whole = float(counted @ denominators)
    if whole == 0:
        raise UsageError("denominators must not add up to 0: the ratio is undefined")
    value = float(counted @ numerators) / whole
    scale = len(numerators) / whole
    largest = spread * scale * kish_weight(counted)
    return Linearized(value, counted * (numerators - value * denominators) * scale, largest)


def kish_weight(weights: Floats) -> float:
    """Return Σ w²/Σ w, the average weight over Kish's effective proportion of rows; 1 for weights of 1.

    The effective number of rows is (Σ w)²/Σ w². Source: Kish (1965), Survey Sampling, section 11.7.
    """
    return float((weights**2).sum() / weights.sum())


def average_of(estimates: Iterable[Linearized], *, touched: int = 1) -> Linearized:
    """Return the mean of several estimates on the same rows, of which one row can influence `touched` at a time.

    Estimates are consumed one by one: a thousand classes need not be in memory at once. UsageError for none.
    """
    value, influence = 0.0, np.zeros(0)
    largest: list[float] = []
    for estimate in estimates:
        value += estimate.value
        influence = influence + estimate.influence if largest else estimate.influence
        largest.append(estimate.largest)
    if not largest:
        raise UsageError("estimates must not be empty: their average is undefined")
    k = len(largest)
    return Linearized(value / k, influence / k, sum(sorted(largest)[-touched:]) / k)


def root_of(estimate: Linearized) -> Linearized:
    """Return the square root of an estimate of at least 0; at 0 the influences are 0.

    An approximation for large n, as always with the delta method (van der Vaart, Asymptotic Statistics, 1998, chapter
    3): for the rise of a root mean square with errors of t₈ a high end of `mean_bounds` at 95 % misses in 6.5 % for n =
    50 and 5 % for 1,000, a low end at 99.9 % in at most 0.1 % (simulated, benchmarks/regression_error_rates.py).
    """
    root = math.sqrt(estimate.value)
    return Linearized(root, estimate.influence / (2 * root) if root > 0 else np.zeros_like(estimate.influence))


def delta_method_bounds(
    values: NDArray[np.float64], *, largest: float = 0.0, rows: int | None = None, low_level: float, high_level: float
) -> Bounds:
    """Return the mean of `values` (n,), one per independent unit, with bounds that also hold where few units matter.

    As `mean_bounds`, the outer of Student's t and Hall's transformation, with two changes. First, Student's t has the
    effective degrees of freedom of the variance, 2/(2/(n − 1) + excess kurtosis/n): about 67 where a hundred rows of
    ten thousand matter (Satterthwaite 1946, Biometrics Bulletin 2, 110–114; the variance of a variance, Cramér 1946,
    section 27.4). Second, each end is at least `largest`·(1 − (1 − level)^(1/n)) from the estimate: a kind of unit that
    differs from the others by `largest` can, with probability 1 − level, be that frequent without being observed. If
    the units are groups of `rows` rows in total and do vary, n is here the number of rows, as rows of a group then do
    not all share a kind.

    Simulated (benchmarks/metric_error_rates.py): for metrics of right and wrong predictions the high end at 95 %
    misses in at most 6 %, where the delta method alone misses in up to 40 %, for the AUC in at most 7 %, for R² with
    normal errors in 8 % (n = 50) to 6 % (n = 1,000), with errors of t₅ in 12 % to 8 %; for the error rate of 20 groups
    of which some err as a whole in 15 %, of 50 in 8 %. The low end at 99.9 % misses in at most 0.1 % of all of these.

    UsageError as for `block_means`, and for a level outside (0.5, 1).
    """
    low_level, high_level = check_level("low_level", low_level), check_level("high_level", high_level)
    sample = block_means(values)
    return Bounds(
        estimate=sample.mean,
        low=sample.mean - _half_width(sample, low_level, largest, rows, below=True),
        high=sample.mean + _half_width(sample, high_level, largest, rows, below=False),
        low_level=low_level,
        high_level=high_level,
    )


def delta_method_power(
    values: NDArray[np.float64],
    *,
    truth: float,
    limit: float,
    largest: float = 0.0,
    rows: int | None = None,
    confidence: float,
    alpha: float,
) -> VerdictProbabilities:
    """Return the probability of each verdict on "at most `limit`" with as many units and a true value of `truth`.

    An approximation, as `mean_power` is. UsageError as there.
    """
    confidence, alpha = check_level("confidence", confidence), check_error_rate("alpha", alpha)
    sample = block_means(values)
    if sample.blocks < 2:
        return VerdictProbabilities(passes=0.0, inconclusive=1.0, fails=0.0)
    margin = limit - truth
    up = margin - _half_width(sample, confidence, largest, rows, below=False)
    down = -margin - _half_width(sample, 1 - alpha, largest, rows, below=True)
    passes, fails = (
        _probability_within(up, sample.standard_error),
        _probability_within(down, sample.standard_error, closed=False),
    )
    return VerdictProbabilities(passes=passes, inconclusive=max(1 - passes - fails, 0.0), fails=fails)


def delta_method_rows_needed(
    values: NDArray[np.float64],
    *,
    truth: float,
    limit: float,
    largest: float = 0.0,
    rows: int | None = None,
    confidence: float,
    alpha: float,
    power: float = 0.9,
) -> int | None:
    """Return about how many units decide, with probability `power`, on a true value of `truth`; None if no number does.

    As `values_needed`, and enough that unobserved kinds of units matter less than |limit − truth|: 299 for one point at
    95 % and a `largest` of 1. UsageError as there.
    """
    needed = values_needed(values, truth=truth, limit=limit, confidence=confidence, alpha=alpha, power=power)
    if needed is None or largest <= 0:
        return needed
    level, margin = confidence if truth <= limit else 1 - alpha, abs(limit - truth)
    if margin >= largest:
        return needed
    sample = block_means(values)
    unobserved = math.log(1 - level) / math.log1p(-margin / largest) * sample.blocks / _observed(sample, rows)
    return max(needed, math.ceil(unobserved))


def rule_of_three_bound(n: int, level: float) -> float:
    """Return the upper bound, at `level`, of a rate of which n trials show no case: 1 − (1 − level)^(1/n).

    The Clopper-Pearson bound without a success, known as the rule of three: about 3/n at 95 %.
    """
    return -math.expm1(math.log1p(-level) / n)


def _half_width(sample: BlockMeans, level: float, largest: float, rows: int | None, *, below: bool) -> float:
    regular = half_width(sample, level, below=below, degrees_of_freedom=_degrees_of_freedom(sample))
    return max(regular, largest * rule_of_three_bound(_observed(sample, rows), level))


def _observed(sample: BlockMeans, rows: int | None) -> int:
    """Return the number of trials for unobserved kinds: units, or their rows where the units vary."""
    return sample.blocks if rows is None or sample.standard_error == 0 else rows


def _degrees_of_freedom(sample: BlockMeans) -> float:
    n = sample.blocks
    scale = float(np.abs(sample.deviations).max())
    if n < 2 or scale == 0:
        return max(n - 1, 1)
    scaled = sample.deviations / scale
    kurtosis = float((scaled**4).mean() / (scaled**2).mean() ** 2)
    return min(n - 1, 2 / (2 / (n - 1) + max(kurtosis - 3, 0) / n))


def _probability_within(margin: float, standard_error: float, *, closed: bool = True) -> float:
    """Return P(a normal error of this standard error is at most `margin`)."""
    if standard_error == 0:
        return float(margin >= 0 if closed else margin > 0)
    return float(ndtr(margin / standard_error))


def auc_of(scores: ArrayLike, positive: NDArray[np.bool_], weights: NDArray[np.float64] | None = None) -> Linearized:
    """Return the area under the ROC curve: the probability that a positive row scores higher, ties counted half.

    `scores` (n,) are any numbers that rise with the probability of the positive class, infinities included; `positive`
    (n,) marks the positive rows and `weights` (n,) count rows several times. The influence of a positive row is
    DeLong's structural component V₁₀ (the proportion of negative rows below it), that of a negative row V₀₁ (the
    proportion of positive rows above it), each less the area and over the proportion of its class. The sum of their
    squares over n² is DeLong's variance without the factors m/(m − 1) of its two sample variances. Rows of a cluster
    add up as in Obuchowski (1997), Biometrics 53, 567–578.

    `largest` is given only for perfectly separated classes, where the area is 0 or 1 and all influences are 0.

    By sorting, O(n log n). Source: DeLong, DeLong and Clarke-Pearson (1988), Biometrics 44, 837–845; the algorithm, Sun
    and Xu (2014), IEEE Signal Processing Letters 21, 1389–1393.

    UsageError for NaN, for arrays of different lengths and unless both classes have rows of positive weight.
    """
    numbers = check_vector("scores", scores)
    if numbers.size != positive.size:
        raise UsageError(f"positive must have one class per score, got {positive.size} for {numbers.size} scores")
    if np.isnan(numbers).any():
        raise UsageError("scores must not be NaN, which has no rank: leave those rows out")
    counted = np.ones(numbers.size) if weights is None else weights
    of_positive, of_negative = counted[positive], counted[~positive]
    whole_positive, whole_negative = float(of_positive.sum()), float(of_negative.sum())
    if not (whole_positive > 0 and whole_negative > 0):
        raise UsageError("an area under the ROC curve needs rows of both classes")
    components = np.empty(numbers.size)
    components[positive] = _proportion_below(numbers[positive], numbers[~positive], of_negative)
    components[~positive] = 1 - _proportion_below(numbers[~positive], numbers[positive], of_positive)
    area = float(of_positive @ components[positive]) / whole_positive
    n = numbers.size
    scale = np.where(positive, n / whole_positive, n / whole_negative)
    influence = counted * (components - area) * scale
    influence -= influence.mean()  # rounding: influences add up to 0
    constant = bool((np.abs(components - area) < 1e-12).all())
    largest = n * kish_weight(counted) / min(whole_positive, whole_negative) if constant else 0.0
    return Linearized(area, np.zeros(n) if constant else influence, largest)


def delong_covariance(
    scores: ArrayLike, positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the areas (models,) of several models on the same rows, and DeLong's covariance of them, (models, models).

    `scores` (models, n), `positive` (n,). S₁₀/m + S₀₁/n of the components' sample covariances, exactly as published.
    Source: DeLong, DeLong and Clarke-Pearson (1988), Biometrics 44, 837–845. UsageError as for `auc_of`, and
    unless both classes have at least two rows.
    """
    rows = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    areas = [auc_of(row, positive) for row in rows]
    m, k = int(positive.sum()), int((~positive).sum())
    if min(m, k) < 2:
        raise UsageError(f"positive must mark at least two rows of each class, got {m} and {k}")
    influences = np.array([area.influence for area in areas]) / positive.size
    of_positive, of_negative = m * influences[:, positive], k * influences[:, ~positive]
    covariance = np.cov(of_positive).reshape(len(rows), -1) / m + np.cov(of_negative).reshape(len(rows), -1) / k
    return np.array([area.value for area in areas]), covariance


def area_variance(area: float, positives: float, negatives: float) -> float:
    """Return the variance of an estimated area under the ROC curve for about exponential scores, for planning.

    [A(1 − A) + (m − 1)(Q₁ − A²) + (k − 1)(Q₂ − A²)]/(m·k) with Q₁ = A/(2 − A) and Q₂ = 2A²/(1 + A). Source: Hanley and
    McNeil (1982), Radiology 143, 29–36.

    UsageError for an area outside [0, 1] and for fewer than one row of either class.
    """
    if not 0 <= area <= 1 or min(positives, negatives) < 1:
        raise UsageError(
            f"area must lie in [0, 1] with at least one row of both classes, got {area}, {positives} and {negatives}"
        )
    first, second = area / (2 - area) - area**2, 2 * area**2 / (1 + area) - area**2
    return (area * (1 - area) + (positives - 1) * first + (negatives - 1) * second) / (positives * negatives)


def _proportion_below(
    points: NDArray[np.float64], others: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the weighted proportion of `others` below each point, equal ones counted half."""
    order = np.argsort(others, kind="stable")
    ordered, sums = others[order], np.concatenate([[0.0], np.cumsum(weights[order])])
    below, up_to = (sums[np.searchsorted(ordered, points, side=side)] for side in ("left", "right"))
    return np.asarray((below + up_to) / (2 * sums[-1]))
