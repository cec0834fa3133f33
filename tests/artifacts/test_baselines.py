"""Baselines as files: one each, replaced in one step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import pytest_modelserve as ms
from pytest_modelserve.artifacts.artifact import baseline_path, store_baseline


def model(path: Path, *, external: bool = False) -> ms.Artifact:
    weights = numpy_helper.from_array(np.ones((64, 64), np.float32), "W")
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 64]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "W"], ["y"])], "g", values[:1], values[1:], [weights])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(proto, path, save_as_external_data=external, location="weights.bin" if external else None)
    return ms.open_artifact(path)


def test_one_file_is_copied_byte_for_byte(tmp_path: Path) -> None:
    candidate = model(tmp_path / "m.onnx")
    stored = store_baseline(candidate, tmp_path / "new" / "champion.onnx")
    assert stored.sha256 == candidate.sha256
    assert stored.path == tmp_path / "new" / "champion.onnx"


def test_external_data_move_into_the_file(tmp_path: Path) -> None:
    candidate = model(tmp_path / "m.onnx", external=True)
    assert candidate.external
    stored = store_baseline(candidate, tmp_path / "new" / "champion.onnx")
    assert stored.external == ()
    x = np.ones((1, 64), np.float32)
    with ms.serve(stored) as a, ms.serve(candidate) as b:
        assert np.array_equal(a.predict(x)["y"], b.predict(x)["y"])


def test_candidate_that_changed_is_not_stored(tmp_path: Path) -> None:
    candidate = model(tmp_path / "m.onnx")
    candidate.path.write_bytes(candidate.path.read_bytes() + b"\x12\x01a")
    with pytest.raises(ms.ArtifactError, match="has changed since it was opened"):
        store_baseline(candidate, tmp_path / "champion.onnx")
    assert not (tmp_path / "champion.onnx").exists()


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("")
    with pytest.raises(ms.ArtifactError, match=r"occupied/champion.onnx cannot be written: .*--modelserve-baselines"):
        store_baseline(model(tmp_path / "m.onnx"), tmp_path / "occupied" / "champion.onnx")


@pytest.mark.parametrize("name", ["", "../champion", "a/b", ".hidden", "a b"])
def test_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(ms.UsageError, match=r"baseline name .* is invalid: use letters"):
        baseline_path(Path("baselines"), name)
