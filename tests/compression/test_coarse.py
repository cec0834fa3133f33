"""Which values inside a model are left with a handful of levels."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_modelserve.compression.calibration import Range
from pytest_modelserve.compression.recipe import nodes_around
from pytest_modelserve.compression.static_quantization import CoarseActivation, coarse_activations

RNG = np.random.default_rng(0)
SCORES = RNG.standard_normal((64, 16)).astype(np.float32)


@pytest.fixture
def coarse():
    """The coarse ones among values that are rounded from their least to their largest, of which only `rows` are seen."""

    def found(*, rows=slice(None), **values):
        nodes, stored, ranges = [], [], {}
        for name, array in values.items():
            low, high = min(array.min(), 0), max(array.max(), 0)
            step = np.float32((float(high) - float(low)) / 255)
            zero = np.int8(np.rint(-128 - low / step))
            stored += [numpy_helper.from_array(step, f"{name}_s"), numpy_helper.from_array(zero, f"{name}_z")]
            nodes.append(helper.make_node("QuantizeLinear", [name, f"{name}_s", f"{name}_z"], [f"{name}_q"]))
            ranges[name] = Range(low, high)
        outputs = [helper.make_tensor_value_info(f"{name}_q", TensorProto.INT8, None) for name in values]
        model = helper.make_model(helper.make_graph(nodes, "g", [], outputs, stored))
        return tuple(coarse_activations(model, ranges, {name: array[rows] for name, array in values.items()}))

    return found


def test_scores_beside_an_enormous_number_are_coarse(coarse):
    masked = SCORES.copy()
    masked[:, 8:] = -1e9
    (found,) = coarse(scores=SCORES, masked=masked)
    assert found == CoarseActivation("masked", -1e9, float(SCORES[:, :8].max()), pytest.approx(1e9 / 255, rel=1e-6))
    assert str(found) == "'masked' (from -1e+09 to 2.55 in steps of 3.9e+06)"


def test_range_counts_and_not_whether_what_made_it_is_seen(coarse):
    """The outlier may be in another batch."""
    wide = SCORES.copy()
    wide[0, 0] = 1e4
    (found,) = coarse(wide=wide, rows=slice(1, None))
    assert (found.name, found.high) == ("wide", 1e4)


def test_values_that_are_few_to_begin_with_lose_nothing(coarse):
    assert coarse(mask=np.where(SCORES > 0, np.float32(0), np.float32(-1e9)), steps=np.rint(SCORES)) == ()


def test_levels_beyond_the_ends_are_the_ends(coarse):
    """Clipping leaves as many levels as there are between the ends."""
    assert coarse(tails=SCORES**3) == ()


def test_nodes_around_a_value_give_or_read_it_and_do_more_than_move_it():
    nodes = [
        helper.make_node("Add", ["h", "mask"], ["m"], name="add"),
        helper.make_node("Reshape", ["m", "shape"], ["r"], name="reshape"),
        helper.make_node("Softmax", ["m"], ["y"], name="softmax"),
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Where", ["c", "a", "m"], ["z"], name="where"),
    ]
    assert nodes_around(["m"], nodes) == ("add", "softmax", "where")
    assert nodes_around(iter(["h", "unknown"]), nodes) == ("add", "product")
    assert nodes_around([], nodes) == ()
