"""How far two distributions lie apart: the Kolmogorov–Smirnov distance, its chance, its bound and the rows it needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import kolmogi, kolmogorov, stdtr

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.intervals import check_count, check_level, check_vector

BOUND = 1.36
"""The 95 % point of the Kolmogorov distribution, 1.3581, rounded up."""


def effective_rows(reference: float, current: float) -> float:
    """N·m/(N + m), the rows that a comparison of N with m rows is worth; 0 where either has none.

    Neither needs to be whole: rows that come in blocks of `b` count as N/b. UsageError for NaN or a negative number.
    """
    for name, rows in (("reference", reference), ("current", current)):
        if not rows >= 0:
            raise UsageError(f"{name} is a number of rows, not {rows}")
    return reference * current / (reference + current) if reference and current else 0.0


def distribution_distance(reference_counts: ArrayLike, current_counts: ArrayLike) -> float:
    """The largest difference, 0 to 1, of the two distribution functions at the edges between the bins.

    Both are counts (bins,) over the same bins in their order. Never above the Kolmogorov–Smirnov distance of the rows
    themselves, and below it by at most the share that the fuller sample has in the bin where that one is reached.

    UsageError for counts of different lengths, negative counts and a sample without rows.
    """
    reference = check_vector("reference_counts", reference_counts)
    current = check_vector("current_counts", current_counts)
    if reference.shape != current.shape:
        raise UsageError(f"both samples are counted in the same bins, not in {reference.size} and {current.size}")
    for name, counts in (("reference_counts", reference), ("current_counts", current)):
        if not (counts >= 0).all() or not counts.sum() > 0:
            raise UsageError(f"{name} are counts of at least one row")
    apart = np.cumsum(reference) / reference.sum() - np.cumsum(current) / current.sum()
    return float(np.abs(apart).max())


def kolmogorov_p_value(distance: float, effective: float) -> float:
    """The chance of at least this `distance` between two samples of one distribution, worth `effective` rows.

    The tail of Kolmogorov's limit at √effective·distance. Against the exact two-sample distribution, values below 0.2
    are mostly too large, the more so the fewer rows, and never too small by more than 3 % of themselves (5 to 500 rows
    a side); ties and binning make the distance smaller and the value safer still. 1 where there are no rows. Source:
    Kolmogorov (1933), Smirnov (1939); Hodges (1958), Arkiv för Matematik 3, 469–486.

    UsageError for a distance outside [0, 1] or rows that are negative or NaN.
    """
    _check(distance, effective)
    return float(kolmogorov(math.sqrt(effective) * distance))


def distance_bound(distance: float, effective: float) -> float:
    """A bound, at most 1, that the true distance exceeds in fewer than 5 % of samples: distance + 1.36/√effective.

    By the triangle inequality the bound fails only where the samples lie further from their distributions than 1.36
    standard units. Held against one true distance it is wider than 95 % asks for (0.82 would do: the difference at the
    worst point alone is binomial); it is wrong in fewer than 1 % of samples. 1 where there are no rows.

    UsageError as for `kolmogorov_p_value`.
    """
    _check(distance, effective)
    return min(distance + BOUND / math.sqrt(effective), 1.0) if effective else 1.0


def passable_distance(effective: float, *, tests: int = 1, power: float = 0.95) -> float:
    """The smallest budget, at most 1, that unchanged data of `effective` rows keep in all `tests` with `power`.

    What `distance_bound` adds, and the distance that chance alone stays below: (1.36 + K⁻¹((1 − power)/tests))/
    √effective, where K⁻¹ is the upper quantile of Kolmogorov's limit and the tests share the risk equally.

    UsageError for no test, a power outside (0.5, 1) or rows that are negative or NaN.
    """
    _check(0.0, effective)
    return min(passable_units(tests, power) / math.sqrt(effective), 1.0) if effective else 1.0


def rows_for_distance(max_distance: float, *, reference: float, tests: int = 1, power: float = 0.95) -> int | None:
    """The current rows with which unchanged data keep `max_distance` in all `tests` with `power`; None where none do.

    None means that `reference` rows are too few for this budget: they have to number more than
    `effective_rows_for_distance`. With 10,000 of them, 20 tests and a budget of 0.10: 1,132.

    UsageError for a budget outside (0, 1), no test, a power outside (0.5, 1) or rows that are negative or NaN.
    """
    effective_rows(reference, 1)
    needed = effective_rows_for_distance(max_distance, tests=tests, power=power)
    return math.ceil(needed * reference / (reference - needed)) if reference > needed else None


def effective_rows_for_distance(max_distance: float, *, tests: int = 1, power: float = 0.95) -> float:
    """The effective rows at which `passable_distance` is `max_distance`. UsageError as for `rows_for_distance`."""
    if not 0 < max_distance < 1:
        raise UsageError(f"max_distance lies between 0 and 1 (0.1, say), not {max_distance}")
    return (passable_units(tests, power) / max_distance) ** 2


def passable_units(tests: int, power: float) -> float:
    """`passable_distance` times the root of the effective rows. UsageError as for that."""
    missed = 1 - check_level("power", power)
    return BOUND + float(kolmogi(missed / check_count("tests", tests, minimum=1)))


def _check(distance: float, effective: float) -> None:
    if not 0 <= distance <= 1:
        raise UsageError(f"a distance lies from 0 to 1, not {distance}")
    if not effective >= 0:
        raise UsageError(f"effective is a number of rows, not {effective}")


# Has a correlation changed between two data sets? By variances that come from fourth moments.


Floats = NDArray[np.float64]

POWERS = tuple((total - b, b) for total in range(5) for b in range(total + 1))
"""The exponents (a, b) of the sums Σ xᵃyᵇ of a pair of columns: all fifteen up to the fourth order."""
FEWEST_PAIRS = 4
"""Rows of a pair below which nothing is said of it."""
_EXCESS = 40.0
"""The excess kurtosis that is assumed of a product of two scores: 6 of normal ones, more where tails go together. It
matters where few rows meet hundreds of pairs: of a t copula of 3 degrees of freedom, 100 rows against 50."""
_Z = 1.6449
"""The 95 % point of a normal distribution."""


@dataclass(frozen=True, slots=True)
class Correlations:
    """Correlations of pairs of columns (pairs,): the rows of each, its estimate, and n times its variance.

    The variance is that of the estimate's influence function, x·y − r(x² + y²)/2 of standardised x and y: it holds
    whatever the distribution, where Fisher's (1 − r²)²/n needs a normal one. Neither is known of fewer than 4 rows or
    where a column does not vary: the estimate is then NaN.
    """

    rows: Floats
    estimates: Floats
    variances: Floats

    def of(self, pairs: NDArray[np.bool_]) -> Correlations:
        """Those of the pairs that are marked (pairs,)."""
        return Correlations(self.rows[pairs], self.estimates[pairs], self.variances[pairs])


def correlations_of(sums: ArrayLike) -> Correlations:
    """The correlations from `sums` (pairs, 15) of each pair, in the order of POWERS.

    Source of the variance: the delta method on the five moments of a correlation; Steiger and Hakstian (1982), British
    Journal of Mathematical and Statistical Psychology 35, 208-215. UsageError for other shapes.
    """
    table = np.asarray(sums, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(POWERS):
        raise UsageError(f"sums have the shape (pairs, {len(POWERS)}), not {table.shape}")
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
    """Changes of correlations (pairs,), current less reference, the chance of each, and 95 % bounds of their size."""

    changes: Floats
    p_values: Floats
    highs: Floats


def correlation_change(
    reference: Correlations, current: Correlations, *, reference_block: float = 1, current_block: float = 1
) -> CorrelationChange:
    """How far the correlations of `current` lie from those of `reference`, pair by pair.

    The chance is that of the difference of Fisher-transformed correlations over its standard error, the variances of
    both samples pooled and taken from fourth moments, never below the normal one and never below what rows that were
    not seen may add (9/n: three rows, 95 % of what may hide). `highs` are |change| + 1.645 standard errors, each
    sample with its own variance. Rows that come in blocks of `block` count as n/block. A pair that is unknown on either
    side has no change, a chance of 1 and a bound of 2.
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
    apart = np.arctanh(np.clip(now, -largest, largest)) - np.arctanh(np.clip(then, -largest, largest))
    tails = 6 / _EXCESS * (1 / n + 1 / m) ** 2 / (1 / n**3 + 1 / m**3)
    p_values = 2 * stdtr(4 + tails, -np.abs(apart) / error)
    changes = now - then
    highs = np.abs(changes) + _Z * np.sqrt(of_then / n + of_now / m)
    return CorrelationChange(
        np.where(known, changes, 0.0), np.where(known, p_values, 1.0), np.where(known, np.minimum(highs, 2.0), 2.0)
    )


