"""A project with two linear models and a file of rows: what a release manager has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

ROWS = 2000


def linear_model(path, weights, *, batch="batch"):
    """Save a linear classifier with input `x` and output `logits`."""
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, len(weights)])]
    outputs = [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [batch, weights.shape[1]])]
    stored = [numpy_helper.from_array(weights.astype(np.float32), "w")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["logits"])], "g", inputs, outputs, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def columns(seed=0):
    """Rows of 4 features with their label, and the site that they come from."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((ROWS, 4)).astype(np.float32)
    weights = rng.standard_normal((4, 2))
    return {"x": x, "y": (x @ weights).argmax(axis=1), "site": np.array(["a", "b"])[np.arange(ROWS) % 2]}, weights


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """The folder with champion.onnx, candidate.onnx, and rows as holdout.npz and holdout.csv."""
    folder = tmp_path_factory.mktemp("release")
    arrays, weights = columns()
    np.savez(folder / "holdout.npz", **arrays)
    header = ",".join([*(f"c{i}" for i in range(4)), "y", "site"])
    lines = [
        ",".join([*map(repr, row.tolist()), str(y), site])
        for row, y, site in zip(arrays["x"].astype(float), arrays["y"], arrays["site"], strict=True)
    ]
    (folder / "holdout.csv").write_text("\n".join([header, *lines]) + "\n")
    linear_model(folder / "champion.onnx", weights)
    linear_model(folder / "candidate.onnx", weights + 0.003 * np.random.default_rng(1).standard_normal(weights.shape))
    return folder


@pytest.fixture
def project(tmp_path, files):
    """A copy of the files for one test."""
    for path in files.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture
def contract(project):
    """A function that writes `release.modelgate.toml` and returns its gates."""
    from pytest_modelserve.contracts.contract import read_contract

    def write(text, *, name="release.modelgate.toml"):
        path = Path(project, name)
        path.write_text(text, encoding="utf-8")
        return read_contract(path, root=project)

    return write
