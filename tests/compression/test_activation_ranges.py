from __future__ import annotations

import io
import tracemalloc
from contextlib import redirect_stdout

import numpy as np
import pytest
from onnxruntime.quantization.calibrate import (
    EntropyCalibrater,
    HistogramCalibrater,
    MinMaxCalibrater,
    PercentileCalibrater,
)

from pytest_modelserve._onnx.sessions import Activations
from pytest_modelserve.compression.calibration import RangeMethod, measure_ranges


class Shown:
    """One value, without a model around it."""

    names = ("a",)

    def of(self, batch):
        return {"a": batch}


def measured(method, batches, percentile=None):
    found = measure_ranges(Shown(), lambda: iter(batches), RangeMethod(method, percentile))["a"]
    return float(found.low), float(found.high)


def drawn(*shape, seed=1):
    return np.random.default_rng(seed).laplace(size=shape).astype(np.float32)


@pytest.fixture
def calibrated(tmp_path):
    """The ranges that one of onnxruntime's own calibrators gives to the values in a model, all rows in one batch."""

    def ranges(kind, model, rows, **options):
        calibrater = kind(model, augmented_model_path=str(tmp_path / "augmented.onnx"), **options)
        calibrater.augment_graph()
        calibrater.create_inference_session()
        with redirect_stdout(io.StringIO()):
            calibrater.collect_data(iter_reader(rows))
            return {name: np.ravel(found.range_value) for name, found in calibrater.compute_data().items()}

    return ranges


def iter_reader(rows):
    class Reader:
        batches = iter([{"x": rows}])

        def get_next(self):
            return next(self.batches, None)

    return Reader()


@pytest.mark.parametrize(
    ("method", "kind", "options", "tolerance"),
    [
        ("min-max", MinMaxCalibrater, {}, 1e-6),
        ("entropy", EntropyCalibrater, {"num_bins": 512}, 1e-5),
        # Its 2,048 bins are each 1/2048 of the largest value wide, and it takes the lower end of one.
        ("percentile", PercentileCalibrater, {"symmetric": True, "percentile": 99.0}, 0.01),
    ],
)
def test_ranges_of_many_batches_are_those_of_onnxruntime_on_one(
    mlp, calibrated, monkeypatch, method, kind, options, tolerance
):
    monkeypatch.setattr("pytest_modelserve.compression.calibration._ENTROPY_BINS", 512)  # its search takes its time
    rows = drawn(1000, 8)
    model = mlp().path
    activations = Activations(model, has_external_data=False)
    ranging = RangeMethod(method, options.get("percentile"))
    found = measure_ranges(activations, lambda: ({"x": part} for part in np.split(rows, [1, 40, 700])), ranging)
    expected = calibrated(kind, model, rows, **options)
    assert found.keys() == {"x", "h", "r", "y"}
    for name, ours in found.items():
        np.testing.assert_allclose([ours.low, ours.high], expected[name], rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("percentile", [0.5, 50, 99, 99.9, 99.999, 100])
def test_percentile_holds_at_least_that_share_and_at_most_a_bin_more(percentile):
    values = np.concatenate([drawn(20_000), [-1e4]]).astype(np.float32)
    low, high = measured("percentile", np.array_split(values, 7), percentile)
    exact = np.quantile(np.abs(values), percentile / 100, method="inverted_cdf")
    bound = max(-low, high)
    assert exact <= bound <= exact * (1 + 2**-8)


def test_percentile_finds_the_bulk_beside_an_enormous_value():
    """Of bins of one width the first would hold everything else, and onnxruntime's range would be almost nothing."""
    values = np.concatenate([drawn(100_000), [1e9]]).astype(np.float32)
    low, high = measured("percentile", [values], 99.9)
    np.testing.assert_allclose([-low, high], np.quantile(np.abs(values), 0.999), rtol=0.01)


def test_range_never_reaches_beyond_what_was_seen():
    values = np.abs(drawn(1000))
    for method, percentile in (("percentile", 99), ("entropy", None)):
        low, high = measured(method, [values], percentile)
        assert low == values.min()
        assert high <= values.max()


@pytest.mark.parametrize("method", ["min-max", "entropy", "percentile"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 1])
def test_range_with_nan_or_infinity_anywhere_is_not_finite(method, bad, at):
    batches = [drawn(50), drawn(50, seed=2)]
    batches[at][7] = bad
    found = measure_ranges(Shown(), lambda: iter(batches), RangeMethod(method, 99 if method == "percentile" else None))
    assert not found["a"].is_finite


@pytest.mark.parametrize("method", ["min-max", "entropy", "percentile"])
@pytest.mark.parametrize("values", [np.zeros(5, np.float32), np.zeros((0, 3), np.float32)])
def test_zeros_and_no_values_have_the_range_of_zero(method, values):
    assert measured(method, [values], 99 if method == "percentile" else None) == (0, 0)


@pytest.mark.parametrize("method", ["min-max", "entropy", "percentile"])
def test_memory_does_not_grow_with_the_number_of_batches(method):
    def peak(batches):
        def stream():
            return (np.full(10_000, number, np.float32) for number in range(batches))

        tracemalloc.start()
        try:
            measure_ranges(Shown(), stream, RangeMethod(method, 99.9 if method == "percentile" else None))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)  # what is imported on the way counts once
    assert peak(60) < 1.2 * peak(4)


def test_calibrators_of_onnxruntime_would_keep_every_batch(mlp, tmp_path):
    """Why none of them is fed: they collect when the last batch was read."""
    calibrater = HistogramCalibrater(mlp().path, augmented_model_path=str(tmp_path / "a.onnx"))
    calibrater.augment_graph()
    calibrater.create_inference_session()
    kept = []

    class Reader:
        left = 3

        def get_next(self):
            kept.append(len(calibrater.intermediate_outputs))
            self.left -= 1
            return {"x": drawn(2, 8)} if self.left >= 0 else None

    with redirect_stdout(io.StringIO()):
        calibrater.collect_data(Reader())
    assert kept == [0, 1, 2, 3]
