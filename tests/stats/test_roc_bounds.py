"""The true positive rate at a false positive rate, with exact bounds."""

import numpy as np
import pytest
from scipy.stats import beta, binom, norm

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.roc_bounds import threshold_ranks, true_positive_rate_bounds

LEVELS = {"false_positive_rate": 0.01, "low_level": 0.95, "high_level": 0.95}


def test_the_ranks_are_those_of_the_binomial_distribution():
    for n in (300, 1_000, 2_000, 100_000):
        low, high = threshold_ranks(n, **LEVELS)
        assert binom.cdf(low - 1, n, 0.01) <= 0.025 < binom.cdf(low, n, 0.01)
        assert binom.cdf(high - 2, n, 0.01) < 0.975 <= binom.cdf(high - 1, n, 0.01)


def test_bounds_are_those_of_clopper_and_pearson_at_the_ranks():
    negatives = np.arange(2_000.0)
    positives = np.arange(400.0) * 10 - 1_500.5  # 49 above 1,988, the 12th largest
    bounds = true_positive_rate_bounds(positives, negatives, **LEVELS)
    found = int((positives > 1_988).sum())
    assert bounds.low == pytest.approx(beta.ppf(0.025, found, 400 - found + 1))
    reaching = int((positives >= 2_000 - threshold_ranks(2_000, **LEVELS)[1]).sum())
    assert bounds.high == pytest.approx(beta.ppf(0.975, reaching + 1, 400 - reaching))
    assert bounds.low < bounds.estimate == (positives > 1_979).mean() < bounds.high


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
    assert missed.sum() > 0  # the two halves of an error rate rarely miss in the same direction


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
