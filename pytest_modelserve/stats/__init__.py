"""Intervals, tests and what a sample can decide: arrays in, frozen dataclasses out."""

from pytest_modelserve.stats.binomial import binomial_bounds
from pytest_modelserve.stats.bounds import Bounds
from pytest_modelserve.stats.multiplicity import holm, spend
from pytest_modelserve.stats.noninferiority import VerdictShares, noninferiority_power, rows_needed
from pytest_modelserve.stats.paired_proportions import paired_difference_bounds, tango_statistic
from pytest_modelserve.stats.quantiles import median_bounds, quantile_bounds, samples_for_quantile

__all__ = [
    "Bounds",
    "VerdictShares",
    "binomial_bounds",
    "holm",
    "median_bounds",
    "noninferiority_power",
    "paired_difference_bounds",
    "quantile_bounds",
    "rows_needed",
    "samples_for_quantile",
    "spend",
    "tango_statistic",
]
