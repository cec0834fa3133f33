from __future__ import annotations

import hashlib
import pickle

import onnx
import pytest

from pytest_modelserve.artifacts import load_model, open_artifact
from pytest_modelserve.errors import ArtifactError
from pytest_modelserve.evidence import Subject


def test_an_artifact_knows_what_its_file_says(linear, saved):
    artifact = saved(linear(4, 3), name="digits", variant="fp32")
    assert artifact.subject == Subject("digits", "fp32", artifact.sha256)
    assert str(artifact.signature) == "features: float32[batch, 4] -> logits: float32[batch, 3]"
    assert artifact.file_bytes == artifact.path.stat().st_size
    assert artifact.initializer_bytes == 4 * (4 * 3 + 3)


def test_the_digest_of_one_file_is_that_of_sha256sum(linear, saved):
    artifact = saved(linear())
    assert artifact.sha256 == hashlib.sha256(artifact.path.read_bytes()).hexdigest()


def test_a_file_that_was_not_made_here_is_named_by_its_stem(linear, tmp_path):
    onnx.save(linear(), tmp_path / "from_elsewhere.onnx")
    artifact = open_artifact(tmp_path / "from_elsewhere.onnx")
    assert (artifact.name, artifact.variant, artifact.lineage) == ("from_elsewhere", "", ())


def test_name_and_variant_can_be_given_instead(linear, saved):
    path = saved(linear(), name="digits", variant="fp32").path
    artifact = open_artifact(path, name="champion", variant="")
    assert (artifact.name, artifact.variant) == ("champion", "")


def test_a_relative_path_is_fixed_when_the_artifact_is_opened(linear, saved, tmp_path, monkeypatch):
    path = saved(linear()).path
    monkeypatch.chdir(path.parent)
    artifact = open_artifact(path.name)
    monkeypatch.chdir("/")
    assert artifact.path == path
    assert load_model(artifact).graph.name == "graph"


def test_an_artifact_travels_to_another_process(linear, saved):
    artifact = saved(linear())
    assert pickle.loads(pickle.dumps(artifact)) == artifact


def test_a_model_that_changed_since_it_was_opened_is_not_loaded(linear, saved):
    artifact = saved(linear(4, 3))
    saved(linear(4, 2))
    with pytest.raises(ArtifactError) as caught:
        load_model(artifact)
    assert str(caught.value) == f"the model {artifact.path} has changed since it was opened: open it again"


def _cut_before_the_weights(content):
    return content[: len(content) // 3]


def _without(field):
    def cut(content):
        model = onnx.ModelProto.FromString(content)
        model.ClearField(field)
        return model.SerializeToString()

    return cut


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda _: b"", "the file is empty"),
        (lambda _: b"PK\x03\x04 not a model", "it is truncated, or not an ONNX model"),
        (_cut_before_the_weights, "it is truncated, or not an ONNX model"),
        (
            # A tag and a number are a valid message: the version of the format, and nothing after it.
            lambda content: content[:2],
            "it has no graph with an output, so it is not an ONNX model, or was truncated",
        ),
        (_without("graph"), "it has no graph with an output, so it is not an ONNX model, or was truncated"),
        (
            _without("opset_import"),
            "it has no operator set (opset_import), so it was truncated or wrongly converted",
        ),
        (
            lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
            "it is a Git LFS pointer, not the model itself: run `git lfs pull`",
        ),
    ],
)
def test_a_damaged_file_gets_one_clear_error(linear, tmp_path, damage, message):
    path = tmp_path / "model.onnx"
    path.write_bytes(damage(linear().SerializeToString()))
    with pytest.raises(ArtifactError) as caught:
        open_artifact(path)
    assert str(caught.value) == f"cannot open the model {path}: {message}"


def test_every_cut_of_a_model_is_an_artifact_error(linear, tmp_path):
    content = linear(2, 2).SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ArtifactError):
            open_artifact(path)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(ArtifactError) as missing:
        open_artifact(tmp_path / "nowhere.onnx")
    assert str(missing.value) == f"cannot open the model {tmp_path}/nowhere.onnx: there is no such file"
    with pytest.raises(ArtifactError) as folder:
        open_artifact(tmp_path)
    assert str(folder.value) == f"cannot open the model {tmp_path}: it is a folder: pass the .onnx file in it"


def test_a_path_through_a_file_is_told(linear, saved):
    path = saved(linear()).path / "model.onnx"
    with pytest.raises(ArtifactError) as caught:
        open_artifact(path)
    assert str(caught.value) == f"cannot open the model {path}: there is no such file"
