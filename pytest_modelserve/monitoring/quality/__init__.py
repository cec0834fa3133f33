"""Are the data whole? Rules for what a profile makes impossible, and tests of how often rows are faulty."""

from pytest_modelserve.monitoring.quality.gate import measure_data_quality

__all__ = ["measure_data_quality"]
