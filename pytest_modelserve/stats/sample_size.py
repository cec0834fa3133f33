"""Power and sample size of paired proportions and of means, before anything is measured.

For paired proportions, the verdicts are those of a budget "the drop is at most `margin`" over
`paired_difference_bounds`: PASS when the high end, at `confidence`, is at most the margin; FAIL when the low end, at 1
− `alpha`, lies above it; else INCONCLUSIVE.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, gammaln, ndtr, ndtri, stdtrit, xlog1py, xlogy

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.intervals import check_count, check_error_rate, check_level
from pytest_modelserve.stats.means import block_means, half_width
from pytest_modelserve.stats.paired_proportions import first_lost_above, rows_without_discordance, variance_given

# Discordant totals that together are less likely than this are left out: far below any probability that is reported.
_LOST_MASS = 1e-12
# More than any data set has: if so many blocks do not decide, the budget is too close to the truth.
_MOST_BLOCKS = 10**12


@dataclass(frozen=True, slots=True)
class VerdictProbabilities:
    """Probabilities of the three verdicts, which add up to 1."""

    passes: float
    inconclusive: float
    fails: float


def noninferiority_power(
    n: int, *, discordance: float, difference: float, margin: float, confidence: float, alpha: float
) -> VerdictProbabilities:
    """Return the probability of each verdict with `n` rows, by enumeration of the possible tables.

    `discordance` is the true proportion of rows on which only one model is right, `difference` the true drop: rows are
    lost with probability (discordance + difference)/2 and gained with (discordance − difference)/2. With `difference =
    margin`, `passes` is the true size of the PASS verdict; with 0, the power for an equal model.

    Exact for the verdicts of `paired_difference_bounds`, up to a total probability of 1e-12 that is left out. Takes
    some 30 ms for n up to 10,000 and 50 ms for 100,000.

    UsageError for a discordance outside [0, 1] or smaller than the difference in size, a margin outside (−1, 1), a
    confidence outside (0.5, 1) or an alpha outside (0, 0.5).
    """
    n = check_count("n", n, minimum=1)
    _check_truth(discordance=discordance, difference=difference, margin=margin)
    confidence, alpha = check_level("confidence", confidence), check_error_rate("alpha", alpha)
    totals, weights = _discordant_totals(n, discordance)
    lost_probability = 0.5 * (1 + difference / discordance) if discordance > 0 else 0.5
    first_not_passing = first_lost_above(totals, n, margin, confidence)
    # With the models exchanged, a low end above the margin is a high end below minus the margin.
    first_not_failing = first_lost_above(totals, n, float(np.nextafter(-margin, -1)), 1 - alpha)
    passes = float(weights @ _below(first_not_passing, totals, lost_probability))
    fails = float(weights @ _below(first_not_failing, totals, 1 - lost_probability))
    return VerdictProbabilities(passes=passes, inconclusive=max(1 - passes - fails, 0.0), fails=fails)


def rows_needed(
    *, discordance: float, margin: float, difference: float = 0.0, confidence: float, power: float = 0.9
) -> int:
    """Return the number of rows with which a model of true drop `difference` passes with probability about `power`.

    (z(confidence)·sqrt(v₀) + z(power)·sqrt(v₁))² / (margin − difference)², rounded up, where v₁ = discordance −
    difference² is the variance of one row's (lost − gained) and v₀ that of the fit at the margin; but no fewer than the
    rows with which an interval without a discordant row is first below the margin (289 for 1 point at 95 %). Where the
    discordance is far above the margin the two variances are equal and n is the familiar 8.564·discordance/margin².

    An approximation: where few discordant rows are expected, the power moves in steps as n grows. For a power of 0.9,
    margins from 1 to 5 points and discordances from 0.1 to 30 %, the power enumerated at the n returned lies between
    0.84 and 0.97 (benchmarks/error_rates.py); `noninferiority_power` computes it for any n.

    Source: Nam (1997), Biometrics 53, 1422–1430, the sample size of the score test.

    UsageError for a difference that is not below the margin (no number of rows makes PASS likely), a discordance
    outside [0, 1] or smaller than the difference in size, a confidence outside (0.5, 1) or a power outside (0.5, 1).
    """
    _check_truth(discordance=discordance, difference=difference, margin=margin)
    if difference >= margin:
        raise UsageError(
            f"difference must be below the margin {margin}, got {difference}: no number of rows makes PASS likely"
        )
    z_pass = float(ndtri(check_level("confidence", confidence)))
    z_power = float(ndtri(check_level("power", power)))
    fitted = float(variance_given((discordance + difference) / 2, (discordance - difference) / 2, 1, margin))
    true = discordance - difference**2
    n = math.ceil(((z_pass * math.sqrt(fitted) + z_power * math.sqrt(true)) / (margin - difference)) ** 2)
    return max(n, rows_without_discordance(margin, confidence)) if margin > 0 else n


def _check_truth(*, discordance: float, difference: float, margin: float) -> None:
    if not 0 <= discordance <= 1:
        raise UsageError(f"discordance must lie in [0, 1], got {discordance}")
    if not abs(difference) <= discordance:
        raise UsageError(f"discordance must be at least |difference| = {abs(difference)}, got {discordance}")
    if not -1 < margin < 1:
        raise UsageError(f"margin must be above -1 and below 1, got {margin}")


def _discordant_totals(n: int, discordance: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the totals of discordant rows that are likely enough, (totals,), and their probabilities."""
    mean = n * discordance
    # Bernstein's inequality: |total − mean| exceeds width with probability below _LOST_MASS.
    log_mass = math.log(2 / _LOST_MASS)
    width = log_mass / 3 + math.sqrt((log_mass / 3) ** 2 + 2 * mean * (1 - discordance) * log_mass)
    totals = np.arange(max(math.floor(mean - width), 0), min(math.ceil(mean + width), n) + 1)
    logarithms = (
        gammaln(n + 1)
        - gammaln(totals + 1)
        - gammaln(n - totals + 1)
        + xlogy(totals, discordance)
        + xlog1py(n - totals, -discordance)
    )
    weights = np.exp(logarithms)
    return totals, weights / weights.sum()


