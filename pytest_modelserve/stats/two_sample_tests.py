"""Two-sample tests: Kolmogorov–Smirnov, changes of correlation, a kernel discriminant, held-out classifier scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import kolmogi, kolmogorov, stdtr

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.intervals import check_count, check_level, check_vector

Floats = NDArray[np.float64]

# The 95 % point of the Kolmogorov distribution, 1.3581, rounded up.
KOLMOGOROV_95 = 1.36


def effective_rows(reference: float, current: float) -> float:
    """Return N·m/(N + m), the effective rows of a comparison of N with m rows; 0 where either has none.

    Neither needs to be an integer: rows in blocks of `b` count as N/b. UsageError for NaN or a negative number.
    """
    for name, rows in (("reference", reference), ("current", current)):
        if not rows >= 0:
            raise UsageError(f"{name} must be at least 0 rows, got {rows}")
    return reference * current / (reference + current) if reference and current else 0.0


def distribution_distance(reference_counts: ArrayLike, current_counts: ArrayLike) -> float:
    """Return the largest difference, 0 to 1, of the two distribution functions at the edges between the bins.

    Both are counts (bins,) over the same bins in their order. At most the Kolmogorov–Smirnov distance of the rows, and
    below it by at most the larger proportion of a sample in the bin where that distance is reached.

    UsageError for counts of different lengths, negative counts and a sample without rows.
    """
    reference = check_vector("reference_counts", reference_counts)
    current = check_vector("current_counts", current_counts)
    if reference.shape != current.shape:
        raise UsageError(f"both samples must be counted in the same bins, got {reference.size} and {current.size}")
    for name, counts in (("reference_counts", reference), ("current_counts", current)):
        if not (counts >= 0).all() or not counts.sum() > 0:
            raise UsageError(f"{name} must be counts of at least one row")
    difference = np.cumsum(reference) / reference.sum() - np.cumsum(current) / current.sum()
    return float(np.abs(difference).max())


def kolmogorov_p_value(distance: float, effective: float) -> float:
    """Return the p-value of a Kolmogorov–Smirnov `distance` between two samples of `effective` rows.

    The tail of Kolmogorov's limit at √effective·distance. Compared with the exact two-sample distribution, values below
    0.2 are mostly too large, the more so the fewer rows, and too small by at most 3 % of themselves (5 to 500 rows a
    side). Ties and binning make the test conservative. 1 without rows. Source:
    Kolmogorov (1933), Smirnov (1939); Hodges (1958), Arkiv för Matematik 3, 469–486.

    UsageError for a distance outside [0, 1] or rows that are negative or NaN.
    """
    _check(distance, effective)
    return float(kolmogorov(math.sqrt(effective) * distance))


def distance_bound(distance: float, effective: float) -> float:
    """Return the upper 95 % bound of the true distance, distance + 1.36/√effective, at most 1.

    By the triangle inequality the bound fails only where the samples are further from their distributions than 1.36
    standard units. For a single true distance it is conservative (0.82 would be enough, as the difference at the worst
    point is binomial): it fails in fewer than 1 % of samples. 1 without rows.

    UsageError as for `kolmogorov_p_value`.
    """
    _check(distance, effective)
    return min(distance + KOLMOGOROV_95 / math.sqrt(effective), 1.0) if effective else 1.0


def passable_distance(effective: float, *, tests: int = 1, power: float = 0.95) -> float:
    """Return the smallest budget, at most 1, that unchanged data of `effective` rows pass in all `tests` with `power`.

    (1.36 + K⁻¹((1 − power)/tests))/√effective, the margin of `distance_bound` plus a quantile of the distance of
    unchanged data. K⁻¹ is the upper quantile of Kolmogorov's limit; the tests have equal error rates.

    UsageError for no test, a power outside (0.5, 1) or rows that are negative or NaN.
    """
    _check(0.0, effective)
    return min(standardized_passable_distance(tests, power) / math.sqrt(effective), 1.0) if effective else 1.0


def rows_for_distance(max_distance: float, *, reference: float, tests: int = 1, power: float = 0.95) -> int | None:
    """Return the current rows with which unchanged data pass `max_distance` in all `tests` with `power`.

    None if the `reference` rows are too few for this budget: there must be more than `effective_rows_for_distance`.
    With 10,000 of them, 20 tests and a budget of 0.10: 1,132.

    UsageError for a budget outside (0, 1), no test, a power outside (0.5, 1) or rows that are negative or NaN.
    """
    effective_rows(reference, 1)
    needed = effective_rows_for_distance(max_distance, tests=tests, power=power)
    return math.ceil(needed * reference / (reference - needed)) if reference > needed else None


def effective_rows_for_distance(max_distance: float, *, tests: int = 1, power: float = 0.95) -> float:
    """Return the effective rows at which `passable_distance` is `max_distance`. UsageError as for
    `rows_for_distance`."""
    if not 0 < max_distance < 1:
        raise UsageError(f"max_distance must be above 0 and below 1 (for example 0.1), got {max_distance}")
    return (standardized_passable_distance(tests, power) / max_distance) ** 2


def standardized_passable_distance(tests: int, power: float) -> float:
    """Return `passable_distance` times the root of the effective rows; UsageError as there."""
    missed = 1 - check_level("power", power)
    return KOLMOGOROV_95 + float(kolmogi(missed / check_count("tests", tests, minimum=1)))


def _check(distance: float, effective: float) -> None:
    if not 0 <= distance <= 1:
        raise UsageError(f"distance must lie in [0, 1], got {distance}")
    if not effective >= 0:
        raise UsageError(f"effective must be at least 0 rows, got {effective}")


# Changes of correlation, with variances from fourth moments.

# The exponents (a, b) of the sums Σ xᵃyᵇ of a pair of columns: all fifteen up to the fourth order.
POWERS = tuple((total - b, b) for total in range(5) for b in range(total + 1))
# Pairs with fewer rows have no estimate.
FEWEST_PAIRS = 4
# The excess kurtosis assumed of a product of two scores: 6 for normal ones, more with tail dependence. It matters for
# few rows and hundreds of pairs: a t copula of 3 degrees of freedom, 100 rows against 50.
_EXCESS = 40.0
# The 95 % point of the normal distribution.
_Z = 1.6449


@dataclass(frozen=True, slots=True)
class Correlations:
    """Correlations of pairs of columns (pairs,): rows, estimates, and n times the variance.

    The variance is that of the influence function x·y − r(x² + y²)/2 of standardized x and y, which holds for any
    distribution, unlike Fisher's (1 − r²)²/n. The estimate is NaN for fewer than 4 rows or a constant column.
    """

    rows: Floats
    estimates: Floats
    variances: Floats

    def of(self, pairs: NDArray[np.bool_]) -> Correlations:
        """Select the marked pairs (pairs,)."""
        return Correlations(self.rows[pairs], self.estimates[pairs], self.variances[pairs])


def correlations_of(sums: ArrayLike) -> Correlations:
    """Return the correlations from the `sums` (pairs, 15) of each pair, in the order of POWERS.

    Source of the variance: the delta method on the five moments of a correlation; Steiger and Hakstian (1982), British
    Journal of Mathematical and Statistical Psychology 35, 208-215. UsageError for other shapes.
    """
    table = np.asarray(sums, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(POWERS):
        raise UsageError(f"sums must have shape (pairs, {len(POWERS)}), got {table.shape}")
    with np.errstate(invalid="ignore", divide="ignore"):
        raw = dict(zip(POWERS, (table / table[:, :1]).T, strict=True))
        x, y = raw[1, 0], raw[0, 1]
        xx, yy, xy = raw[2, 0] - x**2, raw[0, 2] - y**2, raw[1, 1] - x * y
        varies = (table[:, 0] >= FEWEST_PAIRS) & (xx > 1e-12) & (yy > 1e-12)
        r = np.clip(np.where(varies, xy / np.sqrt(xx * yy), np.nan), -1, 1)
        # Central moments of the fourth order, multiplied out.
        m40 = raw[4, 0] - 4 * x * raw[3, 0] + 6 * x**2 * raw[2, 0] - 3 * x**4
        m04 = raw[0, 4] - 4 * y * raw[0, 3] + 6 * y**2 * raw[0, 2] - 3 * y**4
        m31 = raw[3, 1] - y * raw[3, 0] - 3 * x * (raw[2, 1] - y * raw[2, 0]) + 3 * x**2 * xy
        m13 = raw[1, 3] - x * raw[0, 3] - 3 * y * (raw[1, 2] - x * raw[0, 2]) + 3 * y**2 * xy
        m22 = raw[2, 2] - 2 * y * raw[2, 1] - 2 * x * raw[1, 2] + 4 * x * y * raw[1, 1]
        m22 += y**2 * raw[2, 0] + x**2 * raw[0, 2] - 3 * x**2 * y**2
        a4, b4, ab = m40 / xx**2, m04 / yy**2, m22 / (xx * yy)
        a3b, ab3 = m31 / np.sqrt(xx**3 * yy), m13 / np.sqrt(xx * yy**3)
        variance = ab - r * (a3b + ab3) + r**2 * (a4 + 2 * ab + b4) / 4
    return Correlations(table[:, 0], r, np.maximum(variance, 0.0))


@dataclass(frozen=True, slots=True)
class CorrelationChange:
    """Changes of correlations (pairs,), current less reference, with p-values and upper 95 % bounds of their size."""

    changes: Floats
    p_values: Floats
    highs: Floats


def correlation_change(
    reference: Correlations,
    current: Correlations,
    *,
    reference_block: float | Floats = 1,
    current_block: float | Floats = 1,
) -> CorrelationChange:
    """Test the changes of correlations between `reference` and `current`, pair by pair.

    The p-value is that of the difference of Fisher-transformed correlations over its standard error. The variances of
    both samples are pooled and come from fourth moments. They are at least the normal ones, and allow for unobserved
    rows (9/n: three rows, the 95 % bound). `highs` are |change| + 1.645 standard errors with separate variances. Rows
    in blocks of `block`, one or (pairs,), count as n/block. A pair that is unknown in either sample has no change, a
    p-value of 1 and a bound of 2.
    """
    n, m = reference.rows / reference_block, current.rows / current_block
    known = (
        np.isfinite(reference.estimates) & np.isfinite(current.estimates) & (n >= FEWEST_PAIRS) & (m >= FEWEST_PAIRS)
    )
    n, m = np.where(known, n, 1.0 * FEWEST_PAIRS), np.where(known, m, 1.0 * FEWEST_PAIRS)
    then, now = np.where(known, reference.estimates, 0.0), np.where(known, current.estimates, 0.0)
    of_then = np.where(known, reference.variances, 1.0) + 9 / n
    of_now = np.where(known, current.variances, 1.0) + 9 / m
    pooled = (n * then + m * now) / (n + m)
    rest = np.maximum(1 - pooled**2, 6 / (n + m))
    variance = np.maximum((n * of_then + m * of_now) / (n + m), rest**2)
    error = np.sqrt(variance * (1 / n + 1 / m)) / rest
    largest = 1 - 1 / (n + m)
    difference = np.arctanh(np.clip(now, -largest, largest)) - np.arctanh(np.clip(then, -largest, largest))
    tails = 6 / _EXCESS * (1 / n + 1 / m) ** 2 / (1 / n**3 + 1 / m**3)
    p_values = 2 * stdtr(4 + tails, -np.abs(difference) / error)
    changes = now - then
    highs = np.abs(changes) + _Z * np.sqrt(of_then / n + of_now / m)
    return CorrelationChange(
        np.where(known, changes, 0.0), np.where(known, p_values, 1.0), np.where(known, np.minimum(highs, 2.0), 2.0)
    )


# Kernel Fisher discriminant with a permutation test.

# Bandwidths of the Gaussian kernels, in medians of the distance between two rows: fine, usual and coarse structure.
BANDWIDTHS = (0.5, 1.0, 2.0)
# Random features per bandwidth. More columns than this are replaced by as many random sums.
FEATURES = 256
# Ridges in largest eigenvalues. On digits with a missing class, 0.1 to 0.3 have the most power, 0.03 and 1 about a
# tenth less.
RIDGES = (0.1, 0.3)
# Rows whose 124,750 distances give the median.
_MEDIAN_ROWS = 500
# Proportion of the largest variance: a ridge of a tenth leaves a hundredth of an axis with less.
_LEAST = 1e-3
_BATCH = 200
# Statistics nearer than this count as equal: in single precision, equal labels give values that differ by 1e-5.
_SAME = 1e-3
# A p-value from 20 exceedances has a relative error of a fifth, enough for a large one.
_EXCEEDANCES = 20
# Folds and principal axes of each block for the held-out classifier: its ridge removes what lies beyond them.
FOLDS = 5
_AXES = 48
_RIDGE = 0.1


@dataclass(frozen=True, slots=True)
class FeatureBlock:
    """Features of one kind for all rows, as principal components: `axes` (rows, k) with `variances` (k,)."""

    axes: NDArray[np.floating]
    variances: Floats


def feature_blocks(rows: ArrayLike, *, rng: np.random.Generator) -> tuple[FeatureBlock, ...]:
    """Return the columns of `rows` (n, columns), and random Fourier features of three Gaussian kernels.

    Columns should have similar scales. The features do not depend on which sample a row belongs to. Source: Rahimi and
    Recht (2007), NIPS 20. UsageError for anything but two axes, fewer than two rows, and values that are not finite.
    """
    values = np.asarray(rows, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2 or not np.isfinite(values).all():
        raise UsageError(
            f"rows must be at least two rows of finite numbers, shape (n, columns), got shape {values.shape}"
        )
    blocks = [_principal(values if values.shape[1] <= FEATURES else values @ _sums(values.shape[1], rng))]
    scale = _median_distance(values, rng)
    for bandwidth in BANDWIDTHS if scale else ():
        directions = rng.normal(size=(values.shape[1], FEATURES)) / (bandwidth * scale)
        waves = values @ directions
        waves += rng.uniform(0, 2 * math.pi, FEATURES)
        blocks.append(_principal(np.cos(waves, out=waves)))
    return tuple(blocks)


def _sums(columns: int, rng: np.random.Generator) -> Floats:
    return rng.normal(size=(columns, FEATURES)) / math.sqrt(columns)


def _median_distance(values: Floats, rng: np.random.Generator) -> float:
    """Return the median distance between two different rows of a sample; 0 where all rows are equal."""
    few = values[rng.choice(len(values), min(_MEDIAN_ROWS, len(values)), replace=False)]
    squares = (few**2).sum(axis=1)
    distances = squares[:, np.newaxis] + squares - 2 * few @ few.T
    different = distances[distances > 1e-9 * squares.max(initial=1.0)]
    return float(np.sqrt(np.median(different))) if different.size else 0.0


def _principal(features: Floats) -> FeatureBlock:
    """Return the principal components in descending order of variance, without those below a thousandth of the
    largest."""
    centered = features - features.mean(axis=0)
    if centered.shape[0] < centered.shape[1]:  # with fewer rows than features, the Gram matrix is smaller
        variances, axes = np.linalg.eigh(centered @ centered.T / len(centered))
        order = np.flatnonzero(variances > _LEAST * max(variances[-1], 1e-300))[::-1]
        return FeatureBlock(axes[:, order] * np.sqrt(len(centered) * variances[order]), variances[order])
    variances, directions = np.linalg.eigh(centered.T @ centered / len(centered))
    order = np.flatnonzero(variances > _LEAST * max(variances[-1], 1e-300))[::-1]
    return FeatureBlock(centered @ directions[:, order], variances[order])


def discriminant(blocks: tuple[FeatureBlock, ...], current: NDArray[np.bool_]) -> Floats:
    """Return the discriminant statistic, about standard normal, for each of several labelings.

    `current` (labelings, n) marks the current rows. For each block, the squared distance of the two means under the
    pooled ridge covariance is transformed by Wilson and Hilferty's cube root; the result is the maximum over blocks and
    ridges. Kernel Fisher discriminant analysis: Harchaoui, Bach and Moulines
    (2007), NIPS 20; the maximum over several kernels as in Schrab et al. (2023), JMLR 24.
    """
    labels = np.atleast_2d(current)
    n = labels.shape[1]
    of_current = labels.sum(axis=1, keepdims=True)
    weights = np.where(labels, 1 / of_current, -1 / (n - of_current))
    spread = (1 / of_current + 1 / (n - of_current))[:, 0] * n / (n - 1)
    largest = np.full(len(labels), -math.inf)
    for block in blocks:
        if not block.variances.size:
            continue
        squares = (weights.astype(block.axes.dtype, copy=False) @ block.axes) ** 2
        for ridge in RIDGES:
            inverse = 1 / (block.variances + ridge * block.variances[0])
            weight = block.variances * inverse
            freedom = weight.sum() ** 2 / (weight**2).sum()
            distance = squares @ inverse / (spread * weight.sum())
            np.maximum(largest, _standard(distance, freedom), out=largest)
    return largest


def _standard(ratio: Floats, freedom: float) -> Floats:
    """Return Wilson and Hilferty's normal approximation of a chi-squared over its degrees of freedom."""
    variance = 2 / (9 * freedom)
    standard: Floats = (np.cbrt(ratio) - (1 - variance)) / math.sqrt(variance)
    return standard


