"""Gates on what a served model costs: latency, slowdown against a reference, start, memory, size, placement."""

from pytest_modelserve.performance.cold_start import measure_cold_start
from pytest_modelserve.performance.latency import measure_latency
from pytest_modelserve.performance.memory import measure_memory
from pytest_modelserve.performance.memory_growth import measure_memory_growth
from pytest_modelserve.performance.placement import measure_placement
from pytest_modelserve.performance.session_table import SessionOptions, session_options
from pytest_modelserve.performance.size import measure_size
from pytest_modelserve.performance.slowdown import measure_slowdown

__all__ = [
    "SessionOptions",
    "measure_cold_start",
    "measure_latency",
    "measure_memory",
    "measure_memory_growth",
    "measure_placement",
    "measure_size",
    "measure_slowdown",
    "session_options",
]
