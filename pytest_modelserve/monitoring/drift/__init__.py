"""The drift gate: columns, pairs of columns and whole rows against a profile, within one error rate."""

from pytest_modelserve.monitoring.drift.gate import measure_drift
from pytest_modelserve.monitoring.drift.output_change import OutputChange, OutputDrift, output_drift

__all__ = ["OutputChange", "OutputDrift", "measure_drift", "output_drift"]
