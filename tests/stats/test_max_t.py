"""The step-down max-T test against published critical values, scipy's multivariate normal, and simulation."""

from functools import partial

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import multivariate_normal

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import correlations_of, pass_probability, step_down_max_t


def _critical(correlations, **options):
    found = step_down_max_t(lambda k, level: False, correlations, error_rate=0.05, **options)
    return ndtri(found.level)


def _exceeds(z, k, level):
    return z[k] >= ndtri(level)


def _equal(k, correlation):
    return np.full((k, k), correlation) + (1 - correlation) * np.eye(k)


# Dunnett 1955, Journal of the American Statistical Association 50:1096-1121, table 1a: infinite degrees of freedom.
@pytest.mark.parametrize(("k", "critical"), [(1, 1.64), (2, 1.92), (3, 2.06), (4, 2.16), (5, 2.23), (9, 2.42)])
def test_critical_values_are_dunnetts(k, critical):
    assert _critical(_equal(k, 0.5)) == pytest.approx(critical, abs=0.03)  # 20,000 draws


def test_unequal_correlations_agree_with_the_multivariate_normal():
    correlations = np.array([[1, 0.8, -0.2], [0.8, 1, 0.1], [-0.2, 0.1, 1]])
    c = _critical(correlations)
    assert multivariate_normal.cdf([c] * 3, cov=correlations) == pytest.approx(0.95, abs=0.004)


def test_equal_statistics_cost_no_more_than_one():
    assert _critical(_equal(20, 1.0)) == pytest.approx(ndtri(0.95), abs=0.02)


def test_hypotheses_of_unknown_correlation_count_in_full():
    assert _critical(np.zeros((0, 0)), untested=10) == pytest.approx(ndtri(1 - 0.05 / 10))
    assert _critical(np.eye(5)) < _critical(np.eye(5), untested=5) <= ndtri(1 - 0.05 / 10)


def test_testing_more_hypotheses_takes_no_rejection_back():
    z = np.array([2.6, 2.5, 0.0, 0.0, 0.0, 0.0])

    def rejected(k):
        found = step_down_max_t(lambda i, level: z[i] >= ndtri(level), _equal(k, 0.3), error_rate=0.05, untested=6 - k)
        return set(np.flatnonzero(found.rejected))

    assert rejected(2) <= rejected(4) <= rejected(6)


def test_rejections_leave_the_family():
    # 2.2 lies between the critical values of two statistics and of one less.
    z = [9.0, 9.0, 9.0, 9.0, 1.7]
    found = step_down_max_t(lambda k, level: z[k] >= ndtri(level), np.eye(5), error_rate=0.05)
    assert found.rejected.all()
    assert found.level == pytest.approx(0.95)


def test_any_true_hypothesis_is_rejected_in_five_percent_of_samples():
    rng = np.random.default_rng(1)
    searches, n, k, wrong = 200, 200, 8, 0
    for _ in range(searches):
        values = rng.standard_normal((n, k)) + rng.standard_normal((n, 1))  # seven are true, all at their limits
        values[:, 0] += 1
        z = np.sqrt(n) * values.mean(axis=0) / values.std(axis=0, ddof=1)
        found = step_down_max_t(partial(_exceeds, z), correlations_of(values), error_rate=0.05)
        wrong += found.rejected[1:].any()
    assert 0.005 <= wrong / searches <= 0.1  # 5 % ± 3 standard errors


def test_probability_of_passing_is_that_of_simulated_means():
    rng = np.random.default_rng(2)
    searched, judged, limit = 300, 700, 0.1
    # The mean of the searched rows is 0: the truth varies around it as much as a mean does.
    truth = rng.normal(0, 1 / np.sqrt(searched), 40_000)
    means = rng.normal(truth, 1 / np.sqrt(judged))
    simulated = (means + ndtri(0.95) / np.sqrt(judged) <= limit).mean()
    found = pass_probability(0.0, 1.0, limit=limit, searched=searched, judged=judged, level=0.95)
    assert found == pytest.approx(simulated, abs=0.01)


def test_a_constant_column_is_uncorrelated():
    found = correlations_of([[0.0, 1.0, 2.0], [0.0, 2.0, 4.0], [0.0, 4.0, 8.0]])
    np.testing.assert_allclose(found, [[1, 0, 0], [0, 1, 1], [0, 1, 1]], atol=1e-12)


@pytest.mark.parametrize(
    ("values", "message"), [([[np.nan, 1.0]], "finite"), ([1.0, 2.0], "matrix"), (np.zeros((2, 2, 2)), "matrix")]
)
def test_values_that_are_no_matrix_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        correlations_of(values)


@pytest.mark.parametrize(
    ("correlations", "options", "message"),
    [
        (np.zeros((2, 3)), {}, "square"),
        (np.full((2, 2), np.nan), {}, "finite"),
        (np.eye(2), {"error_rate": 1.5}, "error_rate"),
        (np.eye(2), {"untested": -1}, "untested"),
    ],
)
def test_arguments_out_of_range_are_refused(correlations, options, message):
    with pytest.raises(UsageError, match=message):
        step_down_max_t(lambda k, level: False, correlations, **{"error_rate": 0.05, **options})
