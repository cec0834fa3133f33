"""The gate on certified accuracy: verdicts, counterexamples, the curve over eps, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import pytest_modelserve as ms
from pytest_modelserve.errors import ArtifactError, InputError, UsageError

FLOAT, INT64, UINT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.UINT8
RNG = np.random.default_rng(0)
# The label of a row is 1 where its first feature is positive. Its distance from 0 is that to the nearest other label.
ROWS = RNG.uniform(-1, 1, size=(200, 2)).astype(np.float32)
LABELS = (ROWS[:, 0] > 0).astype(int)
WEIGHT = np.array([[-3, 3], [0, 0]], np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def save(
    folder: Path, nodes: list[onnx.NodeProto], *, kind: int = FLOAT, output: int = FLOAT, shape=None, **tensors
) -> str:
    """Save a graph from "x" (rows, 2) to "out"."""
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", kind, ["n", 2])], [helper.make_tensor_value_info("out", output, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )  # fmt: skip
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return str(path)


@pytest.fixture
def linear(tmp_path: Path) -> str:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["out"], axis=-1)]
    return save(tmp_path, nodes, shape=["n", 2], w=WEIGHT)


def test_exactly_the_rows_farther_than_eps_from_the_border_are_certified(linear: str) -> None:
    found = ms.measure_certified_accuracy(linear, ROWS, LABELS, eps=0.1, min_accuracy=0.8, low=-1, high=1)
    assert found.value == np.mean(np.abs(ROWS[:, 0]) > 0.1)
    assert set(found.details["broken_rows"]) == set(np.flatnonzero(np.abs(ROWS[:, 0]) <= 0.1))
    assert found.verdict is ms.Verdict.PASS
    assert found.quantities[1].value == 1.0


def test_rows_with_confirmed_counterexamples_fail_and_open_ones_do_not(linear: str) -> None:
    with pytest.raises(ms.GateFailure, match="inputs within the distance have another label for more rows"):
        ms.assert_certified(linear, ROWS, LABELS, eps=0.5, min_accuracy=0.9)
    bounds_only = ms.measure_certified_accuracy(linear, ROWS, LABELS, eps=0.5, min_accuracy=0.9, method="linear")
    assert bounds_only.verdict is ms.Verdict.INCONCLUSIVE
    assert "method='branch'" in bounds_only.advice


def test_attacks_bound_accuracy_from_above_where_bounds_leave_rows_open(linear: str) -> None:
    args = {"eps": [0.05, 0.5], "min_accuracy": 0.9, "method": "interval", "low": -1, "high": 1}
    found = ms.measure_certified_accuracy(linear, ROWS, LABELS, attacks=[ms.attacks.square(queries=50)], **args)
    assert found.verdict is ms.Verdict.FAIL
    certified, attacked = (each["value"] for each in found.details["accuracy_over_eps"]["series"])
    assert certified == attacked == [np.mean(np.abs(ROWS[:, 0]) > eps) for eps in (0.05, 0.5)]
    with pytest.raises(UsageError, match="attacks must be a list"):
        ms.measure_certified_accuracy(linear, ROWS, LABELS, attacks=ms.attacks.square(), **args)


def test_the_curve_falls_with_eps_and_its_largest_radius_is_judged(linear: str) -> None:
    found = ms.measure_certified_accuracy(linear, ROWS, LABELS, eps=[0.3, 0.01, 0.1], min_accuracy=0.5)
    series = {each["label"]: each["value"] for each in found.details["accuracy_over_eps"]["series"]}
    assert series["certified"] == [np.mean(np.abs(ROWS[:, 0]) > eps) for eps in (0.01, 0.1, 0.3)]
    assert all(c <= a <= 1 for c, a in zip(series["certified"], series["attacked"], strict=True))
    assert found.value == series["certified"][-1]


def test_the_range_of_the_input_limits_what_is_admissible(linear: str) -> None:
    rows = np.array([[0.05, 0.0], [0.9, 0.0]] * 20, np.float32)
    args = {"eps": 0.1, "min_accuracy": 0.5, "low": [0.02, -1], "high": 1.0}
    assert ms.measure_certified_accuracy(linear, rows, np.ones(40, int), **args).value == 1.0
    args["low"] = -1.0
    assert ms.measure_certified_accuracy(linear, rows, np.ones(40, int), **args).value == 0.5


def test_eps_has_the_unit_of_the_unprocessed_input_of_composed_steps(linear: str, modelserve) -> None:
    served = modelserve.compose(ms.open_artifact(linear), preprocess=[ms.Standardize([10, 0], [5, 1])])
    rows = ROWS * np.float32([5, 1]) + np.float32([10, 0])
    found = ms.measure_certified_accuracy(served, rows, LABELS, eps=0.5, min_accuracy=0.8)
    assert found.value == np.mean(np.abs(ROWS[:, 0]) > 0.1)


def test_imputed_inputs_are_certified_as_they_are_without_the_step(linear: str, modelserve) -> None:
    served = modelserve.compose(ms.open_artifact(linear), preprocess=[ms.Impute([0.5, 0.5])])
    found, plain = (
        ms.measure_certified_accuracy(each, ROWS, LABELS, eps=0.1, min_accuracy=0.5) for each in (served, linear)
    )
    assert found.value == plain.value


def test_integer_inputs_move_by_whole_numbers(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=FLOAT), helper.make_node("Sub", ["f", "c"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["out"]),
    ]  # fmt: skip
    path = save(tmp_path, nodes, kind=UINT8, w=WEIGHT, c=np.float32([9.5, 0]))
    rows = np.array([[0, 0], [8, 0], [10, 3], [11, 255], [255, 255]] * 8, np.uint8)
    found = ms.measure_certified_accuracy(path, rows, (rows[:, 0] > 9).astype(int), eps=1.9, min_accuracy=0.5)
    assert found.value == 0.8  # 10 may become 9, and 8 no more than 9
    with pytest.raises(UsageError, match=r"eps=0\.5 changes no value of these inputs"):
        ms.measure_certified_accuracy(path, rows, rows[:, 0] > 9, eps=0.5, min_accuracy=0.5)


def test_a_graph_that_returns_labels_is_certified_by_the_scores_before_them(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("ArgMax", ["z"], ["i"], axis=-1, keepdims=0),
        helper.make_node("Gather", ["names", "i"], ["out"]),
    ]  # fmt: skip
    path = save(tmp_path, nodes, output=INT64, w=WEIGHT, names=np.array([7, 3]))
    labels = np.where(LABELS == 1, 3, 7)
    found = ms.measure_certified_accuracy(path, ROWS, labels, eps=0.1, min_accuracy=0.5)
    assert found.value == np.mean(np.abs(ROWS[:, 0]) > 0.1)
    with pytest.raises(InputError, match=r"labels hold 1 in row 0.* its classes are 7, 3"):
        ms.measure_certified_accuracy(path, ROWS, np.ones(200, int), eps=0.1, min_accuracy=0.5)


def test_a_probability_with_a_threshold_is_certified(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Sigmoid", ["z"], ["out"])]
    path = save(tmp_path, nodes, w=np.array([[3], [0]], np.float32))
    output = ms.Output(decode="threshold")
    found = ms.measure_certified_accuracy(path, ROWS, LABELS, eps=0.1, min_accuracy=0.5, output=output)
    assert found.value == np.mean(np.abs(ROWS[:, 0]) > 0.1)


def test_a_time_limit_that_is_too_short_is_reported_with_the_bound_so_far(linear: str) -> None:
    found = ms.measure_certified_accuracy(linear, ROWS, LABELS, eps=0.1, min_accuracy=0.5, time_limit_s=1e-9)
    assert found.value == 0.0
    assert found.verdict is ms.Verdict.INCONCLUSIVE
    assert "time_limit_s=1e-09 ended" in str(found)
    assert "raise time_limit_s" in found.advice


def test_the_time_ends_bounds_of_wide_layers_before_all_inner_values_are_tight(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    nodes, tensors, name = [], {}, "x"
    for at, (inputs, outputs) in enumerate([(2, 300), (300, 300), (300, 300), (300, 2)]):
        tensors[f"w{at}"] = rng.normal(size=(inputs, outputs)).astype(np.float32)
        nodes += [
            helper.make_node("MatMul", [name, f"w{at}"], [f"z{at}"]),
            helper.make_node("Relu", [f"z{at}"], [f"a{at}"]),
        ]
        name = f"a{at}"
    nodes[-1].output[0] = "out"
    path = save(tmp_path, nodes, shape=["n", 2], **tensors)
    labels = onnxruntime.InferenceSession(path).run(None, {"x": ROWS[:40]})[0].argmax(axis=1)
    args = {"eps": 0.3, "min_accuracy": 0.5, "method": "linear", "time_limit_s": 0.05}
    found = ms.measure_certified_accuracy(path, ROWS[:40], labels, **args)
    assert "time_limit_s=0.05 ended before all rows were decided" in str(found)


def test_rows_that_are_wrong_already_are_not_certified(linear: str) -> None:
    labels = LABELS.copy()
    labels[:20] = 1 - labels[:20]
    found = ms.measure_certified_accuracy(linear, ROWS, labels, eps=0.01, min_accuracy=0.5)
    assert found.details["wrong_rows"] == list(range(20))
    assert found.value <= 0.9
    nothing = ms.measure_certified_accuracy(linear, ROWS, 1 - LABELS, eps=0.01, min_accuracy=0.5)
    assert nothing.verdict is ms.Verdict.FAIL
    assert "every row is predicted wrong" in nothing.summary


def test_smoothing_certifies_a_function_by_queries() -> None:
    model = ms.serve(lambda x: x @ WEIGHT)
    args = {"min_accuracy": 0.5, "method": "smoothing", "sigma": 0.2, "samples": 300}
    found = ms.measure_certified_accuracy(model, ROWS, LABELS, eps=[0.1, 0.3], **args)
    assert found.details["norm"] == "l2"
    assert 0.3 < found.value < np.mean(np.abs(ROWS[:, 0]) > 0.3)
    with pytest.raises(UsageError, match="bounds need its graph"):
        ms.measure_certified_accuracy(model, ROWS, LABELS, eps=0.1, min_accuracy=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0}, "eps must be positive and finite"),
        ({"eps": -0.1}, "eps must be positive and finite"),
        ({"eps": float("nan")}, "eps must be positive and finite"),
        ({"eps": []}, "eps is empty"),
        ({"eps": [0.1, 0.1]}, "eps must not repeat"),
        ({"eps": 3.0, "low": -1, "high": 1}, "eps=3.0 is larger than the range"),
        ({"min_accuracy": 1.5}, "min_accuracy must be a proportion"),
        ({"method": "crown"}, "unknown method 'crown'"),
        ({"sigma": 0.1}, "sigma is the noise of method='smoothing'"),
        ({"method": "smoothing"}, "sigma= is missing"),
        ({"method": "smoothing", "sigma": 0.1, "low": 0}, "low does not apply to method='smoothing'"),
        ({"time_limit_s": 0}, "time_limit_s"),
        ({"labels": LABELS[:5]}, "labels"),
        ({"labels": LABELS + 1}, "labels hold 2 in row .* its classes are 0, 1"),
        ({"inputs": np.where(ROWS[3, 0] == ROWS, np.nan, ROWS).astype(np.float32)}, "NaN or infinity in 1 rows"),
        ({"low": 0.0}, "low"),
        ({"scale": -1}, "scale must be positive"),
        ({"scale": "std"}, "scale must be a number"),
        ({"scale": [1, 2, 3]}, "scale must be a number, or one for each feature"),
        ({"output": ms.Output(decode=lambda scores: scores.argmax(1))}, "output.decode is a function"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_clear_error(linear: str, change: dict, message: str) -> None:
    args = {"inputs": ROWS, "labels": LABELS, "eps": 0.1, "min_accuracy": 0.5, **change}
    with pytest.raises(UsageError, match=message):
        ms.measure_certified_accuracy(linear, **args)


def test_control_flow_is_refused_by_its_node(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["same"])], "b", [], [helper.make_tensor_value_info("same", FLOAT, None)]
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0), helper.make_node("Greater", ["m", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["out"], name="choice", then_branch=branch, else_branch=branch),
    ]  # fmt: skip
    path = save(tmp_path, nodes, zero=np.float32(0))
    with pytest.raises(ArtifactError, match="node 'choice' is If: control flow"):
        ms.measure_certified_accuracy(path, ROWS, LABELS, eps=0.1, min_accuracy=0.5)


def test_labels_without_scores_are_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Greater", ["z", "zero"], ["g"]),
        helper.make_node("Cast", ["g"], ["out"], to=INT64),
    ]  # fmt: skip
    path = save(tmp_path, nodes, output=INT64, w=np.array([[1], [0]], np.float32), zero=np.float32(0))
    with pytest.raises(ArtifactError, match=r"Cast|Greater"):
        ms.measure_certified_accuracy(path, ROWS, LABELS, eps=0.1, min_accuracy=0.5)


def test_no_admissible_input_breaks_a_certified_row_of_the_served_session(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    w1, w2 = rng.normal(size=(2, 16)).astype(np.float32), rng.normal(size=(16, 3)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["out"]),
    ]  # fmt: skip
    path = save(tmp_path, nodes, a=w1, b=w2)
    session = onnxruntime.InferenceSession(path)
    labels = session.run(None, {"x": ROWS})[0].argmax(axis=1)
    found = ms.measure_certified_accuracy(path, ROWS, labels, eps=0.05, min_accuracy=0.5)
    safe = np.setdiff1d(np.arange(200), [*found.details["broken_rows"], *found.details["open_rows"]])
    assert 20 < len(safe) < 200
    change = rng.uniform(-0.05, 0.05, size=(300, len(safe), 2))
    change[:150] = 0.05 * np.sign(change[:150])
    points = (ROWS[safe] + change).astype(np.float32)
    points = np.clip(points, ROWS[safe] - np.float32(0.05), ROWS[safe] + np.float32(0.05))
    predicted = session.run(None, {"x": points.reshape(-1, 2)})[0].argmax(axis=1).reshape(300, -1)
    assert (predicted == labels[safe]).all()
