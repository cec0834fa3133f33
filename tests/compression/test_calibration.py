"""Calibration data and the ranges measured on them."""

import io
import tracemalloc
from contextlib import redirect_stdout

import numpy as np
import pandas as pd
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization.calibrate import (
    EntropyCalibrater,
    HistogramCollector,
    MinMaxCalibrater,
    PercentileCalibrater,
)
from torch.utils.data import DataLoader, TensorDataset

from pytest_modelserve._onnx.sessions import Activations
from pytest_modelserve.artifacts import Signature, TensorSpec, load_model
from pytest_modelserve.compression import compress
from pytest_modelserve.compression.calibration import RangeMethod, entropy_bounds, measure_ranges, open_calibration
from pytest_modelserve.errors import RecipeError, UsageError


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


ONE = Signature((TensorSpec("x", "float32", ("batch", 4)),), ())
TWO = Signature((TensorSpec("ids", "int64", ("batch", "time")), TensorSpec("x", "float32", ("batch", 4))), ())


def ones(*shape):
    return np.ones(shape, np.float32)


def sizes(given, signature=ONE):
    with open_calibration(given, signature) as calibration:
        return [tuple(array.shape for array in batch.values()) for batch in calibration.batches()]


def digest(given, signature=ONE):
    with open_calibration(given, signature) as calibration:
        return calibration.digest


def test_one_array_is_cut_into_batches():
    assert sizes(ones(70, 4)) == [((32, 4),), ((32, 4),), ((6, 4),)]


def test_mapping_is_cut_alike_for_all_inputs():
    given = {"ids": np.zeros((40, 3), np.int64), "x": ones(40, 4)}
    assert sizes(given, TWO) == [((32, 3), (32, 4)), ((8, 3), (8, 4))]


@pytest.mark.parametrize(
    "shapes",
    [
        {"x": (40, 4)},  # fixed
        {"x": ("batch", 4), "z": ("time", 4)},  # not one axis
        {"x": ("batch", 4), "z": ()},
    ],
)
def test_arrays_whose_first_axis_is_not_one_free_axis_stay_whole(shapes):
    signature = Signature(tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items()), ())
    given = {name: ones(*(40 if isinstance(dim, str) else dim for dim in shape)) for name, shape in shapes.items()}
    assert len(sizes(given, signature)) == 1


@pytest.mark.parametrize("kind", [list, tuple, iter, lambda batches: (batch for batch in batches)])
def test_batches_of_an_iterable_stay_as_they_are_and_can_be_read_twice(kind):
    given = [ones(50, 4), {"x": ones(3, 4)}]
    with open_calibration(kind(given), ONE) as calibration:
        for _ in range(2):
            assert [batch["x"].shape for batch in calibration.batches()] == [(50, 4), (3, 4)]


def test_values_survive_the_disk():
    given = {"ids": np.arange(6).reshape(2, 3), "x": np.random.default_rng(0).random((2, 4), np.float32)}
    with open_calibration(iter([given]), TWO) as calibration:
        (batch,) = calibration.batches()
    assert batch.keys() == given.keys()
    for name, array in given.items():
        np.testing.assert_array_equal(batch[name], array, strict=True)


def test_digest_is_of_the_values_and_not_of_the_container():
    batches = [ones(3, 4), 2 * ones(3, 4)]
    assert digest(batches) == digest(iter(batches))
    assert digest(batches) != digest(batches[::-1])
    assert digest(batches) != digest(batches[:1])


@pytest.mark.parametrize("given", [torch.ones(70, 4), pd.DataFrame(ones(70, 4)), ones(70, 4).tolist()])
def test_whatever_is_one_batch_for_a_model_is_one_for_calibration(given):
    given = given.astype("float32") if isinstance(given, pd.DataFrame) else given
    assert sizes(given) == [((32, 4),), ((32, 4),), ((6, 4),)]


def test_labels_of_a_loader_of_pairs_are_left_out():
    loader = DataLoader(TensorDataset(torch.ones(5, 4), torch.arange(5)), batch_size=3)
    assert sizes(loader) == [((3, 4),), ((2, 4),)]


def test_loader_that_shuffles_is_read_once():
    class Shuffling:
        reads = 0

        def __iter__(self):
            Shuffling.reads += 1
            return iter([Shuffling.reads * ones(2, 4)])

    with open_calibration(Shuffling(), ONE) as calibration:
        assert [batch["x"][0, 0] for _ in range(2) for batch in calibration.batches()] == [1, 1]
    assert Shuffling.reads == 1


def test_stream_never_lies_in_memory_whole():
    batches = 40
    tracemalloc.start()
    try:
        with open_calibration((np.full((1000, 4), 1.0, np.float32) for _ in range(batches)), ONE) as calibration:
            assert sum(1 for _ in calibration.batches()) == batches
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < batches * 16_000 / 4


