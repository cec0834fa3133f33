"""The ways in which calibration data become ranges, seen in the scales that int8-static writes."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from onnx import numpy_helper
from onnxruntime.quantization.calibrate import PercentileCalibrater

from pytest_modelserve.artifacts import load_model
from pytest_modelserve.compression import compress
from pytest_modelserve.errors import UsageError


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


def test_percentile_is_that_of_numpy_on_the_whole_array(scale_of, with_outlier):
    expected = np.quantile(np.abs(with_outlier), 0.999, method="inverted_cdf")
    got = scale_of("x", with_outlier, calibration_method="percentile", percentile=99.9) * 255 / 2
    assert expected * (1 - 1e-6) <= got <= expected * (1 + 2**-8)


def test_values_inside_the_model_are_clipped_too(scale_of, with_outlier):
    clipped = scale_of("y", with_outlier, calibration_method="percentile", percentile=99.9)
    assert clipped < scale_of("y", with_outlier) / 4


def test_default_percentile_is_that_of_onnxruntime(mlp, store, with_outlier):
    small = compress(mlp(), "int8-static", calibration=with_outlier, calibration_method="percentile", store=store)
    assert small.lineage[-1].settings["calibration_method"] == "percentile"
    assert small.lineage[-1].settings["percentile"] == 99.999
    assert inspect.signature(PercentileCalibrater).parameters["percentile"].default == 99.999


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
    ("options", "told"),
    [
        (
            {"calibration_method": "entropi"},
            "unknown calibration method 'entropi': did you mean 'entropy'? Known: 'min-max', 'entropy', 'percentile'",
        ),
        (
            {"percentile": 99.9},
            "percentile=99.9 does not apply to calibration_method='min-max': remove it, or use "
            "calibration_method='percentile'",
        ),
        (
            {"calibration_method": "percentile", "percentile": 0},
            "percentile=0: expected a number above 0 and at most 100",
        ),
        (
            {"calibration_method": "percentile", "percentile": float("nan")},
            "percentile=nan: expected a number above 0 and at most 100",
        ),
    ],
)
def test_choice_of_ranges_that_cannot_be_meant_is_a_usage_error(mlp, store, rows, options, told):
    with pytest.raises(UsageError) as caught:
        compress(mlp(), "int8-static", calibration=rows, store=store, **options)
    assert str(caught.value) == told
    assert not store.root.exists()


def test_method_for_a_recipe_without_calibration_is_a_usage_error(mlp, store):
    with pytest.raises(UsageError) as caught:
        compress(mlp(), "int8-dynamic", calibration_method="entropy", store=store)
    assert str(caught.value) == "calibration_method='entropy' does not apply to 'int8-dynamic': remove it"
