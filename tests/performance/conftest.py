"""A small real model, for the tests that need a file."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import pytest_modelserve as ms


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """y = relu(x W), 64 × 64, between nodes named as `compose` names them."""
    weights = numpy_helper.from_array(np.eye(64, dtype=np.float32), "W")
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 64]) for name in "xy")
    nodes = [
        helper.make_node("Neg", ["x"], ["s"], name="preprocess/0_scale/neg"),
        helper.make_node("MatMul", ["s", "W"], ["h"], name="fc"),
        helper.make_node("Softmax", ["h"], ["y"], name="postprocess/0_softmax/softmax"),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [weights])
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return ms.open_artifact(path)
