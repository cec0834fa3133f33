"""Estimates that are smooth functions of means, as how far each row pulls them: the delta method, row by row."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.intervals import Bounds, check_error_rate, check_level, check_vector
from pytest_modelserve.stats.means import BlockMeans, block_means, reach
from pytest_modelserve.stats.sample_size import VerdictProbabilities, values_needed

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Linearized:
    """An estimate `value`, and its `influence` (n,): how far each row pulls it, adding up to 0.

    The mean of value + influence is the estimate, and scatters as the estimate does where n is large; so an interval
    for that mean is one for the estimate, a difference of two estimates on the same rows has the difference of the
    influences, and rows that belong together add theirs up.

    `largest` is the most by which the influences of two rows can differ, whatever the rows are: what a kind of row that
    has not been seen could do. 0 where nothing bounds it.

    Source: the influence function, Hampel (1974), Journal of the American Statistical Association 69, 383–393; as a
    variance estimate the infinitesimal jackknife, Efron (1982), The Jackknife, chapter 6.
    """

    value: float
    influence: Floats
    largest: float = 0.0

    @property
    def values(self) -> Floats:
        """One value a row, (n,), whose mean is the estimate."""
        return self.value + self.influence

    def minus(self, other: Linearized) -> Linearized:
        """This estimate less another one on the same rows."""
        return Linearized(self.value - other.value, self.influence - other.influence, max(self.largest, other.largest))

    def negative(self) -> Linearized:
        """The estimate with its sign turned."""
        return Linearized(-self.value, -self.influence, self.largest)


def mean_of(values: Floats, weights: Floats | None = None, *, largest: float = 0.0) -> Linearized:
    """The mean of `values` (n,), weighted where `weights` (n,) are given; `largest` is the range of a value.

    UsageError for weights that add up to 0.
    """
    return ratio_of(values, np.ones(len(values)), weights, spread=largest)


def ratio_of(
    numerators: Floats, denominators: Floats, weights: Floats | None = None, *, spread: float = 0.0
) -> Linearized:
    """Σ numerators / Σ denominators, both (n,), each row counted `weights` (n,) times.

    `spread` is the most by which numerator − ratio·denominator can differ between two rows. Source of the variance:
    Cochran, Sampling Techniques, 3rd ed. 1977, section 2.11. UsageError for denominators that add up to 0.
    """
    counted = np.ones(len(numerators)) if weights is None else weights
    whole = float(counted @ denominators)
    if whole == 0:
        raise UsageError("a ratio whose denominators add up to 0 has no value")
    value = float(counted @ numerators) / whole
    scale = len(numerators) / whole
    largest = spread * scale * kish_weight(counted)
    return Linearized(value, counted * (numerators - value * denominators) * scale, largest)


def kish_weight(weights: Floats) -> float:
    """By how much more than one of average weight, or the fewer rows that count, a row can pull: Σ w²/Σ w.

    The average weight over the share of rows that are left of n, (Σ w)²/Σ w² by Kish (1965), Survey Sampling, section
    11.7; 1 for weights of 1.
    """
    return float((weights**2).sum() / weights.sum())


def average_of(estimates: Iterable[Linearized], *, touched: int = 1) -> Linearized:
    """The mean of several estimates on the same rows, of which one row can move `touched` at a time.

    Takes one after the other: a thousand classes need not be in memory at once. UsageError for none.
    """
    value, influence = 0.0, np.zeros(0)
    largest: list[float] = []
    for estimate in estimates:
        value += estimate.value
        influence = influence + estimate.influence if largest else estimate.influence
        largest.append(estimate.largest)
    if not largest:
        raise UsageError("an average of no estimates has no value")
    k = len(largest)
    return Linearized(value / k, influence / k, sum(sorted(largest)[-touched:]) / k)


def root_of(estimate: Linearized) -> Linearized:
    """The square root of an estimate of at least 0; where it is 0, no row pulls it.

    An approximation for many rows, like every delta method (van der Vaart, Asymptotic Statistics, 1998, chapter 3): for
    the rise of a root mean square with errors of t₈ a high end of `mean_bounds` at 95 % misses in 6.5 % for n = 50 and
    5 % for 1,000, a low end at 99.9 % in at most 0.1 % (simulated, benchmarks/regression_error_rates.py).
    """
    root = math.sqrt(estimate.value)
    return Linearized(root, estimate.influence / (2 * root) if root > 0 else np.zeros_like(estimate.influence))


# How sure a linearised estimate is, when few rows carry it: bounds that allow for kinds of rows not seen.


def delta_method_bounds(
    values: NDArray[np.float64], *, largest: float = 0.0, rows: int | None = None, low_level: float, high_level: float
) -> Bounds:
    """The mean of `values` (n,), one an independent unit, between bounds that hold where few units carry it.

    As `mean_bounds`, the outer of Student's t and Hall's transformation, with two changes. Student's t has the degrees
    of freedom that the variance really has, 2/(2/(n − 1) + excess kurtosis/n): where a hundred rows of ten thousand
    decide, about 67 (Satterthwaite 1946, Biometrics Bulletin 2, 110–114; the variance of a variance, Cramér 1946,
    section 27.4). And each end lies at least `largest`·(1 − (1 − level)^(1/n)) from the estimate: a kind of unit that
    differs from the others by `largest` may, with probability 1 − level, be that frequent without having been seen.
    Where units are groups of together `rows` rows and do vary, n is there the number of rows: that all rows of a group
    share a kind is then not what the sample shows.

    Simulated (benchmarks/metric_error_rates.py): for metrics that count right and wrong answers the high end at 95 %
    misses in at most 6 %, where the delta method alone misses in up to 40 %, for the AUC in at most 7 %, for R² with
    normal errors in 8 % (n = 50) to 6 % (n = 1,000), with errors of t₅ in 12 % to 8 %; for the error rate of 20 groups
    of which some err as a whole in 15 %, of 50 in 8 %. The low end at 99.9 % misses in at most 0.1 % of all of these.

    UsageError as for `block_means`, and for a level outside (0.5, 1).
    """
    low_level, high_level = check_level("low_level", low_level), check_level("high_level", high_level)
    sample = block_means(values)
    return Bounds(
        estimate=sample.mean,
        low=sample.mean - _reach(sample, low_level, largest, rows, below=True),
        high=sample.mean + _reach(sample, high_level, largest, rows, below=False),
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
    """The probability of each verdict on "at most `limit`" with as many units, were the true value `truth`.

    An approximation, as `mean_power` is. UsageError as there.
    """
    confidence, alpha = check_level("confidence", confidence), check_error_rate("alpha", alpha)
    sample = block_means(values)
    if sample.blocks < 2:
        return VerdictProbabilities(passes=0.0, inconclusive=1.0, fails=0.0)
    room = limit - truth
    up = room - _reach(sample, confidence, largest, rows, below=False)
    down = -room - _reach(sample, 1 - alpha, largest, rows, below=True)
    passes, fails = _chance(up, sample.standard_error), _chance(down, sample.standard_error, closed=False)
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
    """About how many units decide, with probability `power`, on a true value of `truth`; None where no number does.

    As `values_needed`, and at least as many as keep a kind of unit that nobody has seen within |limit − truth|: for one
    point at 95 %, and a `largest` of 1, 299. UsageError as there.
    """
    needed = values_needed(values, truth=truth, limit=limit, confidence=confidence, alpha=alpha, power=power)
    if needed is None or largest <= 0:
        return needed
    level, room = confidence if truth <= limit else 1 - alpha, abs(limit - truth)
    if room >= largest:
        return needed
    sample = block_means(values)
    unseen = math.log(1 - level) / math.log1p(-room / largest) * sample.blocks / _seen(sample, rows)
    return max(needed, math.ceil(unseen))


def rule_of_three_bound(n: int, level: float) -> float:
    """The largest share that a kind of unit can have of which none is among n, at `level`: 1 − (1 − level)^(1/n).

    The Clopper-Pearson bound of no success, known as the rule of three: about 3/n at 95 %.
    """
    return -math.expm1(math.log1p(-level) / n)


def _reach(sample: BlockMeans, level: float, largest: float, rows: int | None, *, below: bool) -> float:
    regular = reach(sample, level, below=below, degrees_of_freedom=_degrees_of_freedom(sample))
    return max(regular, largest * rule_of_three_bound(_seen(sample, rows), level))


def _seen(sample: BlockMeans, rows: int | None) -> int:
    """Among how many a kind has not been seen: units, or their rows where the units vary."""
    return sample.blocks if rows is None or sample.standard_error == 0 else rows


def _degrees_of_freedom(sample: BlockMeans) -> float:
    n = sample.blocks
    scale = float(np.abs(sample.deviations).max())
    if n < 2 or scale == 0:
        return max(n - 1, 1)
    scaled = sample.deviations / scale
    kurtosis = float((scaled**4).mean() / (scaled**2).mean() ** 2)
    return min(n - 1, 2 / (2 / (n - 1) + max(kurtosis - 3, 0) / n))


def _chance(room: float, standard_error: float, *, closed: bool = True) -> float:
    """P(a normal error of this standard error stays within `room`)."""
    if standard_error == 0:
        return float(room >= 0 if closed else room > 0)
    return float(ndtr(room / standard_error))


# The area under the ROC curve, and how it scatters: DeLong's structural components.


def auc_of(scores: ArrayLike, positive: NDArray[np.bool_], weights: NDArray[np.float64] | None = None) -> Linearized:
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
    numbers = check_vector("scores", scores)
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
    largest = n * kish_weight(counted) / min(whole_positive, whole_negative) if constant else 0.0
    return Linearized(area, np.zeros(n) if constant else influence, largest)


def delong_covariance(
    scores: ArrayLike, positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The areas (models,) of several models on the same rows, and DeLong's covariance of them, (models, models).

    `scores` (models, n), `positive` (n,). S₁₀/m + S₀₁/n of the components' sample covariances, exactly as published.
    Source: DeLong, DeLong and Clarke-Pearson (1988), Biometrics 44, 837–845. UsageError as for `auc_of`, and
    unless both classes have at least two rows.
    """
    rows = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    areas = [auc_of(row, positive) for row in rows]
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
