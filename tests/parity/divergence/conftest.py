"""A small network with a part of each kind, and ways to break it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Build = Callable[..., onnx.ModelProto]


@pytest.fixture
def rows() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((6, 8)).astype(np.float32)


@pytest.fixture
def build() -> Build:
    """A model of `nodes`, each (operator, inputs, output, attributes), named "node_<output>"."""

    def make(
        nodes: Iterable[tuple[str, list[str], str, dict[str, Any]]],
        weights: dict[str, NDArray[Any]],
        *,
        inputs: dict[str, list[Any]] | None = None,
        outputs: Iterable[str] = ("y",),
    ) -> onnx.ModelProto:
        made = [helper.make_node(op, reads, [gives], name=f"node_{gives}", **more) for op, reads, gives, more in nodes]
        graph = helper.make_graph(
            made,
            "g",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in (inputs or {"x": ["batch", 8]}).items()
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    return make


@pytest.fixture
def net(build: Build) -> onnx.ModelProto:
    """Gemm, LayerNormalization, Relu, MatMul, Add and Softmax in a row: "a" to "d", "e" and "y"."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((8, 16)),
        "b1": rng.standard_normal(16),
        "gain": 1 + rng.random(16),
        "shift": rng.standard_normal(16),
        "w2": rng.standard_normal((16, 16)) / 4,
        "b2": rng.standard_normal(16),
    }
    return build(
        [
            ("Gemm", ["x", "w1", "b1"], "a", {}),
            ("LayerNormalization", ["a", "gain", "shift"], "b", {"epsilon": 1e-5}),
            ("Relu", ["b"], "c", {}),
            ("MatMul", ["c", "w2"], "d", {}),
            ("Add", ["d", "b2"], "e", {}),
            ("Softmax", ["e"], "y", {"axis": 1}),
        ],
        {name: array.astype(np.float32) for name, array in weights.items()},
    )


@pytest.fixture
def save(tmp_path: Path) -> Callable[[onnx.ModelProto, str], Path]:
    def write(model: onnx.ModelProto, name: str) -> Path:
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path)
        return path

    return write


@pytest.fixture
def locate(net: onnx.ModelProto, rows: NDArray[Any], save: Any) -> Any:
    """Break a copy of `net`, or of another model, and locate the divergence."""
    from pytest_modelserve import locate_divergence

    def broken(
        change: Callable[[onnx.ModelProto], None], model: onnx.ModelProto | None = None, inputs: Any = None
    ) -> Any:
        reference = net if model is None else model
        candidate = onnx.ModelProto()
        candidate.CopyFrom(reference)
        change(candidate)
        paths = save(candidate, "candidate"), save(reference, "reference")
        return locate_divergence(*paths, rows if inputs is None else inputs)

    return broken
