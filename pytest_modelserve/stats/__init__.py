"""Intervals, tests and what a sample can decide: arrays in, frozen dataclasses out."""

from pytest_modelserve.stats.bca import bca_bounds, resamples_for
from pytest_modelserve.stats.binomial import binomial_bounds
from pytest_modelserve.stats.block_means import BlockMeans, block_means, mean_bounds
from pytest_modelserve.stats.bounds import Bounds
from pytest_modelserve.stats.delong import area_variance, auc_linearised, delong_covariance
from pytest_modelserve.stats.linearised import Linearised, average_of, mean_of, ratio_of, root_of
from pytest_modelserve.stats.linearised_bounds import (
    linearised_bounds,
    linearised_needed,
    linearised_power,
    unseen_share,
)
from pytest_modelserve.stats.mean_planning import mean_power, values_needed
from pytest_modelserve.stats.multiplicity import holm, spend
from pytest_modelserve.stats.noninferiority import VerdictShares, noninferiority_power, rows_needed
from pytest_modelserve.stats.paired_proportions import paired_difference_bounds
from pytest_modelserve.stats.quantiles import median_bounds, quantile_bounds, samples_for_quantile
from pytest_modelserve.stats.serial_dependence import SerialDependence, serial_dependence
from pytest_modelserve.stats.share_limit import share_rows_needed
from pytest_modelserve.stats.tango import tango_statistic
from pytest_modelserve.stats.units import block_ids, unit_values

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