def permutation_p_value(
    blocks: tuple[FeatureBlock, ...],
    current: NDArray[np.bool_],
    *,
    most: int,
    rng: np.random.Generator,
    group_rows: int = 1,
) -> float:
    """Return the p-value of `discriminant` by at most `most` random permutations of the labels.

    Each `group_rows` rows in a row keep one label. Exact: exchangeable rows, or groups of rows, give a value of at most
    p with probability at most p. Ends early at the twentieth
    permutation with at least the observed statistic. Source: Besag and Clifford (1991), Biometrika 78, 301-304.
    1 where all rows are equal.
    """
    if not any(block.variances.size for block in blocks):
        return 1.0
    # Single precision halves the time, and rounds all labelings alike.
    light = tuple(FeatureBlock(block.axes.astype(np.float32), block.variances) for block in blocks)
    observed = discriminant(light, current)[0]
    exceeding = done = 0
    while done < most:
        labels = np.broadcast_to(current[::group_rows], (min(_BATCH, most - done), current.size // group_rows))
        batch = np.repeat(rng.permuted(labels, axis=1), group_rows, axis=1)
        above = discriminant(light, batch) >= observed - _SAME
        if exceeding + above.sum() >= _EXCEEDANCES:
            last = int(np.flatnonzero(above)[_EXCEEDANCES - exceeding - 1])
            return _EXCEEDANCES / (done + last + 1)
        exceeding += int(above.sum())
        done += len(batch)
    return (exceeding + 1) / (most + 1)


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """Out-of-fold classifier scores (n,), higher for rows like the current ones, and the distance of the two samples.

    `distance`, 0 to 1, is the one-sided Kolmogorov-Smirnov distance of the scores: the largest amount by which the
    current rows' distribution function lies below the other rows'. It estimates the total variation distance from
    below.
    """

    scores: Floats
    distance: float


def held_out_scores(
    blocks: tuple[FeatureBlock, ...], current: NDArray[np.bool_], *, rng: np.random.Generator, group_rows: int = 1
) -> HeldOutScores:
    """Score each row by a ridge discriminant that was fitted to the four fifths of the rows without its own.

    `blocks` are those of `feature_blocks` for all rows, `current` (n,) marks the current ones, at least one a fold.
    Each `group_rows` rows in a row are in one fold.
    """
    seen = [block.axes[:, :_AXES] / np.sqrt(block.variances[0]) for block in blocks if block.variances.size]
    if not seen:
        return HeldOutScores(np.zeros(current.size), 0.0)
    rows = np.hstack(seen)
    fold = np.empty(current.size, dtype=np.int64)
    for label in (False, True):
        groups = int((current == label).sum()) // group_rows
        fold[current == label] = np.repeat(rng.permutation(np.arange(groups) % FOLDS), group_rows)
    scores = np.empty(current.size)
    for held_out in range(FOLDS):
        fitted, out = fold != held_out, fold == held_out
        before, after = rows[fitted & ~current].mean(axis=0), rows[fitted & current].mean(axis=0)
        centered = rows[fitted] - rows[fitted].mean(axis=0)
        covariance = centered.T @ centered / len(centered)
        covariance[np.diag_indices_from(covariance)] += _RIDGE
        scores[out] = (rows[out] - (before + after) / 2) @ np.linalg.solve(covariance, after - before)
    return HeldOutScores(scores, one_sided_distance(scores[~current], scores[current]))


def one_sided_distance(reference: Floats, current: Floats) -> float:
    """Return the largest amount, 0 to 1, by which the current distribution function lies below the reference's."""
    both = np.concatenate((reference, current))
    difference = np.searchsorted(np.sort(reference), both, side="right") / len(reference)
    difference -= np.searchsorted(np.sort(current), both, side="right") / len(current)
    return max(float(difference.max()), 0.0)
