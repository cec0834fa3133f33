"""Gates on what a served model costs: latency, slowdown against a reference, start, memory, size."""

from pytest_modelserve.performance.cold_start import measure_cold_start
from pytest_modelserve.performance.latency import measure_latency
from pytest_modelserve.performance.memory import measure_memory, measure_no_leak
from pytest_modelserve.performance.size import measure_size
from pytest_modelserve.performance.slowdown import measure_not_slower

__all__ = [
    "measure_cold_start",
    "measure_latency",
    "measure_memory",
    "measure_no_leak",
    "measure_not_slower",
    "measure_size",
]
