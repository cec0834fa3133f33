"""How sure a linearised estimate is, when few rows carry it: bounds that allow for kinds of rows not seen."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from pytest_modelserve.stats import _arguments
from pytest_modelserve.stats.block_means import BlockMeans, block_means, reach
from pytest_modelserve.stats.bounds import Bounds
from pytest_modelserve.stats.mean_planning import values_needed
from pytest_modelserve.stats.noninferiority import VerdictShares


def linearised_bounds(
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
    low_level, high_level = _arguments.level("low_level", low_level), _arguments.level("high_level", high_level)
    sample = block_means(values)
    return Bounds(
        estimate=sample.mean,
        low=sample.mean - _reach(sample, low_level, largest, rows, below=True),
        high=sample.mean + _reach(sample, high_level, largest, rows, below=False),
        low_level=low_level,
        high_level=high_level,
    )


def linearised_power(
    values: NDArray[np.float64],
    *,
    truth: float,
    limit: float,
    largest: float = 0.0,
    rows: int | None = None,
    confidence: float,
    alpha: float,
) -> VerdictShares:
    """The probability of each verdict on "at most `limit`" with as many units, were the true value `truth`.

    An approximation, as `mean_power` is. UsageError as there.
    """
    confidence, alpha = _arguments.level("confidence", confidence), _arguments.error_rate("alpha", alpha)
    sample = block_means(values)
    if sample.blocks < 2:
        return VerdictShares(passes=0.0, inconclusive=1.0, fails=0.0)
    room = limit - truth
    up = room - _reach(sample, confidence, largest, rows, below=False)
    down = -room - _reach(sample, 1 - alpha, largest, rows, below=True)
    passes, fails = _chance(up, sample.standard_error), _chance(down, sample.standard_error, closed=False)
    return VerdictShares(passes=passes, inconclusive=max(1 - passes - fails, 0.0), fails=fails)


def linearised_needed(
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


def unseen_share(n: int, level: float) -> float:
    """The largest share that a kind of unit can have of which none is among n, at `level`: 1 − (1 − level)^(1/n).

    The Clopper-Pearson bound of no success, known as the rule of three: about 3/n at 95 %.
    """
    return -math.expm1(math.log1p(-level) / n)


def _reach(sample: BlockMeans, level: float, largest: float, rows: int | None, *, below: bool) -> float:
    regular = reach(sample, level, below=below, degrees_of_freedom=_degrees_of_freedom(sample))
    return max(regular, largest * unseen_share(_seen(sample, rows), level))


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
