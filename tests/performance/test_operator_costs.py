"""Proportions of the time of a model by operator."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import pytest_modelserve as ms
from pytest_modelserve.artifacts import Store, compose
from pytest_modelserve.performance.operator_costs import costs_of_profile, measure_operator_costs

X = np.ones((4, 64), np.float32)


def event(node, operator, us):
    return {"cat": "Node", "name": f"{node}_kernel_time", "dur": us, "args": {"op_name": operator}}


RUN = {"cat": "Session", "name": "model_run", "dur": 1}


def test_proportions_are_of_the_time_in_nodes_after_the_warm_up():
    slow_start = [event("fc", "MatMul", 1_000_000), RUN] * 5
    later = [event("fc", "MatMul", 60), event("act", "Relu", 40), RUN] * 5
    found = costs_of_profile(slow_start + later)
    assert found is not None
    assert [(cost.node, cost.operator, cost.proportion) for cost in found.costliest] == [
        ("fc", "MatMul", 0.6),
        ("act", "Relu", 0.4),
    ]
    assert str(found) == (
        "costliest operators (profiled separately, on onnxruntime's CPU provider): MatMul fc 60 %, Relu act 40 %"
    )


def profile(**us):
    """Ten runs of warm-up, and one whose nodes took so long; "__" stands for "/"."""
    return [RUN] * 10 + [event(node.replace("__", "/"), "Add", time) for node, time in us.items()] + [RUN]


def test_parts_are_steps_and_model():
    nodes = profile(preprocess__0_scale__mul=12, preprocessing=85, postprocess__0_softmax__s=3)
    found = costs_of_profile(nodes, composed={"preprocess": 1, "postprocess": 1})
    assert found is not None
    assert str(found).endswith("; preprocessing 12 %, model 85 %, postprocessing 3 %")
    assert found.details()["parts"] == pytest.approx({"preprocessing": 0.12, "model": 0.85, "postprocessing": 0.03})


def test_side_without_steps_is_no_part():
    found = costs_of_profile(profile(fc=90, postprocess__0_softmax__s=10), composed={"preprocess": 0, "postprocess": 1})
    assert found is not None
    assert str(found).endswith("; model 90 %, postprocessing 10 %")


def test_model_that_was_not_composed_has_no_parts_whatever_its_nodes_are_called():
    found = costs_of_profile(profile(preprocess__mul=10, fc=90))
    assert found is not None
    assert str(found).endswith("Add fc 90 %, Add preprocess/mul 10 %")
    assert found.details().keys() == {"operators"}


@pytest.mark.parametrize(("times", "before"), [(1, 0.2), (2, 0.5)])
def test_steps_beside_own_nodes_of_that_name_are_those_that_came_last(times, before):
    nodes = profile(preprocess__own=30, preprocess_2__0_scale__mul=20, fc=50)
    found = costs_of_profile(nodes, composed={"preprocess": times})
    assert found is not None
    assert dict(found.parts) == pytest.approx({"preprocessing": before, "model": 1 - before})


def test_few_runs_leave_out_half():
    found = costs_of_profile([event("slow", "Add", 1000), RUN, event("fast", "Add", 10), RUN])
    assert found is not None
    assert [cost.node for cost in found.costliest] == ["fast"]


def test_one_interruption_does_not_make_a_node_costly():
    runs = [[event("fc", "MatMul", 60), event("act", "Relu", 100_000 if i == 7 else 40), RUN] for i in range(10)]
    found = costs_of_profile([each for run in runs for each in run])
    assert found is not None
    assert [(cost.node, cost.proportion) for cost in found.costliest] == [("fc", 0.6), ("act", 0.4)]


def test_ten_costliest_are_listed():
    found = costs_of_profile([RUN] * 10 + [event(f"n{i}", "Add", i + 1) for i in range(30)] + [RUN])
    assert found is not None
    assert [cost.node for cost in found.costliest] == [f"n{i}" for i in range(29, 19, -1)]


def test_real_profile_names_the_nodes(small_model):
    before = set(Path.cwd().iterdir())
    with ms.serve(small_model) as served:
        found = measure_operator_costs(served, X)
    assert found is not None
    assert {cost.node: cost.operator for cost in found.costliest}["fc"] == "MatMul"
    assert found.parts == ()
    assert set(Path.cwd().iterdir()) == before


def test_heavy_step_of_a_composed_artifact_is_named(tmp_path):
    """A thousand rows through a model of one negation, with a Softmax after it."""
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 64]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"], name="neg")], "g", [x], [y])
    path = tmp_path / "light.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    composed = compose(
        ms.open_artifact(path), preprocess=[ms.Clip(-1, 1)], postprocess=[ms.Softmax()], store=Store(tmp_path / "store")
    )
    with ms.serve(composed) as served, pytest.raises(ms.GateFailure) as failure:
        ms.assert_latency(served, np.ones((1000, 64), np.float32), max_ms=1e-6)
    parts = failure.value.evidence.details["parts"]
    assert list(parts) == ["preprocessing", "model", "postprocessing"]
    assert sum(parts.values()) == pytest.approx(1)
    assert parts["postprocessing"] > parts["model"]
    assert f"postprocessing {100 * parts['postprocessing']:.0f} %" in str(failure.value)


def test_costs_are_missing_where_nothing_can_be_profiled(small_model):
    assert measure_operator_costs(ms.serve(lambda x: x), X) is None
    assert costs_of_profile([]) is None
    with ms.serve(small_model) as served:
        assert measure_operator_costs(served, X.astype(np.float64)) is None
