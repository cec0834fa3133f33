"""Step-down max-T test: which of many correlated hypotheses are rejected, with one error rate for all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.intervals import check_count, check_error_rate

# The standard error of an error rate of 5 % is 0.15 points. The seed is fixed: equal data have equal verdicts.
_DRAWS = 20_000
_SEED = 0

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StepDown:
    """The hypotheses that are `rejected`, (k,), and the one-sided `level` at which those of the last step were tested.

    A hypothesis that is not rejected has a bound at `level` that lies on the wrong side of its limit.
    """

    rejected: NDArray[np.bool_]
    level: float


def correlations_of(values: ArrayLike) -> Floats:
    """Return the correlations (k, k) of the columns of `values` (n, k); those of a constant column are 0.

    UsageError for values that are not a matrix of finite numbers.
    """
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise UsageError("values must be a matrix of finite numbers, one row for each unit")
    centered = matrix - matrix.mean(axis=0)
    lengths = np.sqrt((centered**2).sum(axis=0))
    scaled = centered / np.where(lengths > 0, lengths, 1.0)
    found: Floats = scaled.T @ scaled
    np.fill_diagonal(found, 1.0)
    return found


def step_down_max_t(
    rejects: Callable[[int, float], bool], correlations: ArrayLike, *, error_rate: float, untested: int = 0
) -> StepDown:
    """Return which of k one-sided hypotheses are rejected; any true one is with probability `error_rate` at most.

    All hypotheses are tested at the level Φ(c), where c is the (1 − error_rate) quantile of the largest of k normal
    statistics with these correlations. Those that are rejected leave, c is found for the others, and so on. Each
    hypothesis may have its own test: only its level is chosen here. `untested` hypotheses of unknown correlation can
    not be rejected and count in full (Bonferroni), so that testing some of them later never takes a rejection back.

    The normal quantile with the observed correlations is that of the Gaussian multiplier bootstrap. It is found from
    20,000 draws with a fixed seed.

    Args:
        rejects: Whether the test of a hypothesis, 0 to k − 1, rejects it at a one-sided level.
        correlations: Correlations of the statistics (k, k), of `correlations_of`.
        error_rate: Probability with which any true hypothesis is rejected.
        untested: Number of further hypotheses of the family.

    Returns:
        The rejected hypotheses and the last level.

    Raises:
        UsageError: `correlations` is no square matrix of finite numbers, or a number is out of range.

    Sources: Romano & Wolf 2005, Journal of the American Statistical Association 100:94-108 (step-down); Westfall &
    Young 1993, Resampling-Based Multiple Testing, chapter 2; Chernozhukov, Chetverikov & Kato 2013, Annals of
    Statistics 41:2786-2819 (multiplier bootstrap).

    Example:
        >>> z = [3.0, 2.0, 1.0]
        >>> found = step_down_max_t(lambda k, level: z[k] > ndtri(level), np.eye(3), error_rate=0.05)
        >>> found.rejected.tolist()
        [True, True, False]
    """
    error_rate, untested = check_error_rate("error_rate", error_rate), check_count("untested", untested)
    matrix = np.asarray(correlations, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
        raise UsageError(f"correlations must be a square matrix of finite numbers, got shape {matrix.shape}")
    open_ = np.ones(len(matrix), dtype=np.bool_)
    draws = _draws(matrix)
    level = _level(draws, open_, error_rate, untested)
    while open_.any():
        rejected = [number for number in np.flatnonzero(open_) if rejects(int(number), level)]
        if not rejected:
            break
        open_[rejected] = False
        if open_.any():
            level = _level(draws, open_, error_rate, untested)
    return StepDown(~open_, level)


def pass_probability(
    value: ArrayLike, deviation: ArrayLike, *, limit: float, searched: int, judged: int, level: float
) -> Floats:
    """Return the probability that a mean seen on some units stays below `limit` at `level` on others.

    `value` and `deviation` are the mean and the standard deviation of one value a unit, over `searched` units; the test
    is that of the mean over `judged` further ones. Normal approximation, with the uncertainty of both means. Arguments
    broadcast.

    Example:
        >>> float(pass_probability(0.0, 0.1, limit=0.01, searched=600, judged=1400, level=0.95).round(2))
        0.66
    """
    value, deviation = np.asarray(value, dtype=np.float64), np.asarray(deviation, dtype=np.float64)
    distance = limit - value - ndtri(level) * deviation / np.sqrt(judged)
    spread = deviation * np.sqrt(1 / searched + 1 / judged)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = ndtr(distance / spread)
    return np.where(spread > 0, found, (distance >= 0).astype(np.float64))


def _draws(correlations: Floats) -> Floats:
    """Return draws (draws, k) of normal statistics with these correlations."""
    values, vectors = np.linalg.eigh(correlations)
    root = vectors * np.sqrt(np.clip(values, 0.0, None))
    drawn: Floats = _normals(len(correlations)) @ root.T
    return drawn


@functools.lru_cache(maxsize=2)
def _normals(k: int) -> Floats:
    return np.random.default_rng(_SEED).standard_normal((_DRAWS, k))


def _level(draws: Floats, open_: NDArray[np.bool_], error_rate: float, untested: int) -> float:
    """Return Φ(c), where P(largest of the open statistics > c) + untested·(1 − Φ(c)) is the error rate."""
    family = int(open_.sum()) + untested
    if family == 0:
        return 1 - error_rate
    strictest = 1 - error_rate / family  # Bonferroni, which holds for any correlations
    if not open_.any():
        return strictest
    largest = np.sort(draws[:, open_].max(axis=1))
    exceeding = 1 - (np.arange(_DRAWS) + 1) / _DRAWS  # the proportion of draws above each
    kept = np.flatnonzero(exceeding + untested * ndtr(-largest) <= error_rate)
    level = float(ndtr(largest[kept[0]])) if kept.size else strictest
    return float(min(max(level, 1 - error_rate), strictest))
