"""Calibration error of probabilities: equal-mass bins, the debiased error and its bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtr, chdtrc, chdtri

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.intervals import Bounds, check_count, check_level, check_vector

Floats = NDArray[np.float64]
_FEWEST_IN_BIN = 20
_STEPS = 50
_MOST_TIMES = 2.0**40


@dataclass(frozen=True, slots=True, eq=False)
class ReliabilityCurve:
    """Rows in bins of their probability, in ascending order.

    `n` (bins,) are the rows of each bin, `confidence` their mean probability, `accuracy` the proportion of events, and
    `variance` the mean of p·(1 − p), that of a calibrated row.
    """

    n: NDArray[np.number[Any]]
    confidence: Floats
    accuracy: Floats
    variance: Floats

    @property
    def gaps(self) -> Floats:
        """Accuracy less confidence, (bins,): positive where the probabilities are too low."""
        return self.accuracy - self.confidence

    @property
    def weights(self) -> Floats:
        """The proportion of rows in each bin."""
        return np.asarray(self.n / self.n.sum())

    @property
    def mean_gap(self) -> float:
        """The expected calibration error: the weighted mean of |accuracy − confidence|, biased upwards by noise.

        Source: Naeini, Cooper and Hauskrecht (2015), AAAI 29, 2901–2907.
        """
        return float(self.weights @ np.abs(self.gaps))


def reliability_curve(probabilities: ArrayLike, events: ArrayLike, *, bins: int = 15) -> ReliabilityCurve:
    """Return rows in bins of about equal size: `probabilities` (n,) of `events` (n,), which are 0 or 1.

    Equal probabilities stay in one bin, and a bin has about 20 rows or more, so that there may be fewer `bins`.
    UsageError for no rows, other lengths, probabilities outside [0, 1], NaN and events that are not 0 or 1.
    """
    scores, happened = check_vector("probabilities", probabilities), check_vector("events", events)
    if scores.size != happened.size or not scores.size:
        raise UsageError(f"events must have one value a probability, got {happened.size} for {scores.size}")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise UsageError("probabilities must lie in [0, 1]")
    if not ((happened == 0) | (happened == 1)).all():
        raise UsageError("events must be 0 or 1")
    count = max(min(check_count("bins", bins, minimum=1), scores.size // _FEWEST_IN_BIN), 1)
    ordered = np.sort(scores)
    edges = np.unique(ordered[np.arange(1, count) * scores.size // count - 1])  # the last probability of a bin
    _, place = np.unique(np.searchsorted(edges, scores, side="left"), return_inverse=True)
    n = np.bincount(place)

    def mean(values: Floats) -> Floats:
        return np.asarray(np.bincount(place, weights=values) / n)

    return ReliabilityCurve(n, mean(scores), mean(happened), mean(scores * (1 - scores)))


def calibration_error_bounds(curve: ReliabilityCurve, *, block: int = 1, low_level: float, high_level: float) -> Bounds:
    """Return the root mean square calibration error over the bins, debiased, with bounds.

    The estimate is sqrt(max(Σ w·(gap² − a·(1 − a)/(n − 1)), 0)) with the weight w, accuracy a and rows n of a bin: the
    squared gaps of a calibrated model are not 0 but the variance of a. Source: Kumar, Liang and Ma (2019), Verified
    uncertainty calibration, NeurIPS 32, algorithm 2; the same debiased term of the Brier score is in Bröcker (2012),
    Climate Dynamics 39, 655–667.

    The bounds invert a test of each error: Σ w·gap² is then a sum of noncentral chi-square variables, with the
    variances of that error and its direction as observed, and its tail is that of the chi-square variable with the same
    three moments. Source: Imhof (1961), Biometrika 48, 419–426; the inversion, as a score interval inverts its test.

    The error within a bin is not seen: more bins see more of it and are less certain. `block` neighboring rows that
    depend on each other count as one. UsageError for a level outside (0.5, 1).
    """
    low_level, high_level = check_level("low_level", low_level), check_level("high_level", high_level)
    block = check_count("block", block, minimum=1)
    weights, gaps = curve.weights, curve.gaps
    observed = float(weights @ gaps**2)
    noise = block * curve.accuracy * (1 - curve.accuracy) / np.maximum(curve.n - 1, 1)
    excess = np.maximum(weights * (gaps**2 - noise), 0)
    # The squared error is spread over the bins as observed, or evenly, with one sign: the wider bound counts.
    even = np.full_like(gaps, -1.0 if float(weights @ gaps) < 0 else 1.0)
    observed_spread = np.sqrt(excess / weights / excess.sum()) * np.where(gaps < 0, -1.0, 1.0) if excess.any() else even

    def tail(error: float, direction: Floats, block: int, *, upper: bool) -> float:
        """Return the probability of a sum of squared gaps at least (`upper`) or at most as large as observed."""
        true = error * direction
        variance = curve.variance + true * (1 - 2 * curve.confidence) - true**2
        scale, shift = weights * block * np.maximum(variance, 0) / curve.n, weights * true**2
        first = float((scale + shift).sum())
        second = float((scale**2 + 2 * scale * shift).sum())
        third = float((scale**3 + 3 * scale**2 * shift).sum())
        if third <= 0:
            return float(first >= observed if upper else first <= observed)
        freedom = second**3 / third**2
        at = max(freedom + (observed - first) * math.sqrt(freedom / second), 0.0)
        return float(chdtrc(freedom, at) if upper else chdtr(freedom, at))

    estimate = math.sqrt(max(observed - float(weights @ noise), 0.0))
    lows, highs = [], []
    for direction in (observed_spread, even):

        def likely_high(error: float, to: Floats = direction) -> bool:
            return tail(error, to, block, upper=True) > 1 - low_level

        def unlikely_low(error: float, to: Floats = direction) -> bool:
            # Blocks explain more of the gaps as noise: the bound must hold if rows do not depend on each other, too.
            return all(tail(error, to, each, upper=False) <= 1 - high_level for each in {1, block})

        lows.append(_crossing(likely_high))
        highs.append(_crossing(unlikely_low))
    return Bounds(estimate, min(*lows, estimate), max(*highs, estimate), low_level, high_level)


def calibration_rows_needed(curve: ReliabilityCurve, *, limit: float, level: float, power: float = 0.9) -> int | None:
    """Return about how many rows let a calibrated model have its high bound at `limit` with probability `power`.

    For rows with the probabilities of `curve`. None if 2⁴⁰ times as many are not enough. UsageError for a limit outside
    (0, 1) and a level outside (0.5, 1).
    """
    if not 0 < limit < 1:
        raise UsageError(f"limit must be above 0 and below 1, got {limit}")
    unlucky = math.sqrt(float(chdtri(curve.n.size, 1 - check_level("power", power))) / curve.n.size)

    def enough(factor: float) -> bool:
        n = curve.n * factor
        gaps = unlucky * np.sqrt(curve.variance / n)
        larger = ReliabilityCurve(n, curve.confidence, curve.confidence + gaps, curve.variance)
        return calibration_error_bounds(larger, low_level=level, high_level=level).high <= limit

    factor = 2.0**-20
    while not enough(factor):
        factor *= 2
        if factor > _MOST_TIMES:
            return None
    low, high = factor / 2, factor
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return math.ceil(high * float(curve.n.sum()))


def _crossing(holds: Callable[[float], bool]) -> float:
    """Return the smallest error in [0, 1] from which on `holds`, by bisection; 1 if it never does."""
    low, high = 0.0, 1.0
    if holds(low):
        return low
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
