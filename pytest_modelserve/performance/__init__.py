"""Gates on what a served model costs: latency, slowdown against a reference, size."""

from pytest_modelserve.performance.latency import measure_latency
from pytest_modelserve.performance.size import measure_size
from pytest_modelserve.performance.slowdown import measure_not_slower

__all__ = ["measure_latency", "measure_not_slower", "measure_size"]
