"""Saturation of pairs of int8 products on processors without VNNI."""

import numpy as np
import pytest

from pytest_modelserve.artifacts import load_model
from pytest_modelserve.compression import compress
from pytest_modelserve.compression.saturation import node_saturation, saturation_error
from pytest_modelserve.errors import UsageError

ROW = {"x": ["batch", 64]}


def by_definition(rows, weights):
    """What VPMADDUBSW and exact sums differ by, product by product."""
    errors = np.zeros((len(rows), weights.shape[1]))
    for i, row in enumerate(rows):
        for j, column in enumerate(weights.T):
            products = [int(a) * int(b) for a, b in zip(row, column, strict=True)]
            pairs = [sum(products[at : at + 2]) for at in range(0, len(products), 2)]
            errors[i, j] = sum(min(max(pair, -32768), 32767) - pair for pair in pairs)
    return errors


@pytest.mark.parametrize("length", [6, 7])
def test_error_is_that_of_16_bit_sums_of_pairs(length):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (5, length)).astype(np.int32)
    weights = rng.integers(-128, 128, (length, 4)).astype(np.int32)
    expected = by_definition(rows, weights)
    assert np.count_nonzero(expected) > 3
    np.testing.assert_array_equal(saturation_error(rows, weights), expected)


def test_weights_of_7_bits_cannot_saturate():
    assert not saturation_error(np.full((1, 64), 255), np.full((64, 1), 64)).any()
    assert saturation_error(np.full((1, 64), 255), np.full((64, 1), 65)).any()


@pytest.fixture
def product(saved):
    """A product of large inputs and large weights of one sign, the case that saturates."""
    weights = np.random.default_rng(0).uniform(0.8, 1, (64, 8)).astype(np.float32)
    return saved([("MatMul", ["x", "w"], "y", {})], ROW, {"y": ["batch", 8]}, {"w": weights})


@pytest.mark.parametrize("recipe", ["int8-dynamic", "int8-static"])
def test_node_that_saturates_is_noted_and_reduced_range_cures_it(product, store, needed, outputs_of, recipe):
    rows = np.random.default_rng(1).uniform(0.5, 1, (32, 64)).astype(np.float32)
    options = needed(recipe, rows)
    full, reduced = (compress(product, recipe, reduce_range=reduce, store=store, **options) for reduce in (False, True))
    (note,) = (note for note in full.lineage[-1].notes if note.startswith("outputs depend on the processor"))
    assert "saturates in 'node_y' (SQNR " in note
    assert note.endswith("reduce_range=True avoids it")
    (found,) = node_saturation(load_model(full), {"x": rows})
    assert (found.node, found.sqnr_db < 20) == ("node_y", True)
    assert not list(node_saturation(load_model(reduced), {"x": rows}))
    assert reduced.lineage[-1].settings["reduce_range"] is True
    error = np.abs(outputs_of(reduced, rows)["y"] - outputs_of(product, rows)["y"]).max()
    assert 0 < error < 0.01 * outputs_of(product, rows)["y"].max()


def test_convolution_of_one_pixel_saturates_as_the_same_product_does(product, saved, store):
    rows = np.random.default_rng(1).uniform(0.5, 1, (32, 64)).astype(np.float32)
    quantized = compress(product, "int8-static", calibration=rows, store=store)
    weights = next(iter(load_model(product).graph.initializer))
    kernel = np.frombuffer(weights.raw_data, np.float32).reshape(64, 8).T[:, :, None, None].copy()
    nodes = [("Conv", ["x", "k"], "y", {"kernel_shape": [1, 1]})]
    convolution = saved(nodes, {"x": ["batch", 64, 1, 1]}, {"y": ["batch", 8, 1, 1]}, {"k": kernel})
    images = rows[:, :, None, None]
    convolved = compress(convolution, "int8-static", calibration=images, store=store)
    (of_product,) = node_saturation(load_model(quantized), {"x": rows})
    (of_convolution,) = node_saturation(load_model(convolved), {"x": images})
    assert of_convolution.sqnr_db == pytest.approx(of_product.sqnr_db, abs=0.5)


def test_patches_of_a_convolution_are_those_that_it_reads(saved, store):
    """Large in one channel and one row of the image alone: only the patches that hold it saturate."""
    rng = np.random.default_rng(0)
    kernel = rng.uniform(0.9, 1, (4, 2, 2, 2)).astype(np.float32)
    nodes = [("Conv", ["x", "k"], "y", {"kernel_shape": [2, 2], "strides": [2, 1], "pads": [0, 1, 0, 1]})]
    source = saved(nodes, {"x": ["batch", 2, 6, 6]}, {"y": ["batch", 4, 3, 7]}, {"k": kernel})
    images = rng.uniform(0, 0.1, (8, 2, 6, 6)).astype(np.float32)
    small = compress(source, "int8-static", calibration=np.concatenate([images, images + 1]), store=store)
    assert list(node_saturation(load_model(small), {"x": images})) == []
    images[:, :, 3, 2] = 1
    (found,) = node_saturation(load_model(small), {"x": images})
    assert found.node == "node_y"


def test_reduced_range_applies_to_int8_only(product, store):
    with pytest.raises(UsageError, match="reduce_range= does not apply to 'fp16': remove it"):
        compress(product, "fp16", reduce_range=True, store=store)