def _below(first: NDArray[np.int64], totals: NDArray[np.int64], probability: float) -> NDArray[np.float64]:
    """Return P(count < first) for each total, count ~ Bin(total, probability)."""
    return np.where(first > 0, bdtr(np.maximum(first - 1, 0), totals, probability), 0.0)


def mean_power(
    values: ArrayLike, *, truth: float, limit: float, block: int = 1, confidence: float, alpha: float
) -> VerdictProbabilities:
    """Return the probability of each verdict on "at most `limit`" with as many `values` (n,) of true mean `truth`.

    The bounds are those of `mean_bounds`; for "at least" change every sign. An approximation: the values are taken to
    be about normal and to vary as the sample does. A single block is always INCONCLUSIVE. UsageError
    as for `block_means`, for a confidence outside (0.5, 1) and an alpha outside (0, 0.5).
    """
    confidence, alpha = check_level("confidence", confidence), check_error_rate("alpha", alpha)
    sample = block_means(values, block=block)
    if sample.blocks < 2:
        return VerdictProbabilities(passes=0.0, inconclusive=1.0, fails=0.0)
    if sample.standard_error == 0:
        return VerdictProbabilities(passes=float(truth <= limit), inconclusive=0.0, fails=float(truth > limit))
    passes = float(ndtr((limit - truth - half_width(sample, confidence, below=False)) / sample.standard_error))
    fails = float(ndtr((truth - limit - half_width(sample, 1 - alpha, below=True)) / sample.standard_error))
    return VerdictProbabilities(passes=passes, inconclusive=max(1 - passes - fails, 0.0), fails=fails)


def values_needed(
    values: ArrayLike,
    *,
    truth: float,
    limit: float,
    block: int = 1,
    confidence: float,
    alpha: float,
    power: float = 0.9,
) -> int | None:
    """Return about how many values decide, with probability `power`, on a true mean of `truth`.

    PASS up to `limit`, else FAIL. The smallest number of blocks that is at least (t + z(power))²·s²/(limit − truth)²,
    where s² is the variance of a block in `values` (n,), and t is Student's quantile for that many blocks, scaled for
    skewness. None where no number is enough (`truth` is `limit`, or nearly), or where there is a single block.
    UsageError as for `mean_power`, and for a power outside (0.5, 1).
    """
    confidence, alpha = check_level("confidence", confidence), check_error_rate("alpha", alpha)
    level, z = confidence if truth <= limit else 1 - alpha, float(ndtri(check_level("power", power)))
    sample = block_means(values, block=block)
    if sample.blocks < 2 or truth == limit:
        return None
    if sample.standard_error == 0:
        return math.ceil(2 * sample.n / sample.blocks)
    student = float(stdtrit(sample.blocks - 1, level)) * sample.standard_error
    scale = half_width(sample, level, below=truth > limit) / student
    spread = sample.standard_error * math.sqrt(sample.blocks) / abs(limit - truth)

    def is_enough(blocks: int) -> bool:
        return math.sqrt(blocks) >= (float(stdtrit(blocks - 1, level)) * scale + z) * spread

    enough = 2
    while not is_enough(enough):
        if enough > _MOST_BLOCKS:
            return None
        enough *= 2
    blocks = bisect_left(range(enough), True, lo=max(enough // 2, 2), key=is_enough)
    return math.ceil(blocks * sample.n / sample.blocks)
