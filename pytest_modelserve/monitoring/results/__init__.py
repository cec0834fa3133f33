"""Gates on the outputs of a model in service: their health, calibration and accuracy, with few labels or none."""

from pytest_modelserve.monitoring.results.gate import measure_results
from pytest_modelserve.monitoring.results.output_columns import output_columns

__all__ = ["measure_results", "output_columns"]