def bad(position, value):
    array = ones(3, 4)
    array[position] = value
    return array


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "calibration= has no batches: pass representative inputs"),
        (iter([]), "calibration= has no batches: pass representative inputs"),
        (ones(0, 4), "calibration= is empty: input 'x' has shape [0, 4]"),
        (bad((2, 1), np.nan), "calibration= holds nan at [2, 1] of input 'x'"),
        ([ones(2, 4), bad((0, 3), np.inf)], "batch 1 of calibration= holds inf at [0, 3] of input 'x'"),
        (
            ones(3, 5),
            "calibration= does not fit the model: input 'x' has shape [3, 5] where the model takes [batch, 4]",
        ),
        (iter([np.ones((2, 4))]), "batch 0 of calibration= does not fit the model: input 'x' has dtype float64 where"),
        ({"z": ones(2, 4)}, "calibration= does not fit the model: unknown input 'z': known: 'x'"),
        (7, "calibration= is a int: pass an array, a mapping from input names to arrays, or an iterable of such"),
    ],
)
def test_calibration_data_that_cannot_serve_are_refused(given, message):
    with pytest.raises(RecipeError) as caught, open_calibration(given, ONE):
        pass
    assert str(caught.value).startswith(message)


@pytest.fixture
def rows(weight):
    return weight(80, 8)


@pytest.fixture
def scale_of(store, mlp):
    """The step of a value in the int8 form of one model calibrated on some rows."""
    source = mlp()

    def scale(name, given, **options):
        small = compress(source, "int8-static", calibration=given, store=store, **options)
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in load_model(small).graph.initializer}
        return float(stored[f"{name}_scale"])

    return scale


def test_last_rows_count_as_much_as_the_first(scale_of):
    """Batches are merged: neither the first alone nor the last alone decides."""

    def scale_of_x(largest_at):
        given = np.tile(np.array([[40], [-40]], np.float32), (40, 8))
        given[largest_at] = 127
        return scale_of("x", given)

    assert scale_of_x(0) == pytest.approx(scale_of_x(79), rel=0.02)
    assert scale_of_x(40) == pytest.approx(scale_of_x(79), rel=0.02)


@pytest.fixture
def with_outlier(weight):
    rows = weight(4000, 8)
    rows[1234, 5] = 60
    return rows


def test_min_max_takes_an_outlier_in_and_the_other_methods_leave_it_out(scale_of, with_outlier):
    assert scale_of("x", with_outlier) == pytest.approx((60 - with_outlier.min()) / 255, rel=1e-5)
    assert scale_of("x", with_outlier, calibration_method="percentile", percentile=99.99) < 8 / 255
    assert scale_of("x", with_outlier, calibration_method="entropy") < 15 / 255


def test_leaving_outliers_out_makes_the_other_rows_exacter(mlp, store, with_outlier, noise_db, weight):
    source = mlp()

    def noise(**options):
        small = compress(source, "int8-static", calibration=with_outlier, store=store, **options)
        return noise_db(small, source, weight(64, 8))["y"]

    assert noise(calibration_method="percentile", percentile=99.9) > noise() + 6


@pytest.mark.parametrize("method", ["min-max", "entropy", "percentile"])
def test_neither_order_nor_size_of_batches_changes_a_range(mlp, store, with_outlier, method):
    """onnxruntime's histograms begin with the width of the first batch, and take batches of one size only."""
    source = mlp()
    ways = ([with_outlier], np.split(with_outlier, [100, 3000]), np.split(with_outlier[::-1], [7]))

    def scales(batches):
        small = compress(source, "int8-static", calibration=batches, calibration_method=method, store=store)
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in load_model(small).graph.initializer}
        return {name: array for name, array in stored.items() if name.endswith("_scale")}

    first, *others = (scales(batches) for batches in ways)
    for other in others:
        assert first.keys() == other.keys()
        np.testing.assert_array_equal(other["x_scale"], first["x_scale"])
        for name, array in first.items():  # values inside the model differ in their last digits with the batch size
            np.testing.assert_allclose(other[name], array, rtol=0.05)


def test_method_and_percentile_are_part_of_the_key(mlp, store, rows):
    source = mlp()
    choices = [{}, {"calibration_method": "entropy"}, {"calibration_method": "percentile"}]
    choices.append({"calibration_method": "percentile", "percentile": 99})
    paths = {compress(source, "int8-static", calibration=rows, store=store, **choice).path for choice in choices}
    assert len(paths) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration_method": "entropi"}, "unknown calibration method 'entropi': did you mean 'entropy'? Known"),
        ({"percentile": 99.9}, "percentile=99.9 does not apply to calibration_method='min-max'"),
        ({"calibration_method": "percentile", "percentile": 0}, "percentile=0: expected a number above 0 and at most"),
        ({"calibration_method": "percentile", "percentile": float("nan")}, "percentile=nan: expected a number above 0"),
    ],
)
def test_choice_of_ranges_that_cannot_be_meant_is_a_usage_error(mlp, store, rows, options, message):
    with pytest.raises(UsageError) as caught:
        compress(mlp(), "int8-static", calibration=rows, store=store, **options)
    assert str(caught.value).startswith(message)
    assert not store.root.exists()


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
