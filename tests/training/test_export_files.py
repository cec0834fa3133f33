"""The files that an export leaves: one, or two when asked; or none, and a store that goes on working."""

import resource
import shutil
import sys

import numpy as np
import pytest
import torch
from torch import nn

from pytest_modelserve.artifacts import Store, open_artifact
from pytest_modelserve.errors import ArtifactError, ExportError
from pytest_modelserve.serving import serve
from pytest_modelserve.training import export

ROWS = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)


def wide():
    torch.manual_seed(0)
    return nn.Linear(64, 512).eval()


@pytest.fixture(scope="module")
def artifact(store):
    return export(wide(), ROWS, external_data=True, store=store, name="wide")


def test_external_weights_lie_beside_the_model(artifact):
    (data,) = artifact.external
    assert sorted(path.name for path in artifact.path.parent.iterdir()) == ["wide.onnx", data.name]
    assert data.stat().st_size >= 4 * 64 * 512 > artifact.path.stat().st_size
    assert artifact.initializer_bytes == 4 * (64 * 512 + 512)


def test_moved_folder_is_the_same_model_with_the_same_outputs(artifact, tmp_path):
    moved = shutil.copytree(artifact.path.parent, tmp_path / "elsewhere")
    copy = open_artifact(moved / "wide.onnx")
    assert (copy.sha256, copy.lineage) == (artifact.sha256, artifact.lineage)
    with serve(copy) as candidate, serve(wide()) as reference:
        np.testing.assert_allclose(
            candidate.predict(ROWS)["output"], reference.predict(ROWS)["output"], rtol=1e-5, atol=1e-6
        )


def test_missing_weights_are_refused_by_name(artifact, tmp_path):
    moved = shutil.copytree(artifact.path.parent, tmp_path / "elsewhere")
    (data,) = artifact.external
    (moved / data.name).unlink()
    with pytest.raises(
        ArtifactError, match=f"is stored in '{data.name}', which does not exist: copy that file together"
    ):
        open_artifact(moved / "wide.onnx")


def test_one_file_and_two_are_two_exports(artifact, store):
    single = export(wide(), ROWS, store=store, name="wide")
    assert single.external == ()
    assert single.path != artifact.path
    assert single.initializer_bytes == artifact.initializer_bytes


def test_external_data_without_large_tensors_is_refused(store):
    with pytest.raises(ExportError, match="external_data=True has no effect"):
        export(nn.Linear(64, 2).eval(), ROWS, external_data=True, store=store, name="tiny")


@pytest.mark.usefixtures("artifact")  # a fork server that starts under the limit keeps it, for every later export
def test_disk_that_fills_is_reported_with_the_folder_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the limit would cut it, and Python does not notice
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    store = Store(tmp_path / "cache")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, before[1]))  # of the 128 KiB that the model takes
    try:
        with pytest.raises(ArtifactError) as caught:
            export(wide(), ROWS, store=store, name="wide")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value).startswith(f"the cache folder {store.root} cannot be written: ")
    assert not list(store.root.rglob("*.onnx*"))
