"""The mean outcome of new rows: weights, both models, and the interval."""

import numpy as np
import pytest
from scipy.special import expit, logit

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import shifted_mean


def drawn(rng, rows, *, shift=0.0):
    """Inputs whose last column the score does not know, the log odds of the confidence, and correctness."""
    inputs = rng.normal(size=(rows, 4))
    inputs[:, 3] += shift
    truth = expit(2 * inputs[:, 0] + inputs[:, 3])
    score = expit(2 * inputs[:, 0])
    right = (rng.random(rows) < truth) == (score > 0.5)
    confidence = np.maximum(score, 1 - score)
    return inputs, logit(np.clip(confidence, 0.5, 1 - 1e-9))[:, None], right.astype(float)


def estimate(rng, *, shift, rows=3000, window=2000):
    old, new = drawn(rng, rows), drawn(rng, window, shift=shift)
    found = shifted_mean(old[2], old[1], np.hstack(old[:2]), new[1], np.hstack(new[:2]), is_proportion=True)
    return found, new[2].mean()


def test_interval_covers_the_realized_accuracy_where_an_input_moves_that_the_score_misses():
    rng = np.random.default_rng(0)
    hits, plain, sizes = 0, [], []
    for _ in range(100):
        found, realized = estimate(rng, shift=0.9)
        bounds = found.bounds(low_level=0.975, high_level=0.975)
        hits += bounds.low <= realized <= bounds.high
        plain.append(found.unweighted - realized)
        sizes.append(found.effective_size)
    assert hits >= 87  # 95 %: P(fewer than 87 of 100) < 0.1 %
    assert abs(np.mean(plain)) > 0.01
    assert 1000 < np.mean(sizes) < 1600  # 3000 · exp(−0.81) = 1335


def test_effective_size_is_that_of_kish_for_a_normal_shift():
    found, _ = estimate(np.random.default_rng(1), shift=1.0, rows=40_000, window=40_000)
    assert found.effective_size == pytest.approx(40_000 * np.exp(-1), rel=0.1)


def test_unchanged_rows_have_weights_of_one():
    found, _ = estimate(np.random.default_rng(2), shift=0.0)
    assert found.effective_size > 2950
    assert found.estimate == pytest.approx(found.unweighted, abs=0.005)


def test_standard_error_agrees_with_the_spread_over_data_sets():
    rng = np.random.default_rng(3)
    found = [estimate(rng, shift=0.7, rows=2000, window=1000) for _ in range(150)]
    errors = np.array([each.estimate - realized for each, realized in found])
    claimed = np.mean([each.standard_error for each, _ in found])
    assert errors.std() == pytest.approx(claimed, rel=0.2)


def test_losses_are_predicted_by_a_linear_regression():
    rng = np.random.default_rng(4)
    old, new = rng.normal(size=(4000, 2)), rng.normal([1, 0], 1, size=(2000, 2))

    def losses(inputs):
        return 2 + inputs[:, 0] + rng.exponential(size=len(inputs))

    found = shifted_mean(losses(old), old, old, new, new, is_proportion=False)
    bounds = found.bounds(low_level=0.999, high_level=0.999)
    assert bounds.low < losses(new).mean() < bounds.high
    assert found.estimate == pytest.approx(4, abs=0.15)
    assert not found.is_proportion


def test_losses_that_are_all_equal_have_no_spread():
    x = np.random.default_rng(6).normal(size=(100, 2))
    found = shifted_mean(np.ones(100), x, x, x, x, is_proportion=False)
    assert (found.estimate, found.standard_error) == (pytest.approx(1), pytest.approx(0, abs=1e-6))


def test_outcomes_that_are_all_one_have_an_estimate_below_one():
    rng = np.random.default_rng(5)
    inputs, score, _ = drawn(rng, 500)
    found = shifted_mean(np.ones(500), score, inputs, score, inputs, is_proportion=True)
    assert 0.99 < found.estimate < 1


def test_arrays_that_do_not_fit_are_refused():
    x, y = np.zeros((10, 2)), np.zeros(10)
    with pytest.raises(UsageError, match=r"inputs must be \(rows, columns\) with the same columns"):
        shifted_mean(y, x, x, x, np.zeros((10, 3)), is_proportion=True)
    with pytest.raises(UsageError, match="must have the same rows"):
        shifted_mean(y[:9], x, x, x, x, is_proportion=True)
    with pytest.raises(UsageError, match="outcomes of a proportion must be 0 or 1"):
        shifted_mean(y + 0.5, x, x, x, x, is_proportion=True)
    with pytest.raises(UsageError, match="inputs must be finite"):
        shifted_mean(y, x, np.full((10, 2), np.nan), x, x, is_proportion=True)
