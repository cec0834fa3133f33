"""Reliability curves, and the debiased calibration error with its bounds."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import ncx2

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import (
    ReliabilityCurve,
    calibration_error_bounds,
    calibration_rows_needed,
    reliability_curve,
)

LEVELS = {"low_level": 0.999, "high_level": 0.95}


def draw(rng, rows, *, temperature=1.0):
    """Probabilities and events; with a temperature above 1 the probabilities are too extreme."""
    logits = rng.normal(0, 1.5, rows)
    return expit(logits), (rng.random(rows) < expit(logits / temperature)).astype(float)


def test_bins_have_equal_mass_and_their_means():
    scores = np.arange(100) / 100
    curve = reliability_curve(scores[::-1], (scores[::-1] > 0.5).astype(float), bins=4)
    assert curve.n.tolist() == [25, 25, 25, 25]
    np.testing.assert_allclose(curve.confidence, [0.12, 0.37, 0.62, 0.87])
    np.testing.assert_allclose(curve.accuracy, [0, 0, 24 / 25, 1])
    assert curve.mean_gap == pytest.approx(np.mean(np.abs(curve.accuracy - curve.confidence)))


def test_equal_probabilities_stay_in_one_bin():
    scores = np.repeat([0.1, 0.9], [90, 10])
    curve = reliability_curve(scores, np.zeros(100), bins=5)
    assert curve.n.tolist() == [90, 10]


def test_estimate_is_that_of_kumar_et_al():
    rng = np.random.default_rng(0)
    curve = reliability_curve(*draw(rng, 3000, temperature=2), bins=10)
    squares = 0.0
    for n, confidence, accuracy in zip(curve.n, curve.confidence, curve.accuracy, strict=True):
        squares += n / 3000 * ((confidence - accuracy) ** 2 - accuracy * (1 - accuracy) / (n - 1))
    assert calibration_error_bounds(curve, **LEVELS).estimate == pytest.approx(squares**0.5)


def test_bounds_of_one_bin_are_those_of_the_noncentral_chi_square():
    n, gap, p = 2000, 0.05, 0.5
    curve = ReliabilityCurve(np.array([n]), np.array([p]), np.array([p + gap]), np.array([p * (1 - p)]))
    bounds = calibration_error_bounds(curve, low_level=0.975, high_level=0.975)
    for end, tail in ((bounds.low, ncx2.sf), (bounds.high, ncx2.cdf)):
        variance = (p + end) * (1 - p - end) / n
        assert tail(gap**2 / variance, 1, end**2 / variance) == pytest.approx(0.025, abs=0.004)


def test_error_rates_of_both_bounds_at_2000_rows():
    rng = np.random.default_rng(1)
    calibrated = [calibration_error_bounds(reliability_curve(*draw(rng, 2000)), **LEVELS) for _ in range(300)]
    assert sum(bounds.low > 0 for bounds in calibrated) <= 4  # at 0.1 %
    assert sum(bounds.high <= 0.05 for bounds in calibrated) >= 250
    large = reliability_curve(*draw(rng, 1_000_000, temperature=2))
    truth = calibration_error_bounds(large, **LEVELS).estimate
    hot = [calibration_error_bounds(reliability_curve(*draw(rng, 2000, temperature=2)), **LEVELS) for _ in range(300)]
    assert sum(bounds.low > 0.02 for bounds in hot) >= 290
    assert sum(bounds.high < truth for bounds in hot) <= 28  # 5 %: P(more than 28 of 300) < 0.1 %
    assert sum(bounds.low > truth for bounds in hot) <= 4


def test_blocks_widen_the_bounds():
    curve = reliability_curve(*draw(np.random.default_rng(2), 2000, temperature=2))
    alone, blocks = (calibration_error_bounds(curve, block=block, **LEVELS) for block in (1, 10))
    assert blocks.low < alone.low < alone.high <= blocks.high


def test_certain_probabilities_of_certain_events_have_an_error_of_zero_at_least():
    curve = reliability_curve(np.repeat([0.0, 1.0], 500), np.repeat([0.0, 1.0], 500))
    bounds = calibration_error_bounds(curve, **LEVELS)
    assert (bounds.low, bounds.estimate) == (0, 0)
    assert bounds.high < 0.03


def test_planned_rows_let_a_calibrated_model_pass_nine_times_in_ten():
    rng = np.random.default_rng(3)
    needed = calibration_rows_needed(reliability_curve(*draw(rng, 1000)), limit=0.04, level=0.95)
    passed = [
        calibration_error_bounds(reliability_curve(*draw(rng, needed)), **LEVELS).high <= 0.04 for _ in range(150)
    ]
    assert 0.8 < np.mean(passed) < 0.99


@pytest.mark.parametrize(
    ("scores", "events", "message"),
    [
        ([0.5, 1.2], [0, 1], "probabilities must lie in"),
        ([0.5, np.nan], [0, 1], "probabilities must lie in"),
        ([0.5, 0.5], [0, 2], "events must be 0 or 1"),
        ([0.5], [0, 1], "one value a probability, got 2 for 1"),
        ([], [], "got 0 for 0"),
    ],
)
def test_invalid_rows_are_refused(scores, events, message):
    with pytest.raises(UsageError, match=message):
        reliability_curve(scores, events)
