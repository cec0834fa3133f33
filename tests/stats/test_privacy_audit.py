"""Lower bounds of epsilon from one run: against enumeration, and with mechanisms whose epsilon is known."""

from math import comb

import numpy as np
import pytest

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.privacy_audit import (
    audit_design,
    audited_epsilon,
    canary_p_value,
    count_correct,
    inclusion_scores,
)


def enumerated(canaries, guesses, correct, epsilon, delta):
    """Theorem 5.2 of Steinke et al. (2023), written out."""
    q = np.exp(epsilon) / (1 + np.exp(epsilon))
    chance = [comb(guesses, k) * q**k * (1 - q) ** (guesses - k) for k in range(guesses + 1)]
    largest = max(sum(chance[correct - i : correct]) / i for i in range(1, correct + 1))
    return min(1.0, sum(chance[correct:]) + 2 * canaries * delta * largest)


@pytest.mark.parametrize(
    ("guesses", "correct", "epsilon", "delta"), [(10, 9, 1.0, 1e-3), (30, 22, 0.5, 1e-4), (7, 7, 3, 0)]
)
def test_the_p_value_is_that_of_the_theorem(guesses, correct, epsilon, delta):
    found = canary_p_value(40, guesses, correct, epsilon=epsilon, delta=delta)
    assert found == pytest.approx(enumerated(40, guesses, correct, epsilon, delta), rel=1e-9)


def test_the_bound_of_randomized_response_is_above_its_epsilon_as_often_as_allowed():
    # Tight without delta: the guesses are right with probability e^1 / (1 + e^1), independently.
    correct = np.random.default_rng(0).binomial(300, np.e / (1 + np.e), 2000)
    bounds = {count: audited_epsilon(300, 300, int(count), delta=0, error_rate=0.05) for count in set(correct)}
    above = np.mean([bounds[count] > 1.0 for count in correct])
    assert 0.03 < above <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 2000)


def test_canaries_revealed_with_probability_delta_do_not_refute_the_claim():
    rng, delta = np.random.default_rng(1), 0.005
    revealed = rng.random((2000, 200)) < delta
    correct = (revealed | (rng.random((2000, 200)) < np.e / (1 + np.e))).sum(axis=1)
    p_values = {count: canary_p_value(200, 200, int(count), epsilon=1.0, delta=delta) for count in set(correct)}
    assert np.mean([p_values[count] <= 0.05 for count in correct]) <= 0.05


def test_all_guesses_right_give_the_ceiling_and_half_give_nothing():
    assert audited_epsilon(1000, 100, 100, delta=0, error_rate=0.05) == pytest.approx(np.log(100 / 3), abs=0.02)
    assert audited_epsilon(1000, 100, 50, delta=1e-5, error_rate=0.001) == 0


def correct_guesses(noise, rate, steps, canaries, guesses, seed):
    """Audit the subsampled Gaussian mechanism itself."""
    rng = np.random.default_rng(seed)
    included = rng.random(canaries) < 0.5
    drawn = included & (rng.random((steps, canaries)) < rate)
    scores = inclusion_scores(drawn + noise * rng.standard_normal((steps, canaries)), noise=noise, sample_rate=0.1)
    return count_correct(scores, included, guesses)


def test_a_true_claim_is_not_refuted_and_a_quarter_of_the_noise_or_full_batches_are():
    # Noise 2.1, a row in a tenth of 50 steps: epsilon 1.35 at delta 1e-5 by dp-accounting's PLD.
    design = audit_design({1e-5: 1.35}, (1000,), noise=2.1, sample_rate=0.1, steps=50, error_rate=0.001)
    assert design.power > 0.99
    for seed in range(10):
        assert correct_guesses(2.1, 0.1, 50, 1000, design.guesses, seed) < design.needed
        assert correct_guesses(2.1 / 4, 0.1, 50, 1000, design.guesses, seed) >= design.needed
        assert correct_guesses(2.1, 1.0, 50, 1000, design.guesses, seed) >= design.needed


def test_a_design_takes_more_canaries_where_fewer_find_nothing_and_names_what_none_can_refute():
    small = audit_design({1e-5: 0.5}, (1000, 4000), noise=8.9, sample_rate=0.05, steps=600, error_rate=0.001)
    assert (small.canaries, small.power > 0.99) == (4000, True)
    large = audit_design({1e-5: 8.0}, (1000,), noise=1.0, sample_rate=0.1, steps=165, error_rate=0.001)
    assert (large.needed > large.guesses, large.power) == (True, 0.0)
    assert large.ceiling < 8


def test_invalid_counts_are_refused():
    with pytest.raises(UsageError, match="correct and guesses"):
        canary_p_value(10, 11, 5, epsilon=1, delta=0)
