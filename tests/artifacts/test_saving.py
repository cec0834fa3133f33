from __future__ import annotations

import errno
import os

import numpy as np
import onnx
import pytest

from pytest_modelserve.artifacts import LineageStep, artifact as saving, open_artifact, save_artifact
from pytest_modelserve.errors import ArtifactError

STEP = LineageStep("train", {"epochs": 3}, None, {"torch": "2.13.0"})


def test_name_variant_and_lineage_travel_in_the_file(linear, tmp_path):
    artifact = save_artifact(linear(), tmp_path / "m.onnx", name="digits", variant="fp32", lineage=[STEP])
    assert (artifact.name, artifact.variant, artifact.lineage) == ("digits", "fp32", (STEP,))


def test_the_model_that_was_given_is_not_changed(linear, tmp_path):
    model = linear()
    before = model.SerializeToString(deterministic=True)
    save_artifact(model, tmp_path / "m.onnx", name="digits", variant="", lineage=[STEP])
    assert model.SerializeToString(deterministic=True) == before


def test_saving_the_same_model_twice_gives_the_same_digest(linear, tmp_path):
    first = save_artifact(linear(), tmp_path / "a.onnx", name="digits", variant="", lineage=[STEP])
    second = save_artifact(linear(), tmp_path / "b.onnx", name="digits", variant="", lineage=[STEP])
    assert first.sha256 == second.sha256


def test_a_disk_that_fills_up_leaves_the_old_model(linear, tmp_path, monkeypatch):
    artifact = save_artifact(linear(4, 3), tmp_path / "m.onnx", name="old", variant="", lineage=())
    before = artifact.path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError) as caught:
        save_artifact(linear(4, 2), artifact.path, name="new", variant="", lineage=())
    assert str(caught.value) == f"cannot write the model {artifact.path}: No space left on device"
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert artifact.path.read_bytes() == before


def test_a_folder_that_does_not_exist_is_told(linear, tmp_path):
    path = tmp_path / "nowhere" / "m.onnx"
    with pytest.raises(ArtifactError) as caught:
        save_artifact(linear(), path, name="digits", variant="", lineage=())
    assert str(caught.value) == f"cannot write the model {path}: No such file or directory"


def test_saved_models_follow_the_umask(linear, tmp_path):
    earlier = os.umask(0o027)
    try:
        artifact = save_artifact(linear(), tmp_path / "m.onnx", name="digits", variant="", lineage=())
    finally:
        os.umask(earlier)
    assert artifact.path.stat().st_mode & 0o777 == 0o640


def test_weights_beyond_the_limit_go_to_a_file_beside_the_model(linear, tmp_path, run, monkeypatch):
    model = linear(64, 300)
    features = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    inline = save_artifact(model, tmp_path / "inline.onnx", name="digits", variant="", lineage=())
    monkeypatch.setattr(saving, "INLINE_LIMIT_BYTES", 4 * 64 * 300)
    artifact = save_artifact(model, tmp_path / "m.onnx", name="digits", variant="", lineage=())
    (data,) = artifact.external
    assert data.name.startswith("m.onnx.")
    # 76,800 bytes of weights and 1,200 of biases, each filled up to a page.
    assert data.stat().st_size == 19 * 4096 + 4096
    assert artifact.path.stat().st_size < 1000
    assert artifact.initializer_bytes == inline.initializer_bytes
    np.testing.assert_array_equal(run(artifact, features=features)["logits"], run(inline, features=features)["logits"])
    onnx.checker.check_model(artifact.path)


def test_small_tensors_stay_in_the_model(linear, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "INLINE_LIMIT_BYTES", 0)
    artifact = save_artifact(linear(4, 3), tmp_path / "m.onnx", name="digits", variant="", lineage=())
    stored = onnx.load(artifact.path, load_external_data=False)
    assert all(tensor.HasField("raw_data") for tensor in stored.graph.initializer)


def test_a_kill_before_the_last_step_leaves_the_old_model_and_its_weights(linear, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "INLINE_LIMIT_BYTES", 0)
    first = save_artifact(linear(64, 32), tmp_path / "m.onnx", name="old", variant="", lineage=())
    replace = os.replace

    def killed(source, target):
        if str(target).endswith(".onnx"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_artifact(linear(64, 48), first.path, name="new", variant="", lineage=())
    assert open_artifact(first.path) == first
