"""Intervals, tests and what a sample can decide: arrays in, frozen dataclasses out."""

from pytest_modelserve.stats.binomial import binomial_bounds
from pytest_modelserve.stats.block_means import BlockMeans, block_means, mean_bounds
from pytest_modelserve.stats.bounds import Bounds
from pytest_modelserve.stats.mean_planning import mean_power, values_needed
from pytest_modelserve.stats.multiplicity import holm, spend
from pytest_modelserve.stats.noninferiority import VerdictShares, noninferiority_power, rows_needed
from pytest_modelserve.stats.paired_proportions import paired_difference_bounds, tango_statistic
from pytest_modelserve.stats.quantiles import median_bounds, quantile_bounds, samples_for_quantile
from pytest_modelserve.stats.root_means import root_mean_rise_values
from pytest_modelserve.stats.serial_dependence import SerialDependence, serial_dependence

__all__ = [
    "BlockMeans",
    "Bounds",
    "SerialDependence",
    "VerdictShares",
    "binomial_bounds",
    "block_means",
    "holm",
    "mean_bounds",
    "mean_power",
    "median_bounds",
    "noninferiority_power",
    "paired_difference_bounds",
    "quantile_bounds",
    "root_mean_rise_values",
    "rows_needed",
    "samples_for_quantile",
    "serial_dependence",
    "spend",
    "tango_statistic",
    "values_needed",
]
