"""The modules that a drift check enters before its arithmetic, and what the subpackage imports."""

import subprocess
import sys

import numpy as np

import pytest_modelserve as ms

PACKAGE = "pytest_modelserve."


def test_from_assert_no_drift_to_its_statistics_at_most_15_modules_are_entered():
    rng = np.random.default_rng(0)
    profile = ms.reference_profile({"x": rng.normal(size=1000), "city": ["Bern", "Graz"] * 500})
    data = {"x": rng.normal(size=1000), "city": ["Bern", "Graz"] * 500}
    assert_no_drift = ms.assert_no_drift
    assert_no_drift(data, profile, max_distance=0.4)  # imports everything
    entered = []

    def record(frame, event, _):
        if event == "call" and not any(module.startswith("stats") for module in entered):
            module = frame.f_globals.get("__name__", "")
            if module.startswith(PACKAGE) and module.removeprefix(PACKAGE) not in entered:
                entered.append(module.removeprefix(PACKAGE))

    sys.setprofile(record)
    try:
        assert_no_drift(data, profile, max_distance=0.4)
    finally:
        sys.setprofile(None)
    counted = [module for module in entered if not module.startswith(("serving", "evidence"))]
    assert counted[-1].startswith("stats")
    assert len(counted) <= 15, counted


def test_importing_monitoring_loads_neither_polars_nor_scipy_stats_nor_onnx():
    code = """
import sys, pytest_modelserve.monitoring
print([name for name in ("polars", "scipy.stats", "scipy.optimize", "onnx", "onnxruntime", "torch") if name in sys.modules])
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"