# Are two samples of many columns from one distribution? A statistic of random features, its chance by permutation.


BANDWIDTHS = (0.5, 1.0, 2.0)
"""Of the Gaussian kernels, in medians of the distance between two rows: fine, usual and coarse structure."""
FEATURES = 256
"""Random features a bandwidth; of linear ones as many columns at most, and of more as many random sums."""
RIDGES = (0.1, 0.3)
"""In largest eigenvalues. Of digits with one class missing 0.1 to 0.3 find most, 0.03 and 1 about a tenth less."""
_NEIGHBOURS = 500
"""Rows whose distances give the median: 124,750 of them."""
_LEAST = 1e-3
"""Of the largest variance: a ridge of a tenth leaves a hundredth of an axis with less."""
_BATCH = 200
_SAME = 1e-3
"""Statistics nearer than this count as equal: single precision gives the same labelling two values 1e-5 apart."""
_EXCEEDANCES = 20
"""A p-value from 20 exceedances is known to a fifth of itself; nobody needs to know a large one better."""


@dataclass(frozen=True, slots=True)
class FeatureBlock:
    """Features of one kind for all rows, turned to their principal axes: `axes` (rows, k), of `variances` (k,)."""

    axes: NDArray[np.floating]
    variances: Floats


def feature_blocks(rows: ArrayLike, *, rng: np.random.Generator) -> tuple[FeatureBlock, ...]:
    """The columns of `rows` (n, columns) themselves, and random Fourier features of three Gaussian kernels.

    Columns should be of like scale. Nothing here knows which sample a row is of. Source of the features: Rahimi and
    Recht (2007), NIPS 20. UsageError for anything but two axes, fewer than two rows, and values that are not finite.
    """
    values = np.asarray(rows, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2 or not np.isfinite(values).all():
        raise UsageError("rows are finite numbers on two axes, at least two of them")
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
    """The median distance between two different rows of a sample of them; 0 where all are the same."""
    few = values[rng.choice(len(values), min(_NEIGHBOURS, len(values)), replace=False)]
    squares = (few**2).sum(axis=1)
    apart = squares[:, np.newaxis] + squares - 2 * few @ few.T
    different = apart[apart > 1e-9 * squares.max(initial=1.0)]
    return float(np.sqrt(np.median(different))) if different.size else 0.0


def _principal(features: Floats) -> FeatureBlock:
    """Axes in the order of their variance, the largest first; those with a thousandth of it or less are left out."""
    centred = features - features.mean(axis=0)
    if centred.shape[0] < centred.shape[1]:  # of fewer rows than features, the rows' own products are the smaller table
        variances, axes = np.linalg.eigh(centred @ centred.T / len(centred))
        order = np.flatnonzero(variances > _LEAST * max(variances[-1], 1e-300))[::-1]
        return FeatureBlock(axes[:, order] * np.sqrt(len(centred) * variances[order]), variances[order])
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    order = np.flatnonzero(variances > _LEAST * max(variances[-1], 1e-300))[::-1]
    return FeatureBlock(centred @ directions[:, order], variances[order])


def discriminant(blocks: tuple[FeatureBlock, ...], current: NDArray[np.bool_]) -> Floats:
    """How far the current rows' mean lies from the others', in about standard units, for each of several labellings.

    `current` (labellings, n) marks the current rows. Of each block, the squared distance of the two means under ridge
    covariances of all rows together is turned by Wilson and Hilferty's cube root to about a standard normal quantity,
    and the largest over blocks and ridges taken. Kernel Fisher discriminant analysis: Harchaoui, Bach and Moulines
    (2007), NIPS 20; the largest over several kernels as in Schrab et al. (2023), JMLR 24.
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
            shares = block.variances * inverse
            freedom = shares.sum() ** 2 / (shares**2).sum()
            distance = squares @ inverse / (spread * shares.sum())
            np.maximum(largest, _standard(distance, freedom), out=largest)
    return largest


def _standard(ratio: Floats, freedom: float) -> Floats:
    """The quantity, about standard normal, that rises with a chi-squared over its degrees of freedom."""
    variance = 2 / (9 * freedom)
    standard: Floats = (np.cbrt(ratio) - (1 - variance)) / math.sqrt(variance)
    return standard


def permutation_p_value(
    blocks: tuple[FeatureBlock, ...], current: NDArray[np.bool_], *, most: int, rng: np.random.Generator
) -> float:
    """The chance of so large a `discriminant` if the rows had been labelled at random, by at most `most` labellings.

    Exact: unchanged, exchangeable rows give a value of at most p with probability at most p. Ends early with the
    twentieth labelling that is at least as far apart. Source: Besag and Clifford (1991), Biometrika 78, 301-304.
    1 where all rows are the same.
    """
    if not any(block.variances.size for block in blocks):
        return 1.0
    # Half the bits are half the time, and all labellings lose the same ones.
    light = tuple(FeatureBlock(block.axes.astype(np.float32), block.variances) for block in blocks)
    observed = discriminant(light, current)[0]
    exceeding = done = 0
    while done < most:
        batch = rng.permuted(np.broadcast_to(current, (min(_BATCH, most - done), current.size)), axis=1)
        above = discriminant(light, batch) >= observed - _SAME
        if exceeding + above.sum() >= _EXCEEDANCES:
            last = int(np.flatnonzero(above)[_EXCEEDANCES - exceeding - 1])
            return _EXCEEDANCES / (done + last + 1)
        exceeding += int(above.sum())
        done += len(batch)
    return (exceeding + 1) / (most + 1)


# How well a classifier tells two samples apart in rows that it has not seen.


FOLDS = 5
_AXES = 48
"""Principal axes of each block that the classifier sees: beyond these its ridge leaves nothing of digits or tables."""
_RIDGE = 0.1


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """Each row's score (n,), the higher the more it looks like a current one, and how far the scores lie apart.

    `distance`, 0 to 1, is the largest amount by which the current rows' distribution function of scores lies below the
    other rows': the one-sided Kolmogorov-Smirnov distance. It estimates from below how far the two distributions of
    rows lie apart (total variation), as far as this classifier sees.
    """

    scores: Floats
    distance: float


def held_out_scores(
    blocks: tuple[FeatureBlock, ...], current: NDArray[np.bool_], *, rng: np.random.Generator
) -> HeldOutScores:
    """The scores of ridge discriminants, each row's by one that was fitted to four fifths of the rows without it.

    `blocks` are those of `feature_blocks` for all rows, `current` (n,) marks the current ones, at least one a fold.
    """
    seen = [block.axes[:, :_AXES] / np.sqrt(block.variances[0]) for block in blocks if block.variances.size]
    if not seen:
        return HeldOutScores(np.zeros(current.size), 0.0)
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
    return HeldOutScores(scores, one_sided_distance(scores[~current], scores[current]))


def one_sided_distance(reference: Floats, current: Floats) -> float:
    """The largest amount, 0 to 1, by which the current values' distribution function lies below the reference's."""
    both = np.concatenate((reference, current))
    apart = np.searchsorted(np.sort(reference), both, side="right") / len(reference)
    apart -= np.searchsorted(np.sort(current), both, side="right") / len(current)
    return max(float(apart.max()), 0.0)
