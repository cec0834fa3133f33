"""Gates on data: a stored profile of the training data, and comparisons of later data with it."""

from pytest_modelserve.monitoring.columns import with_embedding
from pytest_modelserve.monitoring.drift import OutputChange, OutputDrift, measure_drift, output_drift
from pytest_modelserve.monitoring.monitor import Monitor, MonitorEvent, MonitorPlan, measure_alarm, streams
from pytest_modelserve.monitoring.overlap import measure_overlap
from pytest_modelserve.monitoring.profile import ReferenceProfile
from pytest_modelserve.monitoring.profiler import reference_profile
from pytest_modelserve.monitoring.quality import measure_data_quality
from pytest_modelserve.monitoring.results import (
    Audit,
    measure_audited_accuracy,
    measure_calibration,
    measure_estimated_accuracy,
    measure_prediction_coverage,
    measure_results,
    output_columns,
)

__all__ = [
    "Audit",
    "Monitor",
    "MonitorEvent",
    "MonitorPlan",
    "OutputChange",
    "OutputDrift",
    "ReferenceProfile",
    "measure_alarm",
    "measure_audited_accuracy",
    "measure_calibration",
    "measure_data_quality",
    "measure_drift",
    "measure_estimated_accuracy",
    "measure_overlap",
    "measure_prediction_coverage",
    "measure_results",
    "output_columns",
    "output_drift",
    "reference_profile",
    "streams",
    "with_embedding",
]
