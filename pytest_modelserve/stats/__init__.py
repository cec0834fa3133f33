"""Confidence intervals, tests, and power and sample sizes: arrays in, frozen dataclasses out."""

from pytest_modelserve.stats.autocorrelation import SerialDependence, serial_dependence
from pytest_modelserve.stats.block_length import (
    BlockLength,
    ShortMemory,
    optimal_block_length,
    short_memory,
    variance_inflation,
)
from pytest_modelserve.stats.bootstrap import bca_bounds, bca_bounds_against, resamples_for
from pytest_modelserve.stats.change_points import ChangePoint, change_points
from pytest_modelserve.stats.covariate_shift import ShiftedMean, shifted_mean
from pytest_modelserve.stats.delta_method import (
    Linearized,
    area_variance,
    auc_of,
    average_of,
    delong_covariance,
    delta_method_bounds,
    delta_method_power,
    delta_method_rows_needed,
    mean_of,
    ratio_of,
    root_of,
    rule_of_three_bound,
)
from pytest_modelserve.stats.intervals import Bounds, holm, interim_error_rate
from pytest_modelserve.stats.max_t import StepDown, correlations_of, pass_probability, step_down_max_t
from pytest_modelserve.stats.means import BlockMeans, block_ids, block_means, mean_bounds, unit_values
from pytest_modelserve.stats.paired_proportions import paired_difference_bounds, tango_statistic
from pytest_modelserve.stats.prediction_powered import (
    StratifiedDesign,
    effective_proportion_bounds,
    prediction_powered_mean,
    score_strata,
    stratified_design,
    stratified_proportion_bounds,
)
from pytest_modelserve.stats.proportions import (
    binomial_bounds,
    proportion_difference_bounds,
    proportion_rows_needed,
)
from pytest_modelserve.stats.quantiles import median_bounds, quantile_bounds, samples_for_quantile
from pytest_modelserve.stats.reliability import (
    ReliabilityCurve,
    calibration_error_bounds,
    calibration_rows_needed,
    reliability_curve,
)
from pytest_modelserve.stats.sample_size import (
    VerdictProbabilities,
    mean_power,
    noninferiority_power,
    rows_needed,
    values_needed,
)
from pytest_modelserve.stats.sampling_design import Sampling, SamplingUnits

__all__ = [
    "BlockLength",
    "BlockMeans",
    "Bounds",
    "ChangePoint",
    "Linearized",
    "ReliabilityCurve",
    "Sampling",
    "SamplingUnits",
    "SerialDependence",
    "ShiftedMean",
    "ShortMemory",
    "StepDown",
    "StratifiedDesign",
    "VerdictProbabilities",
    "area_variance",
    "auc_of",
    "average_of",
    "bca_bounds",
    "bca_bounds_against",
    "binomial_bounds",
    "block_ids",
    "block_means",
    "calibration_error_bounds",
    "calibration_rows_needed",
    "change_points",
    "correlations_of",
    "delong_covariance",
    "delta_method_bounds",
    "delta_method_power",
    "delta_method_rows_needed",
    "effective_proportion_bounds",
    "holm",
    "interim_error_rate",
    "mean_bounds",
    "mean_of",
    "mean_power",
    "median_bounds",
    "noninferiority_power",
    "optimal_block_length",
    "paired_difference_bounds",
    "pass_probability",
    "prediction_powered_mean",
    "proportion_difference_bounds",
    "proportion_rows_needed",
    "quantile_bounds",
    "ratio_of",
    "reliability_curve",
    "resamples_for",
    "root_of",
    "rows_needed",
    "rule_of_three_bound",
    "samples_for_quantile",
    "score_strata",
    "serial_dependence",
    "shifted_mean",
    "short_memory",
    "step_down_max_t",
    "stratified_design",
    "stratified_proportion_bounds",
    "tango_statistic",
    "unit_values",
    "values_needed",
    "variance_inflation",
]
