"""The drift gate: columns, pairs of columns and whole rows against a profile, within one error rate."""

from pytest_modelserve.monitoring.drift.gate import measure_drift

__all__ = ["measure_drift"]
