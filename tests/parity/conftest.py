from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import pytest_modelserve as ms

Answering = Callable[..., ms.Predictor]
Build = Callable[..., onnx.ModelProto]
Save = Callable[[onnx.ModelProto, str], Path]


@pytest.fixture(autouse=True)
def failures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where failing inputs are saved."""
    monkeypatch.setenv("MODELSERVE_FAILURES", str(tmp_path / "failures"))
    return tmp_path / "failures"


@pytest.fixture
def answering() -> Answering:
    """A predictor that returns the same outputs for any inputs."""

    def make(outputs: NDArray[Any] | dict[str, NDArray[Any]], name: str = "candidate") -> ms.Predictor:
        return ms.serve(lambda x: outputs, name=name)

    return make


@pytest.fixture
def voting(answering: Answering) -> Answering:
    """A predictor whose scores (n, 2) are right except in the given rows."""

    def make(labels: NDArray[Any], wrong: Any = (), name: str = "candidate") -> ms.Predictor:
        answers = labels.copy()
        answers[list(wrong)] = 1 - answers[list(wrong)]
        return answering(np.eye(2, dtype=np.float32)[answers], name)

    return make


@pytest.fixture(scope="session")
def build() -> Build:
    """A model of `nodes`, each (operator, inputs, output, attributes), named "node_<output>"."""

    def make(
        nodes: Iterable[tuple[str, list[str], str, dict[str, Any]]],
        weights: Mapping[str, NDArray[Any]] | None = None,
        *,
        inputs: Mapping[str, list[Any]] | None = None,
        outputs: Iterable[str] = ("y",),
    ) -> onnx.ModelProto:
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
def save(tmp_path: Path) -> Save:
    """Write a model to `<name>.onnx`."""

    def write(model: onnx.ModelProto, name: str) -> Path:
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path)
        return path

    return write


@pytest.fixture
def operator(build: Build, save: Save) -> Callable[..., Path]:
    """The file of y = operator(x), and what else it reads."""

    def write(op: str, name: str = "", **weights: Any) -> Path:
        arrays = {key: np.asarray(value, np.float32) for key, value in weights.items()}
        return save(build([(op, ["x", *arrays], "y", {})], arrays), name or op)

    return write
