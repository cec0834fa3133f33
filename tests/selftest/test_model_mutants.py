"""The rule of equivalent mutants, and alterations of what a model gets and returns."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

import pytest_modelserve as ms
from pytest_modelserve.selftest.model_mutants import (
    ROUNDINGS,
    AlteredPredictor,
    Effect,
    alterations,
    differs,
    effect_of,
    graph_source,
    noise_floor_db,
    slower_twin,
)
from tests.onnx_models import make_model

EPSILON = np.finfo(np.float32).eps
X = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 10]], np.float32)


def altered(kind, model, rows, place=0):
    """Return the outputs of `model` under an alteration, and the effect."""
    alteration = [each for each in alterations(has_graph=False, count=3) if each.kind == kind][place]
    effect = Effect()
    return AlteredPredictor(ms.serve(model), alteration, effect).predict(rows)["output"], effect


def test_rounding_is_no_difference():
    expected = {"y": np.array([1, 100], np.float32)}
    assert not differs({"y": expected["y"] * np.float32(1 + ROUNDINGS * EPSILON / 2)}, expected, None)
    assert differs({"y": np.array([1, 100.01], np.float32)}, expected, None)


@pytest.mark.parametrize(
    "found",
    [
        np.array([1, np.nan], np.float32),
        np.array([1, 2, 3], np.float32),
        np.array([1, 2], np.float64),
        np.array([1, np.inf], np.float32),
    ],
    ids=["NaN", "shape", "dtype", "infinity"],
)
def test_other_kind_of_output_is_a_difference(found):
    assert differs({"y": found}, {"y": np.array([1, 2], np.float32)}, None)


def test_nan_in_both_is_no_difference():
    y = {"y": np.array([np.nan, 1, np.inf], np.float32)}
    assert not differs(y, {"y": y["y"].copy()}, None)


def test_changed_label_is_a_difference():
    assert differs({"y": np.array(["a", "b"])}, {"y": np.array(["a", "a"])}, None)


def test_noise_of_a_reduced_file_is_no_difference():
    expected = {"y": np.array([10, 10], np.float32), "label": np.array([0, 1])}
    slightly = {"y": np.array([10.3, 10], np.float32), "label": np.array([1, 1])}  # 33 dB
    assert differs(slightly, expected, None)
    assert not differs(slightly, expected, 25.0)
    assert differs({**slightly, "y": np.array([12, 10], np.float32)}, expected, 25.0)  # 17 dB


def test_effect_names_signal_quality_and_changed_labels():
    expected = {"y": np.array([[0, 10], [10, 0]], np.float32)}
    assert effect_of({"y": np.array([[11, 10], [10, 0]], np.float32)}, expected) == "SQNR 2 dB, 1 of 2 labels change"


@pytest.mark.parametrize(
    ("operator", "dtype", "floor"),
    [("QuantizeLinear", np.float32, 25.0), ("Add", np.float16, 55.0), ("Add", np.float32, None)],
)
def test_noise_floor_follows_the_bits_of_a_file(operator, dtype, floor):
    node = helper.make_node(operator, ["x", "c"], ["y"])
    constant = {"c": np.array(1, dtype)}
    out = "uint8" if operator == "QuantizeLinear" else np.dtype(dtype).name
    model = make_model([node], {"x": (np.dtype(dtype).name, ["n", 2])}, {"y": (out, ["n", 2])}, constant)
    assert noise_floor_db(model) == floor


def test_moved_column_swaps_neighbors():
    first, _ = altered("moved column", lambda x: x, X)
    last, _ = altered("moved column", lambda x: x, X, place=2)
    assert first[0].tolist() == [2, 1, 3]
    assert last[0].tolist() == [1, 3, 2]


@pytest.mark.parametrize(
    ("outputs", "swapped"),
    [
        (X, X[:, [1, 0, 2]]),
        (np.array([0, 1, 2]), np.array([1, 0, 2])),
        (np.array(["cat", "dog", "cat"]), np.array(["dog", "cat", "dog"])),
        (np.array([0.25, 1, 0], np.float32), np.array([0.75, 0, 1], np.float32)),
    ],
    ids=["scores", "numbers", "names", "probability"],
)
def test_classes_are_swapped_in_any_form_of_output(outputs, swapped):
    found, effect = altered("swapped classes", lambda _: outputs, X)
    np.testing.assert_array_equal(found, swapped)
    assert effect.changed


def test_regression_has_no_classes_to_swap():
    _, effect = altered("swapped classes", lambda x: x[:, 0] * 100, X)
    assert not effect.changed


def test_rows_are_shifted_by_one():
    found, _ = altered("shifted rows", lambda x: x[:, 0], X)
    assert found.tolist() == [7, 1, 4]


def test_alteration_that_the_model_ignores_has_no_effect():
    found, effect = altered("moved column", lambda x: x.sum(axis=1), X)
    assert found.tolist() == [6, 15, 25]
    assert not effect.changed


def test_slower_twin_takes_the_multiple_of_the_time(monkeypatch):
    now = [0.0]

    def tick():
        now[0] += 1
        return now[0]

    monkeypatch.setattr("pytest_modelserve.selftest.model_mutants.time.perf_counter", tick)
    AlteredPredictor(ms.serve(lambda x: x), slower_twin(20.0), Effect()).predict(X)
    assert now[0] == pytest.approx(1 + 20, abs=2)


def test_broken_copies_of_a_file_are_compared_on_the_rows_of_the_gates(tmp_path):
    import onnx

    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    weights = {"w": np.array([[1, -1], [0, 2], [0, 0]], np.float32)}
    onnx.save(
        make_model(nodes, {"x": ("float32", ["n", 3])}, {"y": ("float32", ["n", 2])}, weights), tmp_path / "m.onnx"
    )
    with ms.serve(tmp_path / "m.onnx") as predictor:
        source = graph_source(predictor, [X], tmp_path)
    made = {mutant.kind: mutant for _, mutant in source.mutants(1)}
    assert {"operator", "weight noise", "dropped node", "dtype"} <= made.keys()
    copy, unchanged = source.served(None)
    with copy:
        assert not unchanged.changed
    broken, effect = source.served(made["operator"])
    with broken:
        assert not effect.changed  # every sum is positive, where Relu, LeakyRelu and Abs agree
    noisy, effect = source.served(made["weight noise"])
    with noisy:
        assert effect.changed
        assert effect.text.startswith("SQNR ")


def test_function_has_no_graph_to_break(tmp_path):
    assert graph_source(ms.serve(lambda x: x), [X], tmp_path) == "it is no file in onnxruntime in this process"
