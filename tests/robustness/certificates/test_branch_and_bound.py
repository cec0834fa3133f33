"""Decisions of branch and bound, compared with exact solutions and with the served model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from pytest_modelserve.robustness.certificates import Box
from pytest_modelserve.robustness.certificates.branch_and_bound import Decisions, decide
from pytest_modelserve.robustness.certificates.network import network_of
from tests.robustness.certificates.test_bounds import dense_model, exact_minimum


def session_of(model: onnx.ModelProto) -> Callable[[np.ndarray], np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda rows: session.run(None, {session.get_inputs()[0].name: rows})[0]


def decisions(
    model: onnx.ModelProto, center: np.ndarray, radius: float, threshold: np.ndarray, time_limit_s: float = 20.0
) -> Decisions:
    """Decide whether the first output exceeds the threshold of each row."""
    network = network_of(model, np.zeros((2, center.shape[1]), np.float32))
    scores = session_of(model)
    functions = np.zeros((len(center), 1, *network.output_shape))
    functions[:, 0, 0] = 1.0
    return decide(
        network,
        Box(center - radius, center + radius),
        functions,
        confirm=lambda rows, owners: scores(rows)[:, 0] <= threshold[owners],
        time_limit_s=time_limit_s,
        offsets=-threshold[:, None],
    )


@pytest.mark.parametrize("widths", [[4, 12, 2], [9, 12, 2]])
def test_it_decides_by_ranges_of_inputs_and_by_signs_what_integer_programming_decides(widths: list[int]) -> None:
    model, weights, biases = dense_model(widths, seed=1)
    rng = np.random.default_rng(2)
    center = rng.normal(size=(6, widths[0]))
    least = np.array([exact_minimum(weights, biases, each - 0.4, each + 0.4) for each in center])
    gap = 0.01 * np.where(np.arange(6) % 2, 1.0, -1.0)
    found = decisions(model, center, 0.4, least + gap)
    assert not found.undecided.any()
    assert found.certified.tolist() == (gap < 0).tolist()
    assert sorted(found.counterexamples) == np.flatnonzero(gap > 0).tolist()
    assert (found.lower[found.certified] <= -gap[found.certified] + 1e-9).all()


def test_it_certifies_what_linear_bounds_alone_do_not() -> None:
    model, weights, biases = dense_model([9, 12, 2], seed=1)
    center = np.random.default_rng(2).normal(size=(4, 9))
    least = np.array([exact_minimum(weights, biases, each - 0.4, each + 0.4) for each in center])
    at_once = decisions(model, center, 0.4, least - 0.01, time_limit_s=0.0)
    later = decisions(model, center, 0.4, least - 0.01)
    assert at_once.undecided.any()
    assert later.certified.all()


def test_a_row_without_time_is_undecided_and_reports_its_bound_so_far() -> None:
    model, weights, biases = dense_model([9, 12, 2], seed=1)
    center = np.random.default_rng(2).normal(size=(4, 9))
    least = np.array([exact_minimum(weights, biases, each - 0.4, each + 0.4) for each in center])
    found = decisions(model, center, 0.4, least - 1e-4, time_limit_s=0.0)
    undecided = found.undecided
    assert undecided.any()
    assert (found.lower[undecided] <= 0).all()
    assert np.isfinite(found.lower[undecided]).all()


def test_scores_that_may_overflow_are_never_certified() -> None:
    model = dense_model([3, 4, 2])[0]
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(array * np.float32(1e30), tensor.name))
    found = decisions(model, np.ones((2, 3)), 0.5, np.full(2, -1e38), time_limit_s=0.2)
    assert not found.certified.any()


def test_a_counterexample_lies_in_the_box_and_fails_in_the_served_model() -> None:
    model = dense_model([9, 12, 12, 2], seed=1)[0]
    center = np.random.default_rng(2).normal(size=(5, 9)).astype(np.float32).astype(float)
    scores = session_of(model)
    threshold = scores(center.astype(np.float32))[:, 0].astype(float) - 0.2
    found = decisions(model, center, 0.3, threshold)
    assert len(found.counterexamples) >= 3
    for row, each in found.counterexamples.items():
        assert each.dtype == np.float32
        assert (np.abs(each.astype(float) - center[row]) <= 0.3).all()
        assert scores(each[None])[0, 0] <= threshold[row]


def test_values_inside_a_quantized_network_are_split_too() -> None:
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(8, 6)).astype(np.float32), rng.normal(size=(6, 1)).astype(np.float32)
    w[:, 3:] = w[:, :3]
    v[3:] = -v[:3]
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["z"]),
        helper.make_node("QuantizeLinear", ["z", "s", "o"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "o"], ["a"]),
        helper.make_node("Gemm", ["a", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in
         {"w": w, "v": v, "s": np.float32(0.5), "o": np.int8(-128)}.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    center = np.zeros((1, 8))
    assert decisions(model, center, 0.5, np.array([-5.0]), time_limit_s=0.0).undecided.all()
    assert decisions(model, center, 0.5, np.array([-5.0])).certified.all()


@pytest.mark.parametrize(("dtype", "expected"), [("uint8", [1, 3]), ("float32", [0.5, 3.25])])
def test_candidates_are_rounded_into_the_box(dtype: str, expected: list[float]) -> None:
    box = Box(np.array([[0.5, 0.5]]), np.array([[3.25, 3.25]]))
    assert box.inside(np.array([[0.5, 3.25]]), dtype).tolist() == [expected]
    narrow = Box(np.array([[0.1]]), np.array([[0.1 + 1e-7]]))
    found = narrow.inside(narrow.upper, "float32").astype(float)
    assert narrow.lower[0, 0] <= found[0, 0] <= narrow.upper[0, 0]
