"""Lower bounds of epsilon from one training run with canaries, each included by a fair coin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, gammaln

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.intervals import check_count, check_error_rate

Floats = NDArray[np.float64]

# Guesses as a proportion of the canaries, among which a design chooses.
_GUESSES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
_SIMULATIONS = 200
# A power that is not worth more canaries.
_ENOUGH_POWER = 0.99
_LARGEST_EPSILON = 50.0
_NODES = 64


def canary_p_value(canaries: int, guesses: int, correct: int, *, epsilon: float, delta: float) -> float:
    """Return the probability of so many correct guesses about canaries of an (epsilon, delta)-private training.

    Each of `canaries` is in the training data with probability 1/2, independently. After the training `guesses` of
    them are guessed, in or out, and `correct` are right; the number of guesses is fixed beforehand. Without delta the
    number of correct ones is at most binomial with probability e^epsilon / (1 + e^epsilon). Delta adds
    2 · canaries · delta · max over i of P(correct − i ≤ B < correct) / i.

    Source: Steinke, Nasr and Jagielski (2023), "Privacy auditing with one (1) training run", theorem 5.2, appendix D.

    Example:
        >>> round(canary_p_value(1000, 100, 90, epsilon=1.0, delta=1e-6), 5)
        4e-05
    """
    check_count("canaries", canaries)
    if not 0 <= correct <= guesses <= canaries:
        raise UsageError(f"correct and guesses must be 0 ≤ {correct} ≤ {guesses} ≤ {canaries} canaries")
    probability = min(1.0 / (1.0 + math.exp(-epsilon)), 1.0 - 1e-16)
    if correct == 0:
        return 1.0
    tail = float(bdtrc(correct - 1, guesses, probability))
    below = np.cumsum(_binomial(np.arange(correct - 1, -1, -1), guesses, probability))
    largest = float((below / np.arange(1, correct + 1)).max())
    return min(1.0, tail + 2.0 * canaries * delta * largest)


def _binomial(counts: NDArray[np.int64], n: int, probability: float) -> Floats:
    """Return the binomial probability of each of `counts`; 0 < `probability` < 1."""
    ways = gammaln(n + 1) - gammaln(counts + 1) - gammaln(n - counts + 1)
    return np.asarray(np.exp(ways + counts * math.log(probability) + (n - counts) * math.log1p(-probability)))


def audited_epsilon(canaries: int, guesses: int, correct: int, *, delta: float, error_rate: float) -> float:
    """Return a lower bound of epsilon at `delta`, which is above the true one with probability `error_rate` at most.

    The largest epsilon that `canary_p_value` rejects; 0 if it rejects none.

    Example:
        >>> round(audited_epsilon(1000, 100, 100, delta=0.0, error_rate=0.05), 3)  # ln(100 / 3)
        3.49
    """
    check_error_rate("error_rate", error_rate)

    def is_rejected(epsilon: float) -> bool:
        return canary_p_value(canaries, guesses, correct, epsilon=epsilon, delta=delta) <= error_rate

    if not is_rejected(0.0):
        return 0.0
    low, high = 0.0, _LARGEST_EPSILON
    if is_rejected(high):
        return high
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if is_rejected(middle) else (low, middle)
    return low


def inclusion_scores(gradients: Floats, *, noise: float, sample_rate: float) -> Floats:
    """Return for each canary the log-likelihood ratio of being in the data against not, (canaries,).

    Args:
        gradients: The noisy gradient of each step along each canary, (steps, canaries), in multiples of the longest
            gradient of a row: N(0, noise²) without the canary, and N(1, noise²) in the steps that draw it.
        noise: Standard deviation of the noise.
        sample_rate: Probability that a step draws a canary that is in the data.
    """
    values = np.asarray(gradients, np.float64)
    if sample_rate >= 1:
        return np.asarray(values.sum(axis=0), np.float64)
    ratio = (2 * values - 1) / (2 * noise**2)
    steps = np.logaddexp(math.log1p(-sample_rate), math.log(sample_rate) + ratio)
    return np.asarray(steps.sum(axis=0), np.float64)


def count_correct(scores: Floats, included: NDArray[np.bool_], guesses: int) -> int:
    """Return the number of correct guesses: half of them "in", for the highest scores, and half "out"."""
    order = np.argsort(scores, kind="stable")
    half = guesses // 2
    highest, lowest = order[len(order) - half :], order[: guesses - half]
    return int(included[highest].sum() + (~included[lowest]).sum())


@dataclass(frozen=True, slots=True)
class AuditDesign:
    """An audit that was planned from what is claimed, before any canary was seen.

    Attributes:
        canaries: Number of canaries, of which about half are in the data.
        guesses: Number of guesses.
        delta: The delta at which the claim is tested, at most the claimed one.
        epsilon: The claimed epsilon at `delta`.
        needed: Correct guesses that refute the claim; more than `guesses` if none do.
        power: Probability that noise of a quarter of what is claimed refutes it.
        ceiling: The largest epsilon that all guesses, being correct, would refute.
    """

    canaries: int
    guesses: int
    delta: float
    epsilon: float
    needed: int
    power: float
    ceiling: float


def audit_design(
    claims: Mapping[float, float],
    canaries: Sequence[int],
    *,
    noise: float,
    sample_rate: float,
    steps: int,
    error_rate: float,
    sabotage: float = 0.25,
    seed: int = 0,
) -> AuditDesign:
    """Return the audit with the highest power against noise of `sabotage` times the claimed one.

    The first number of `canaries` and the first delta of `claims` whose power is at least 0.99, else those with the
    highest power. The scores are
    taken as normal, with the mean and the variance of the likelihood ratio of a step.

    Args:
        claims: The claimed epsilon at each delta at which the claim could be tested.
        canaries: Numbers of canaries to choose from, ascending.
        noise: Claimed standard deviation of the noise, in multiples of the longest gradient of a row.
        sample_rate: Claimed probability of a row in a step.
        steps: Number of steps.
        error_rate: Probability at most of refuting a true claim.
        sabotage: Factor of the noise against which the power is computed.
        seed: Seed of the simulation of the power.
    """
    check_error_rate("error_rate", error_rate)
    best, best_margin = None, -math.inf
    for count in canaries:
        included = _simulated(count, noise * sabotage, sample_rate, steps, seed)
        for delta, epsilon in claims.items():
            for guesses in sorted({max(2, round(part * count)) for part in _GUESSES}):
                needed = _needed(count, guesses, epsilon, delta, error_rate)
                half = guesses // 2
                correct = included[:, count - half :].sum(axis=1) + (~included[:, : guesses - half]).sum(axis=1)
                if needed <= guesses:  # in standard deviations
                    margin = (correct.mean() - needed) / (correct.std() + 1)
                else:  # no number of correct guesses refutes the claim: below all others
                    margin = _ceiling(count, guesses, delta, error_rate) - epsilon - 1e6
                if margin > best_margin:
                    power = float((correct >= needed).mean())
                    ceiling = _ceiling(count, guesses, delta, error_rate)
                    best, best_margin = AuditDesign(count, guesses, delta, epsilon, needed, power, ceiling), margin
            if best is not None and best.power >= _ENOUGH_POWER:
                return best
    assert best is not None
    return best


def _ceiling(canaries: int, guesses: int, delta: float, error_rate: float) -> float:
    return audited_epsilon(canaries, guesses, guesses, delta=delta, error_rate=error_rate)


def _needed(canaries: int, guesses: int, epsilon: float, delta: float, error_rate: float) -> int:
    """Return the fewest correct guesses that refute the claim, one more than `guesses` if none do."""
    low, high = 0, guesses + 1
    while high - low > 1:
        middle = (low + high) // 2
        rejected = canary_p_value(canaries, guesses, middle, epsilon=epsilon, delta=delta) <= error_rate
        low, high = (low, middle) if rejected else (middle, high)
    return high


def _simulated(canaries: int, noise: float, sample_rate: float, steps: int, seed: int) -> NDArray[np.bool_]:
    """Return whether each canary is included, in the order of the scores, (simulations, canaries)."""
    (mean_out, sd_out), (mean_in, sd_in) = _score_moments(noise, sample_rate, steps)
    generator = np.random.default_rng(seed)
    included = generator.random((_SIMULATIONS, canaries)) < 0.5
    normal = generator.standard_normal((_SIMULATIONS, canaries))
    scores = np.where(included, mean_in + sd_in * normal, mean_out + sd_out * normal)
    return np.take_along_axis(included, np.argsort(scores, axis=1), axis=1)


def _score_moments(noise: float, rate: float, steps: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return mean and standard deviation of a canary's score without it and with it, by Gauss–Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    weights = weights / weights.sum()

    def moments(mean: float) -> tuple[float, float]:
        values = inclusion_scores((mean + noise * nodes)[None], noise=noise, sample_rate=rate)
        return float(weights @ values), float(weights @ values**2)

    (out_1, out_2), (drawn_1, drawn_2) = moments(0.0), moments(1.0)
    in_1, in_2 = (1 - rate) * out_1 + rate * drawn_1, (1 - rate) * out_2 + rate * drawn_2
    return (
        (steps * out_1, math.sqrt(max(steps * (out_2 - out_1**2), 1e-300))),
        (steps * in_1, math.sqrt(max(steps * (in_2 - in_1**2), 1e-300))),
    )
