"""Gates on the outputs of a model in service: their health, calibration and accuracy, with few labels or none."""

from pytest_modelserve.monitoring.results.audited_accuracy import Audit, measure_audited_accuracy
from pytest_modelserve.monitoring.results.calibration_error import measure_calibration
from pytest_modelserve.monitoring.results.estimated_accuracy import measure_estimated_accuracy
from pytest_modelserve.monitoring.results.gate import measure_results
from pytest_modelserve.monitoring.results.output_columns import output_columns
from pytest_modelserve.monitoring.results.prediction_coverage import measure_prediction_coverage

__all__ = [
    "Audit",
    "measure_audited_accuracy",
    "measure_calibration",
    "measure_estimated_accuracy",
    "measure_prediction_coverage",
    "measure_results",
    "output_columns",
]
