"""The true positive rate at a false positive rate, with exact bounds."""

import numpy as np
import pytest
from scipy.stats import beta, binom, norm

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.roc_bounds import true_positive_rate_bounds

LEVELS = {"false_positive_rate": 0.01, "low_level": 0.95, "high_level": 0.95}


@pytest.mark.parametrize(("n", "rank"), [(500, 2), (1_000, 5), (2_000, 13)])
def test_the_lower_bound_is_that_of_clopper_and_pearson_at_an_order_statistic(n, rank):
    spent = binom.cdf(rank - 1, n, 0.01)
    assert spent <= 0.8 * 0.05 < binom.cdf(rank, n, 0.01)
    negatives = np.arange(float(n))
    positives = np.arange(400.0) * 10 - 3_500.5 + n  # 50 above all negatives
    found = int((positives > n - rank).sum())
    bounds = true_positive_rate_bounds(positives, negatives, **LEVELS)
    assert bounds.low == pytest.approx(beta.ppf(0.05 - spent, found, 400 - found + 1))
    assert bounds.low < bounds.estimate == (positives > n - 1 - n // 100).mean() < bounds.high


def test_the_upper_bound_is_that_of_clopper_and_pearson_at_an_order_statistic():
    rank = next(rank for rank in range(1, 100) if binom.sf(rank - 1, 1_000, 0.01) <= 0.8 * 0.05)
    positives = np.arange(400.0) * 10 - 2_500.5
    reaching = int((positives >= 1_000 - rank).sum())
    level = 0.95 + binom.sf(rank - 1, 1_000, 0.01)
    bounds = true_positive_rate_bounds(positives, np.arange(1_000.0), **LEVELS)
    assert bounds.high == pytest.approx(beta.ppf(level, reaching + 1, 400 - reaching))


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_each_bound_misses_at_most_as_often_as_it_may(shift):
    rng = np.random.default_rng(3)
    truth = norm.sf(norm.isf(0.05) - shift)
    missed = np.zeros(2)
    for _ in range(600):
        bounds = true_positive_rate_bounds(
            rng.normal(shift, 1, 150), rng.normal(size=300), false_positive_rate=0.05, low_level=0.9, high_level=0.9
        )
        missed += (bounds.low > truth, bounds.high < truth)
    assert (missed <= 60).all()
    assert missed.sum() > 0  # both parts of an error rate have to miss


def test_ties_with_the_threshold_count_for_the_upper_bound_only():
    bounds = true_positive_rate_bounds(np.ones(100), np.ones(1_000), **LEVELS)
    assert (bounds.low, bounds.estimate) == (0.0, 0.0)
    assert bounds.high == 1.0


def test_too_few_negatives_have_no_lower_bound():
    bounds = true_positive_rate_bounds(np.full(100, 9.0), np.zeros(100), **LEVELS)
    assert (bounds.low, bounds.estimate) == (0.0, 1.0)


def test_nan_and_rates_out_of_range_are_refused():
    with pytest.raises(UsageError, match="NaN"):
        true_positive_rate_bounds([1.0, np.nan], [0.0], **LEVELS)
    with pytest.raises(UsageError, match="false_positive_rate must be between 0 and 1"):
        true_positive_rate_bounds([1.0], [0.0], false_positive_rate=1, low_level=0.9, high_level=0.9)
