import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import pytest_modelserve as ms


@pytest.fixture
def onnx_model(tmp_path):
    """Saves a model of `nodes`; inputs and outputs by name as (dtype, shape)."""

    def save(nodes, inputs, outputs, **constants):
        def infos(specs):
            return [
                helper.make_tensor_value_info(
                    name,
                    onnx.TensorProto.STRING if dtype == "str" else helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
                    shape,
                )
                for name, (dtype, shape) in specs.items()
            ]

        tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
        graph = helper.make_graph(nodes, "graph", infos(inputs), infos(outputs), tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
        model.ir_version = 10
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        return path

    return save


@pytest.fixture
def rows():
    """Twenty rows of ten features, of two decimals."""
    return np.random.default_rng(0).standard_normal((20, 10)).round(2).astype(np.float32)


@pytest.fixture
def classifier(onnx_model):
    """Softmax of a linear map of ten features to three classes."""
    weights = np.random.default_rng(1).standard_normal((10, 3)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["p"])]
    return ms.serve(onnx_model(nodes, {"x": ("float32", ["batch", 10])}, {"p": ("float32", ["batch", 3])}, w=weights))
