"""The data-quality gate: rules for values that the profile makes impossible, and tests of the rates of faulty rows."""

from pytest_modelserve.monitoring.quality.gate import measure_data_quality

__all__ = ["measure_data_quality"]
