"""What a check costs: memory beyond the data, and what importing the room loads."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np

from pytest_modelserve.monitoring import measure_data_quality, measure_drift, reference_profile


def test_a_check_of_four_million_numbers_takes_little_memory_beyond_them():
    rng = np.random.default_rng(0)
    columns = {f"x{index}": rng.normal(size=200_000) for index in range(20)}
    columns["x7"][5] = np.nan
    profile = reference_profile({name: values[:20_000] for name, values in columns.items()})
    tracemalloc.start()
    try:
        measure_drift(columns, profile, max_distance=0.1)
        measure_data_quality(columns, profile, max_rate=0.01)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10e6


def test_importing_the_room_loads_neither_polars_nor_scipy_stats_nor_onnx():
    code = """
import sys, pytest_modelserve.monitoring
print([name for name in ("polars", "scipy.stats", "scipy.optimize", "onnx", "onnxruntime", "torch") if name in sys.modules])
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"
