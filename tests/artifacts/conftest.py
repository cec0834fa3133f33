"""Small models, made by onnx.helper, for these tests."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_modelserve.artifacts import Store, save_artifact

OPSET, IR_VERSION = 20, 10


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


@pytest.fixture(scope="session")
def make_model():
    """A model of nodes, value infos and weights, checked by onnx."""

    def make(nodes, inputs, outputs, weights=None, *, opset=OPSET):
        infos = [
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in side.items()]
            for side in (inputs, outputs)
        ]
        tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
        graph = helper.make_graph(list(nodes), "graph", *infos, tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return model

    return make


@pytest.fixture(scope="session")
def linear(make_model):
    """`logits = features @ weight + bias` for float32 features of a symbolic batch."""

    def make(features=4, classes=3, *, opset=OPSET, name="features"):
        rng = np.random.default_rng(7)
        weights = {
            "weight": rng.normal(size=(features, classes)).astype(np.float32),
            "bias": rng.normal(size=classes).astype(np.float32),
        }
        nodes = [
            helper.make_node("MatMul", [name, "weight"], ["product"], name="matmul"),
            helper.make_node("Add", ["product", "bias"], ["logits"], name="add"),
        ]
        ends = {name: (TensorProto.FLOAT, ["batch", features])}, {"logits": (TensorProto.FLOAT, ["batch", classes])}
        return make_model(nodes, *ends, weights, opset=opset)

    return make


@pytest.fixture
def saved(tmp_path):
    """A model on disk as an Artifact."""

    def save(model, *, name="toy", variant="", file="toy.onnx"):
        return save_artifact(model, tmp_path / file, name=name, variant=variant, lineage=())

    return save


@pytest.fixture(scope="session")
def run():
    """The outputs of a model by name, as onnxruntime with its default optimizations gives them."""

    def run_model(model, **inputs):
        source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(getattr(model, "path", model))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run_model
