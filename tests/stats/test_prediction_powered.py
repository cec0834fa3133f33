"""Means from few labels and many scores, and the rows to label."""

from statistics import NormalDist

import numpy as np
import pytest
from scipy.special import expit

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import (
    binomial_bounds,
    effective_proportion_bounds,
    prediction_powered_mean,
    score_strata,
    stratified_design,
    stratified_proportion_bounds,
)

LEVELS = {"low_level": 0.975, "high_level": 0.975}


def audited(rng, rows, *, useless=False):
    """Scores, and whether each prediction is right; the correlation of both is 0.45."""
    scores = expit(np.abs(rng.normal(0, 4.7, rows)))
    chance = np.full(rows, 0.888) if useless else scores
    return scores, (rng.random(rows) < chance).astype(float)


def test_estimate_and_variance_are_those_of_the_regression_estimator():
    rng = np.random.default_rng(0)
    scores, right = audited(rng, 4000)
    rows = rng.choice(4000, 300, replace=False)
    found = prediction_powered_mean(right[rows], scores[rows], scores)
    slope, intercept = np.polyfit(scores[rows], right[rows], 1)
    assert found.value == pytest.approx(intercept + slope * scores.mean())
    residuals = right[rows] - intercept - slope * scores[rows]
    variance = (residuals @ residuals) / 298 / 300 + slope**2 * scores[rows].var() / 4000
    assert found.influence.std(ddof=1) ** 2 / 300 == pytest.approx(variance, rel=0.005)


def test_estimate_and_width_agree_with_ppi_python():
    rng = np.random.default_rng(5)
    scores = rng.uniform(0.5, 1, 3000)
    right = (rng.random(300) < scores[:300]).astype(float)
    found = prediction_powered_mean(right, scores[:300], scores)
    # ppi_py 0.2.3: ppi_mean_pointestimate and ppi_mean_ci of (right, scores[:300], scores[300:]) at alpha=0.1
    assert found.value == pytest.approx(0.775814, abs=2e-4)
    half_width = found.influence.std(ddof=1) / 300**0.5 * NormalDist().inv_cdf(0.95)
    assert half_width == pytest.approx(0.038017, rel=0.01)


def test_weights_undo_a_biased_selection():
    rng = np.random.default_rng(1)
    scores, right = audited(rng, 40_000)
    chance = np.where(scores < 0.9, 0.2, 0.02)
    rows = np.flatnonzero(rng.random(40_000) < chance)
    plain = prediction_powered_mean(right[rows], np.zeros(len(rows)), np.zeros(40_000)).value
    weighted = prediction_powered_mean(right[rows], scores[rows], scores, weights=1 / chance[rows])
    assert abs(plain - right.mean()) > 0.05
    assert abs(weighted.value - right.mean()) < 4 * weighted.influence.std() / len(rows) ** 0.5 < 0.05


def test_constant_scores_leave_the_mean_of_the_labels():
    found = prediction_powered_mean([1, 0, 1, 1], [0.5] * 4, [0.5] * 10)
    assert found.value == 0.75


def simulate(repeats, count, *, useless=False):
    """Widths relative to the labels alone and coverage: uniform, stratified."""
    rng = np.random.default_rng(count)
    truth = 0.888
    widths, covered = np.zeros(3), np.zeros(2)
    for _ in range(repeats):
        scores, right = audited(rng, 10 * count, useless=useless)
        rows = rng.choice(10 * count, count, replace=False)
        powered = prediction_powered_mean(right[rows], scores[rows], scores)
        variance = powered.influence.var(ddof=1) / count
        uniform = effective_proportion_bounds(powered.value, variance, count, degrees_of_freedom=count - 1, **LEVELS)
        strata = score_strata(scores)
        drawn = stratified_design(scores, strata, count).rows
        good = [right[rng.choice(np.flatnonzero(strata == s), n, replace=False)].sum() for s, n in enumerate(drawn)]
        stratified = stratified_proportion_bounds(good, drawn, np.bincount(strata), **LEVELS)
        alone = binomial_bounds(int(right[rows].sum()), count, **LEVELS)
        widths += [bounds.high - bounds.low for bounds in (uniform, stratified, alone)]
        covered += [bounds.low <= truth <= bounds.high for bounds in (uniform, stratified)]
    return widths[:2] / widths[2], covered / repeats


def test_score_narrows_the_interval_at_500_labels_and_keeps_the_level():
    (uniform, stratified), coverage = simulate(200, 500)
    assert uniform == pytest.approx((1 - 0.445**2 * 0.9) ** 0.5, rel=0.03)
    assert stratified < 0.83
    assert (coverage > 0.9).all()


def test_useless_score_costs_little():
    (uniform, stratified), _ = simulate(100, 200, useless=True)
    assert uniform < 1.03
    assert stratified < 1.09


def test_strata_hold_about_equal_sums_of_standard_deviations():
    scores = np.linspace(0.5, 1, 10_001)
    strata = score_strata(scores)
    sums = np.bincount(strata, weights=np.sqrt(scores * (1 - scores)))
    np.testing.assert_allclose(sums, sums.mean(), rtol=0.01)
    assert score_strata(np.repeat([0.6, 0.9], 50)).tolist() == [0] * 50 + [1] * 50
    assert score_strata(np.ones(5)).tolist() == [0] * 5


def test_strata_have_two_rows_at_least():
    assert np.bincount(score_strata(np.array([0.5, *[0.9999] * 20, 1.0]))).min() >= 2
    assert np.bincount(score_strata(np.array([0.9, 0.9, 0.91, *[1.0] * 50]))).min() >= 2
    assert score_strata(np.array([0.5])).tolist() == [0]


def test_design_spends_every_label_and_two_at_least_on_each_stratum():
    scores = np.concatenate([np.full(10, 0.5), np.full(990, 0.999)])
    strata = score_strata(scores)
    design = stratified_design(scores, strata, 50)
    assert design.rows.sum() == 50
    assert (design.rows >= 2).all()
    assert design.rows[0] / 10 > design.rows[-1] / 990  # more where the model is unsure
    with pytest.raises(UsageError, match="at most the 1,000 rows"):
        stratified_design(scores, strata, 1001)
    with pytest.raises(UsageError, match="two rows for each stratum, got 1"):
        stratified_design(scores, strata, 1)


def test_single_stratum_has_nearly_the_bounds_of_clopper_and_pearson():
    exact = binomial_bounds(180, 200, **LEVELS)
    bounds = stratified_proportion_bounds([180], [200], [10**9], **LEVELS)
    assert (bounds.low, bounds.high) == pytest.approx((exact.low, exact.high), abs=0.001)


def test_all_rows_right_have_the_bounds_of_as_many_rows():
    bounds = stratified_proportion_bounds([40, 60], [40, 60], [400, 600], **LEVELS)
    assert bounds.high == 1
    assert bounds.low == pytest.approx(binomial_bounds(100, 100, **LEVELS).low, abs=0.002)


def test_stratum_with_one_row_is_refused():
    with pytest.raises(UsageError, match="n of at least 2"):
        stratified_proportion_bounds([1, 20], [1, 30], [10, 300], **LEVELS)
