"""Invalid arguments of the statistics are refused by name, and importing them stays light."""

import math
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from pytest_modelserve import stats
from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import delta_method, proportions, quantiles, two_sample_tests as two

NAN, YES_NO = math.nan, np.array([True, False])
LEVELS = {"low_level": 0.999, "high_level": 0.95}
RATES = {"confidence": 0.95, "alpha": 0.001}
binomial, paired = partial(stats.binomial_bounds, **LEVELS), partial(stats.paired_difference_bounds, **LEVELS)
means, medians = partial(stats.mean_bounds, **LEVELS), partial(stats.median_bounds, **LEVELS)
bca = partial(stats.bca_bounds, **LEVELS)
planned = {"discordance": 0.1, "difference": 0.0, "margin": 0.02, **RATES}
power = lambda n=100, **changed: stats.noninferiority_power(n, **{**planned, **changed})  # noqa: E731
excess = {"rate": 0.1, "limit": 0.2, "confidence": 0.95, "power": 0.9}
LOW = "low_level must be above 0.5 and below 1"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.Bounds(0.5, 0.3, 0.1, 0.9, 0.9), "bounds must enclose their estimate, got 0.3 <= 0.5 <= 0.1"),
        (lambda: stats.Bounds(0.5, NAN, 1.0, 0.9, 0.9), "bounds must enclose their estimate"),
        *((partial(stats.Bounds, 0.5, 0.1, 1.0, level, 0.9), LOW) for level in (0.5, 0.05, 1.0, 95, NAN)),
        (lambda: stats.Bounds(0.5, 0.1, 1.0, 0.9, 0.5), "high_level must be above 0.5 and below 1"),
        *((partial(stats.holm, [0.1, p]), r"p_values must lie in \[0, 1\]") for p in (NAN, -0.1, 1.5)),
        (lambda: stats.holm([[0.1]]), r"p_values must be numbers of shape \(n,\), got shape \(1, 1\)"),
        (lambda: stats.interim_error_rate(0.05, 0), "analyses must be an integer of at least 1, got 0"),
        (lambda: stats.interim_error_rate(0.0, 2), "error must be above 0 and below 0.5"),
        (lambda: binomial(0, 0), "n must be an integer of at least 1, got 0"),
        (lambda: binomial(-1, 5), "successes must be an integer of at least 0, got -1"),
        (lambda: binomial(0.9, 5), "successes must be an integer of at least 0, got 0.9"),
        (lambda: binomial(6, 5), "successes must be at most n, got 6 of 5"),
        (lambda: proportions.fisher_p_value(6, 5, 0, 9), "successes must be at most the number of rows, got 6 of 5"),
        (lambda: proportions.fisher_p_value(0, 0, 0, 9), "n must be an integer"),
        (lambda: proportions.fisher_p_value(0, 5, 0.2, 9), "reference_successes must be an integer"),
        (lambda: proportions.outside_range_p_value(6, 5, 9), "outside must be at most n, got 6 of 5"),
        (lambda: proportions.outside_range_p_value(0, 5, 1), "reference_n must be an integer of at least 2"),
        (lambda: proportions.unseen_p_value([1, 2], [1]), "both samples must be counted in the same categories"),
        (lambda: proportions.unseen_p_value([1, 2], [1, -1]), "current_counts must be counts"),
        (lambda: proportions.unseen_p_value([0, 0], [1, 1]), "reference_counts must be counts of at least one row"),
        (lambda: proportions.rows_for_rate_increase(**{**excess, "rate": -0.1}), "rate must be at least 0"),
        (lambda: proportions.rows_for_rate_increase(**{**excess, "limit": 1.0}), "limit must be above 0"),
        (lambda: proportions.rows_for_rate_increase(**{**excess, "power": 0.5}), "power must be above 0.5"),
        (lambda: paired(0, 0, 0), "n must be an integer of at least 1"),
        (lambda: paired(-1, 0, 9), "lost must be an integer"),
        (lambda: paired(1, 0.5, 9), "gained must be an integer"),
        (lambda: paired(6, 5, 10), r"lost and gained must be together at most n, got 6 \+ 5 of 10"),
        (lambda: stats.tango_statistic(6, 5, 10, 0), "lost and gained must be counts"),
        (lambda: stats.tango_statistic(NAN, 5, 10, 0), "lost and gained must be counts"),
        (lambda: stats.tango_statistic(1, 2, 10, 1.1), r"difference must lie in \[-1, 1\]"),
        (lambda: power(0), "n must be an integer"),
        (lambda: power(discordance=1.2), r"discordance must lie in \[0, 1\], got 1.2"),
        (lambda: power(discordance=NAN), "discordance must lie in"),
        (lambda: power(difference=-0.2), r"discordance must be at least \|difference\| = 0.2, got 0.1"),
        (lambda: power(difference=NAN), r"discordance must be at least \|difference\|"),
        (lambda: power(margin=1.0), "margin must be above -1 and below 1"),
        (lambda: power(confidence=95), "confidence must be above 0.5 and below 1 .*, got 95"),
        (lambda: power(alpha=0.0), "alpha must be above 0"),
        (lambda: stats.rows_needed(discordance=0.1, margin=0.02, confidence=0.95, power=0.5), "power must be above"),
        (lambda: stats.mean_power([1, 2], truth=0, limit=1, **{**RATES, "alpha": 0.0}), "alpha must be above 0"),
        (lambda: stats.values_needed([1, 2], truth=0, limit=1, **{**RATES, "confidence": 95}), "confidence must be"),
        (lambda: means([]), "values must not be empty"),
        (lambda: means([1.0, NAN]), "values must be finite"),
        (lambda: means([1.0, math.inf]), "values must be finite"),
        (lambda: means([[1.0]]), r"values must be numbers of shape \(n,\), got shape \(1, 1\)"),
        (lambda: means([1.0], block=0), "block must be an integer of at least 1, got 0"),
        (lambda: means([1.0], block=1.5), "block must be an integer of at least 1, got 1.5"),
        (lambda: stats.mean_bounds([1.0], low_level=0.5, high_level=0.95), LOW),
        (lambda: stats.unit_values([1, 2, 3], np.array([0, 1])), "ids must have one number per value, got 2 for 3"),
        (lambda: stats.ratio_of(np.ones(2), np.array([1.0, -1.0])), "denominators must not add up to 0"),
        (lambda: stats.average_of([]), "estimates must not be empty"),
        (
            lambda: stats.auc_of([1, 2], np.array([True, True])),
            "an area under the ROC curve needs rows of both classes",
        ),
        (lambda: stats.auc_of([1, NAN], YES_NO), "scores must not be NaN"),
        (lambda: stats.auc_of([1], YES_NO), "positive must have one class per score, got 2 for 1"),
        (lambda: stats.delong_covariance([1, 2, 3, 4], np.arange(4) == 0), "at least two rows of each class"),
        (lambda: delta_method.area_variance(1.1, 2, 2), r"area must lie in \[0, 1\]"),
        (lambda: bca(lambda rows: NAN, 5), "statistic must be finite for all rows, got nan"),
        (lambda: bca(lambda rows: 1.0, 1), "at least two units"),
        (lambda: bca(lambda rows: 1.0, 3, ids=np.zeros(3, int)), "at least two units"),
        (lambda: bca(lambda rows: 1.0, 3, ids=np.zeros(2, int)), "ids must have one number per row, got 2 for 3"),
        (lambda: medians([]), "samples must not be empty"),
        (lambda: medians([1, NAN, NAN]), "samples must not be NaN, got 2 of 3"),
        (lambda: medians([[1, 2]]), "samples must be numbers of shape"),
        (lambda: medians(["a"]), "samples must be numbers of shape"),
        *((partial(stats.quantile_bounds, [1], q, **LEVELS), "quantile must be above 0") for q in (0.0, 1.0, 95, NAN)),
        (lambda: quantiles.dependent_quantile_bounds([], 0.5, **LEVELS), "samples must not be empty"),
        (lambda: stats.optimal_block_length([1.0, math.inf]), "values must be finite or NaN"),
        (lambda: stats.optimal_block_length(np.zeros((4, 4, 4))), r"got shape \(4, 4, 4\)"),
        (lambda: stats.variance_inflation(np.arange(20.0), 20), "bandwidth must be below the 20 values, got 20"),
        (lambda: stats.variance_inflation(np.arange(20.0), -1), "bandwidth must be"),
        (lambda: stats.serial_dependence([1.0, NAN]), "values must be finite"),
        (lambda: two.effective_rows(-1, 5), "reference must be at least 0 rows, got -1"),
        (lambda: two.effective_rows(5, NAN), "current must be at least 0 rows"),
        (lambda: two.distribution_distance([1, 2], [1]), "both samples must be counted in the same bins"),
        (lambda: two.distribution_distance([1, 2], [0, 0]), "current_counts must be counts"),
        (lambda: two.kolmogorov_p_value(NAN, 5), r"distance must lie in \[0, 1\]"),
        (lambda: two.distance_bound(0.1, NAN), "effective must be at least 0 rows"),
        (lambda: two.rows_for_distance(1.0, reference=5), "max_distance must be above 0 and below 1"),
        (lambda: two.passable_distance(5, tests=0), "tests must be an integer of at least 1"),
        (lambda: two.correlations_of(np.ones((3, 6))), r"sums must have shape \(pairs, 15\), got \(3, 6\)"),
        (lambda: two.feature_blocks([[1.0], [NAN]], rng=np.random.default_rng(0)), "finite numbers"),
    ],
)
def test_invalid_argument_is_named(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_statistics_import_neither_scipy_stats_nor_another_subpackage():
    # scipy.stats alone takes a second to import, which every gate would pay.
    code = """
import sys, pytest_modelserve.stats
subpackages = {name.split(".")[1] for name in sys.modules if name.startswith("pytest_modelserve.")}
print(sorted(subpackages), "scipy.stats" in sys.modules)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "['errors', 'stats'] False\n"
