"""Small models, made by onnx.helper, for these tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_modelserve.artifacts import Artifact, Store, save_artifact

OPSET, IR_VERSION = 20, 10


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture(scope="session")
def make_model() -> Callable[..., onnx.ModelProto]:
    """A model of nodes, value infos and weights, checked by onnx."""

    def make(
        nodes: Sequence[onnx.NodeProto],
        inputs: Mapping[str, tuple[int, Sequence[int | str | None] | None]],
        outputs: Mapping[str, tuple[int, Sequence[int | str | None] | None]],
        weights: Mapping[str, np.ndarray] | None = None,
        *,
        opset: int = OPSET,
    ) -> onnx.ModelProto:
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
def linear(make_model: Callable[..., onnx.ModelProto]) -> Callable[..., onnx.ModelProto]:
    """`logits = features @ weight + bias` for float32 features of a symbolic batch."""

    def make(features: int = 4, classes: int = 3, *, opset: int = OPSET, name: str = "features") -> onnx.ModelProto:
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
def saved(tmp_path: Path) -> Callable[..., Artifact]:
    """A model on disk as an Artifact."""

    def save(model: onnx.ModelProto, *, name: str = "toy", variant: str = "", file: str = "toy.onnx") -> Artifact:
        return save_artifact(model, tmp_path / file, name=name, variant=variant, lineage=())

    return save


@pytest.fixture(scope="session")
def run() -> Callable[..., dict[str, np.ndarray]]:
    """The outputs of a model by name, as onnxruntime with its default optimizations gives them."""

    def run_model(model: Artifact | Path | onnx.ModelProto, **inputs: Any) -> dict[str, np.ndarray]:
        source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(getattr(model, "path", model))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run_model
