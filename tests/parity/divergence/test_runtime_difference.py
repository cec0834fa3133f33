"""One model file on two runtimes: the first node that they compute differently."""

import sys

import numpy as np
import onnx
import pytest
from onnx import helper

import pytest_modelserve as ms
from pytest_modelserve.parity import replay
from pytest_modelserve.parity.divergence.runtime_difference import locate_runtime_difference
from tests.interpreters import python_after
from tests.onnx_models import make_model

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
# A runtime that adds 1 to the tensors that `{}` chooses.
WRONG = """
import onnxruntime
run = onnxruntime.InferenceSession.run
def wrong(self, names, feed, *options):
    values = run(self, names, feed, *options)
    level = self.get_session_options().graph_optimization_level
    return [value + 1 if {} else value for name, value in zip(names, values)]
onnxruntime.InferenceSession.run = wrong
onnxruntime.__version__ = "9.9"
"""


@pytest.fixture
def model(tmp_path):
    """y = relu(x w) v, with tensors h, r and y."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="act"),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="second"),
    ]
    constants = {"w": np.ones((3, 4), np.float32), "v": np.ones((4, 2), np.float32)}
    path = tmp_path / "m.onnx"
    onnx.save(make_model(nodes, {"x": ("float32", ["n", 3])}, {"y": ("float32", ["n", 2])}, constants), path)
    return path


def test_failing_parity_names_the_node_and_its_command_replays_the_failure(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = python_after(tmp_path / "python", WRONG.format("name in ('r', 'y')"))
    with ms.serve(model, interpreter=other) as upgraded:
        evidence = ms.measure_output_parity(upgraded, model, X, rtol=1e-4, atol=1e-4)
    assert evidence.verdict is ms.Verdict.FAIL
    found = next(finding for finding in evidence.findings if "compute differently" in finding)
    assert found.startswith("first node that the runtimes compute differently: Relu 'act'; its output 'r' at ")
    assert found.endswith("; 1 tensors before it agree")
    assert evidence.advice.startswith("read the release notes of both runtimes")
    command = evidence.details["failing_input"]["command"].split()
    assert command[:3] == ["python", "-m", "pytest_modelserve.parity.replay"]
    assert replay.main(command[3:]) == replay.DIFFERS
    without = [word for word in command[3:] if word not in ("--interpreter", str(other))]
    assert replay.main(without) == replay.AGREES


def test_graph_optimization_is_named_where_no_node_differs(model, tmp_path):
    optimized = "level != onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL and name == 'y'"
    other = python_after(tmp_path / "python", WRONG.format(optimized))
    with ms.serve(model, interpreter=other) as upgraded, ms.serve(model) as current:
        found = locate_runtime_difference(upgraded, current, X)
    assert (found.node, found.optimized) == ("", ("m / onnxruntime 9.9",))
    assert str(found).endswith("graph optimization of m / onnxruntime 9.9 changes the outputs")


def test_equal_runtimes_have_no_difference(model):
    with ms.serve(model, interpreter=sys.executable) as one, ms.serve(model) as other:
        assert locate_runtime_difference(one, other, X) is None
