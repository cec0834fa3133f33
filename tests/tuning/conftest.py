"""A small network, rows that it labels itself, and an objective that is a table of costs."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import pytest_modelserve as ms
from pytest_modelserve.artifacts import Store, save_artifact


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


@pytest.fixture
def network(tmp_path):
    """The artifact of two Gemm with a Relu between them; the second layer's weights can be replaced."""

    def make(variant="fp32", *, second=None, seed=0):
        rng = np.random.default_rng(0)
        weights = {
            "w1": rng.standard_normal((8, 64), np.float32),
            "w2": rng.standard_normal((64, 4), np.float32) if second is None else second,
        }
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
            helper.make_node("Relu", ["h"], ["r"], name="relu"),
            helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
        ]
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name, width in (("x", 8), ("y", 4))
        ]
        stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
        graph = helper.make_graph(nodes, "g", values[:1], values[1:], stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        path = tmp_path / variant / "net.onnx"
        path.parent.mkdir(exist_ok=True)
        return save_artifact(model, path, name="net", variant=variant, lineage=())

    return make


@pytest.fixture
def original(network):
    return network()


@pytest.fixture
def rows(original):
    """Rows (2000, 8) and the labels that the original gives them, of which it has 95 % right."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2000, 8), np.float32)
    with ms.serve(original) as predictor:
        labels = predictor.predict(x)["y"].argmax(axis=1)
    wrong = rng.random(2000) < 0.05
    return x, np.where(wrong, (labels + 1) % 4, labels)


@pytest.fixture
def damaged(network):
    """A variant whose class 0 is predicted only with a part of its score, so that it loses rows; NaN: no outputs."""

    def make(name, factor):
        second = np.random.default_rng(0)
        second.standard_normal((8, 64), np.float32)
        weights = second.standard_normal((64, 4), np.float32)
        weights[:, 0] *= np.float32(factor)
        return network(name, second=weights)

    return make


@pytest.fixture
def gate(original, rows):
    """The accuracy gate against the original's ready outputs, with a budget of two points."""
    x, labels = rows
    with ms.serve(original) as predictor:
        reference = predictor.predict(x)["y"]
    return lambda candidate: ms.assert_accuracy_parity(candidate, reference, x, labels, max_drop=0.02)


@pytest.fixture
def cost():
    """An objective that is a table from variants to costs; the original costs 10."""

    def objective(**costs):
        def cost(predictor):
            return {"original": 10.0, "fp32": 10.0, **costs}[predictor.subject.variant]

        return cost

    return objective


@pytest.fixture
def initializers():
    """The dtypes of a model's weights by name."""
    return lambda artifact: {each.name: each.data_type for each in onnx.load(artifact.path).graph.initializer}
