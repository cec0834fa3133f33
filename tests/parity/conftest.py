import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import pytest_modelserve as ms


@pytest.fixture(autouse=True)
def failures(monkeypatch, tmp_path):
    """Where failing inputs are saved."""
    monkeypatch.setenv("MODELSERVE_FAILURES", str(tmp_path / "failures"))
    return tmp_path / "failures"


@pytest.fixture
def answering():
    """A predictor that returns the same outputs for any inputs."""

    def make(outputs, name="candidate"):
        return ms.serve(lambda x: outputs, name=name)

    return make


@pytest.fixture
def voting(answering):
    """A predictor whose scores (n, 2) are right except in the given rows."""

    def make(labels, wrong=(), name="candidate"):
        answers = labels.copy()
        answers[list(wrong)] = 1 - answers[list(wrong)]
        return answering(np.eye(2, dtype=np.float32)[answers], name)

    return make


@pytest.fixture(scope="session")
def build():
    """A model of `nodes`, each (operator, inputs, output, attributes), named "node_<output>"."""

    def make(nodes, weights=None, *, inputs=None, outputs=("y",)):
        graph = helper.make_graph(
            [helper.make_node(op, reads, [gives], name=f"node_{gives}", **more) for op, reads, gives, more in nodes],
            "g",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in (inputs or {"x": ["n", 3]}).items()
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    return make


@pytest.fixture
def save(tmp_path):
    """Write a model to `<name>.onnx`."""

    def write(model, name):
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path)
        return path

    return write


@pytest.fixture
def operator(build, save):
    """The file of y = operator(x), and what else it reads."""

    def write(op, name="", **weights):
        arrays = {key: np.asarray(value, np.float32) for key, value in weights.items()}
        return save(build([(op, ["x", *arrays], "y", {})], arrays), name or op)

    return write
