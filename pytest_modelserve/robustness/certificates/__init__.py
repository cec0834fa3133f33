"""Certificates: bounds on the scores of an ONNX graph over all inputs within a distance of given rows."""

from pytest_modelserve.robustness.certificates.bounds import Bounds, interval_bounds, linear_bounds, lower_bounds
from pytest_modelserve.robustness.certificates.interval_arithmetic import Box
from pytest_modelserve.robustness.certificates.network import Network

__all__ = ["Bounds", "Box", "Network", "interval_bounds", "linear_bounds", "lower_bounds"]
