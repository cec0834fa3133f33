from __future__ import annotations

import numpy as np
import pytest
from onnxruntime.quantization.calibrate import HistogramCollector

from pytest_modelserve.compression.calibration import entropy_bounds

RNG = np.random.default_rng(3)
SHAPES = {
    "normal": RNG.standard_normal(20_000),
    "heavy tails": RNG.standard_t(2, 20_000),
    "after a Relu": np.maximum(RNG.standard_normal(5000), 0),
    "one outlier": np.append(RNG.standard_normal(5000), 1000),
    "three values": np.array([-1.0, 2, 3]),
    "zeros": np.zeros(10),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("bins", [128, 512, 514])
def test_bounds_are_those_of_onnxruntime(name, bins):
    values = SHAPES[name].astype(np.float32)
    width = float(np.abs(values).max()) or 1.0
    counts, edges = np.histogram(values, bins, range=(-width, width))
    edges = edges.astype(np.float32)
    collector = HistogramCollector("entropy", False, bins, 128, None, "same")
    low, high = collector.get_entropy_threshold((counts, edges, edges[0], edges[-1]), 128)
    assert entropy_bounds(counts, edges) == (float(low), float(high))


def test_tails_are_cut_off_and_a_flat_distribution_is_not():
    def bounds(values):
        return entropy_bounds(*np.histogram(values, 2048, range=(-10, 10)))

    low, high = bounds(np.append(RNG.standard_normal(100_000), [-10, 10]))
    assert -6 < low < -2.5
    assert 2.5 < high < 6
    assert bounds(RNG.uniform(-10, 10, 1_000_000))[1] > 9.5
