"""Block length and variance inflation of serially dependent values, from one flat-top lag window."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.intervals import check_count

# Values with which the longest lag, √n + 5, is below n/2.
_FEWEST = 16
# An autocorrelation below _CRITICAL·√(log₁₀ n / n) is not significant (Politis and White 2004, section 3.2).
_CRITICAL = 2.0
# Relative bias and variance of the flat-top estimate at frequency 0, in bandwidths over n: 3/2 from subtracting the
# mean, and 2·∫λ² = 8/3 as variance, which biases 1/inflation by as much.
_CORRECTION = 3 / 2 + 8 / 3

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BlockLength:
    """The lengths that minimize the error of a bootstrap's variance: of circular blocks, and the stationary mean.

    `bandwidth` is the largest lag used. Fewer than 16 values, or values that are all equal, give lengths of 1 and a
    bandwidth of 0.
    """

    circular: float
    stationary: float
    bandwidth: int


def optimal_block_length(values: ArrayLike) -> BlockLength:
    """Estimate the block length for a bootstrap of dependent `values` (n,), or (n, k) with autocovariances added.

    The bandwidth is twice the first lag from which max(5, log₁₀ n) lags in a row are not significant, at most
    √n + 5. A longer memory is not recognized, and a length is at most 3·√n and n/3. NaN count as the mean.

    Source: Politis and White (2004), Econometric Reviews 23, 53–70, corrected by Patton, Politis and White (2009),
    Econometric Reviews 28, 372–375.

    UsageError for values that are infinite, and for more than two axes.
    """
    deviations = _deviations(values)
    n = len(deviations)
    squares = (deviations**2).sum(axis=1)
    total = float(squares.sum())
    if n < _FEWEST or not total:
        return BlockLength(1.0, 1.0, 0)
    run = _run(n)
    longest = math.ceil(math.sqrt(n)) + run
    covariances = _autocovariances(deviations, longest)
    # The squares that each lag leaves, without the first and without the last values.
    left = (total - np.cumsum(squares)[: longest + 1]) * (total - np.cumsum(squares[::-1])[: longest + 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        correlations = np.abs(covariances) * n / np.sqrt(np.maximum(left, 0.0))
    insignificant = np.nan_to_num(correlations, nan=0.0) < _critical(n)
    first = next((lag for lag in range(1, longest + 1 - run) if insignificant[lag : lag + run].all()), None)
    bandwidth = longest if first is None else min(2 * first, longest)
    lags = np.arange(1, bandwidth + 1)
    weighted = 2 * _flat_top(lags / bandwidth) * covariances[1 : bandwidth + 1]
    slope, level = float(weighted @ lags), float(covariances[0] + weighted.sum())
    most = math.ceil(min(3 * math.sqrt(n), n / 3))
    ratio = (slope / level) ** 2 * n if level else math.inf
    circular, stationary = (min((factor * ratio) ** (1 / 3), most) for factor in (3 / 2, 1.0))
    return BlockLength(circular, stationary, bandwidth)


@dataclass(frozen=True, slots=True)
class ShortMemory:
    """The autocorrelation at lag one, and whether any of the first max(5, log₁₀ n) lags is significant."""

    correlation: float
    significant: bool


def short_memory(values: ArrayLike) -> ShortMemory:
    """Return whether `values` (n,), or (n, k) together, depend on the next ones: a tenth of the time of a block length.

    Each lag is compared with the 2·√(log₁₀ n/n) of `optimal_block_length`, which takes 0.01 to 1 % of independent
    values for dependent. NaN count as the mean. Fewer than 16 values are never significant.

    UsageError as for `optimal_block_length`.
    """
    deviations = _deviations(values)
    n, total = len(deviations), float(np.vdot(deviations, deviations))
    if n < 2 or not total:
        return ShortMemory(0.0, significant=False)
    lags = range(1, min(_run(n), n - 1) + 1)
    correlations = [float(np.vdot(deviations[lag:], deviations[:-lag])) / total for lag in lags]
    return ShortMemory(correlations[0], n >= _FEWEST and max(map(abs, correlations)) >= _critical(n))


def variance_inflation(values: ArrayLike, bandwidth: int) -> float:
    """Return how much more the mean of dependent `values` (n,) varies than that of independent ones, at least 1.

    n values are worth n / inflation independent ones. The estimate is the flat-top one at frequency 0 with the
    `bandwidth` of `optimal_block_length`, over the variance. It is corrected for the subtracted mean, and for the
    convexity of its reciprocal. Several columns (n, k) have their autocovariances added. NaN count as the mean.

    Source: Politis and Romano (1995), Journal of Time Series Analysis 16, 67–103.

    UsageError as for `optimal_block_length`, and for a bandwidth below 0.
    """
    check_count("bandwidth", bandwidth, minimum=0)
    deviations = _deviations(values)
    if bandwidth >= len(deviations):
        raise UsageError(f"bandwidth must be below the {len(deviations)} values, got {bandwidth}")
    if not bandwidth or not deviations.any():
        return 1.0
    covariances = _autocovariances(deviations, bandwidth)
    window = _flat_top(np.arange(1, bandwidth + 1) / bandwidth)
    inflation = 1 + 2 * float(window @ covariances[1:]) / float(covariances[0])
    return max(inflation * (1 + _CORRECTION * bandwidth / len(deviations)), 1.0)


def _run(n: int) -> int:
    """Return the number of lags in a row that must not be significant."""
    return max(5, int(math.log10(n)))


def _critical(n: int) -> float:
    """Return the autocorrelation from which a lag is significant."""
    return _CRITICAL * math.sqrt(math.log10(n) / n)


def _deviations(values: ArrayLike) -> Floats:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim not in (1, 2) or np.isinf(numbers).any():
        raise UsageError(f"values must be finite or NaN, of shape (n,) or (n, k); got shape {numbers.shape}")
    table = numbers if numbers.ndim == 2 else numbers[:, np.newaxis]
    known = ~np.isnan(table)
    means = np.where(known, table, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    deviations = np.where(known, table - means, 0.0)
    scale = float(np.abs(deviations).max(initial=0.0))
    return deviations / scale if scale > 1e-12 * float(np.abs(means).max(initial=0.0)) else np.zeros_like(deviations)


def _autocovariances(deviations: Floats, longest: int) -> Floats:
    """Return the autocovariances (longest + 1,) from lag 0, by Fourier transform, added over columns."""
    size = 1 << (len(deviations) + longest).bit_length()
    power = np.zeros(size // 2 + 1)
    for column in deviations.T:
        power += np.abs(np.fft.rfft(column, size)) ** 2
    return np.asarray(np.fft.irfft(power, size)[: longest + 1] / len(deviations))


def _flat_top(distances: Floats) -> Floats:
    """Return the trapezoidal lag window: 1 to one half, then down to 0 at 1."""
    return np.clip(2 * (1 - distances), 0.0, 1.0)
