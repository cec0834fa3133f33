import numpy as np
import onnx
import pytest
from onnx import helper

import pytest_modelserve as ms
from tests.onnx_models import make_model


@pytest.fixture
def onnx_model(tmp_path):
    """Saves a model of `nodes`; inputs and outputs by name as (dtype, shape)."""

    def save(nodes, inputs, outputs, **constants):
        path = tmp_path / "model.onnx"
        onnx.save(make_model(nodes, inputs, outputs, constants), path)
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
