"""Small ONNX files, made where a test needs them."""

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.onnx_models import make_model


@pytest.fixture(scope="session")
def build_model():
    """`make_model`, for fixtures of a wider scope than a test."""
    return make_model


@pytest.fixture
def onnx_file(tmp_path):
    """Saves a model made by `make_model` and returns its path."""

    def save(*args, name="model", **kwargs):
        path = tmp_path / f"{name}.onnx"
        onnx.save(make_model(*args, **kwargs), path)
        return path

    return save


@pytest.fixture
def linear(onnx_file):
    """y = x @ w + b for x of shape [batch, 3]; w and b count from 0."""
    return onnx_file(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        {"x": ("float32", ["batch", 3])},
        {"y": ("float32", ["batch", 2])},
        {"w": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.array([10, 20], np.float32)},
        name="linear",
    )
