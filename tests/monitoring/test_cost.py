"""The memory of a check beyond its data."""

from __future__ import annotations

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
