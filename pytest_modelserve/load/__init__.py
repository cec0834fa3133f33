"""Load: requests that arrive at a rate, the latency and throughput under it, and the answers."""

from pytest_modelserve.load.latency_under_load import measure_latency_under_load
from pytest_modelserve.load.max_rate import MaxRate, find_max_rate
from pytest_modelserve.load.outputs_under_load import measure_outputs_under_load
from pytest_modelserve.load.throughput import measure_throughput

__all__ = [
    "MaxRate",
    "find_max_rate",
    "measure_latency_under_load",
    "measure_outputs_under_load",
    "measure_throughput",
]
