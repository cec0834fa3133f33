"""Gates on data: a stored profile of the training data, and whether what comes in later still looks like it."""

from pytest_modelserve.monitoring.columns import encoded
from pytest_modelserve.monitoring.drift import measure_no_drift
from pytest_modelserve.monitoring.profile import ReferenceProfile
from pytest_modelserve.monitoring.profiler import reference_profile
from pytest_modelserve.monitoring.quality import measure_data_quality

__all__ = ["ReferenceProfile", "encoded", "measure_data_quality", "measure_no_drift", "reference_profile"]
