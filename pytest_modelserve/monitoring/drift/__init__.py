"""Have the data moved? Columns, pairs of columns and rows as a whole against a profile, within one error rate."""

from pytest_modelserve.monitoring.drift.gate import measure_drift

__all__ = ["measure_drift"]
