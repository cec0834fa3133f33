"""Intervals, tests and what a sample can decide: arrays in, frozen dataclasses out."""

from pytest_modelserve.stats.autocorrelation import SerialDependence, serial_dependence
from pytest_modelserve.stats.bootstrap import bca_bounds, resamples_for
from pytest_modelserve.stats.delta_method import (
    Linearised,
    area_variance,
    auc_linearised,
    average_of,
    delong_covariance,
    linearised_bounds,
    linearised_needed,
    linearised_power,
    mean_of,
    ratio_of,
    root_of,
    unseen_share,
)
from pytest_modelserve.stats.intervals import Bounds, holm, spend
from pytest_modelserve.stats.means import BlockMeans, block_ids, block_means, mean_bounds, unit_values
from pytest_modelserve.stats.paired_proportions import paired_difference_bounds, tango_statistic
from pytest_modelserve.stats.proportions import binomial_bounds, share_rows_needed
from pytest_modelserve.stats.quantiles import median_bounds, quantile_bounds, samples_for_quantile
from pytest_modelserve.stats.sample_size import (
    VerdictShares,
    mean_power,
    noninferiority_power,
    rows_needed,
    values_needed,
)

__all__ = [
    "BlockMeans",
    "Bounds",
    "Linearised",
    "SerialDependence",
    "VerdictShares",
    "area_variance",
    "auc_linearised",
    "average_of",
    "bca_bounds",
    "binomial_bounds",
    "block_ids",
    "block_means",
    "delong_covariance",
    "holm",
    "linearised_bounds",
    "linearised_needed",
    "linearised_power",
    "mean_bounds",
    "mean_of",
    "mean_power",
    "median_bounds",
    "noninferiority_power",
    "paired_difference_bounds",
    "quantile_bounds",
    "ratio_of",
    "resamples_for",
    "root_of",
    "rows_needed",
    "samples_for_quantile",
    "serial_dependence",
    "share_rows_needed",
    "spend",
    "tango_statistic",
    "unit_values",
    "unseen_share",
    "values_needed",
]
