"""Opening and saving artifacts, baselines, and the state of files."""

import errno
import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from pytest_modelserve.artifacts import (
    LineageStep,
    artifact as module,
    is_unchanged,
    load_model,
    open_artifact,
    save_artifact,
    without_change_check,
)
from pytest_modelserve.artifacts.artifact import baseline_path, file_state, store_baseline
from pytest_modelserve.errors import ArtifactError, UsageError
from pytest_modelserve.evidence import Subject


def test_an_artifact_knows_what_its_file_says(linear, saved):
    artifact = saved(linear(4, 3), name="digits", variant="fp32")
    assert artifact.subject == Subject("digits", "fp32", hashlib.sha256(artifact.path.read_bytes()).hexdigest())
    assert str(artifact.signature) == "features: float32[batch, 4] -> logits: float32[batch, 3]"
    assert artifact.file_bytes == artifact.path.stat().st_size
    assert artifact.initializer_bytes == 4 * (4 * 3 + 3)
    renamed = open_artifact(artifact.path, name="champion", variant="")
    assert (renamed.name, renamed.variant) == ("champion", "")


def test_an_artifact_is_shown_on_one_line(linear, saved):
    artifact = saved(linear(4, 3), name="digits", variant="fp32")
    assert repr(artifact) == (
        "<Artifact digits / fp32: features: float32[batch, 4] -> logits: float32[batch, 3], "
        f"sha256 {artifact.sha256[:12]}…>"
    )


def test_a_file_that_was_not_made_here_is_named_by_its_stem(linear, tmp_path):
    onnx.save(linear(), tmp_path / "from_elsewhere.onnx")
    artifact = open_artifact(tmp_path / "from_elsewhere.onnx")
    assert (artifact.name, artifact.variant, artifact.lineage) == ("from_elsewhere", "", ())


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
    with pytest.raises(ArtifactError, match="has changed since it was opened: open it again"):
        load_model(artifact)


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
        # Ciphertext looks like random bytes.
        (lambda _: np.random.default_rng(0).bytes(4096), "it is truncated, or not an ONNX model"),
        (
            # A tag and a number are a valid message: the version of the format, and nothing after it.
            lambda content: content[:2],
            "it has no graph with an output, so it is not an ONNX model, or was truncated",
        ),
        (_without("graph"), "it has no graph with an output, so it is not an ONNX model, or was truncated"),
        (_without("opset_import"), "it has no operator set (opset_import), so it was truncated or wrongly converted"),
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


@pytest.mark.parametrize(
    ("name", "hint"),
    [("m.pt", "load it with torch, and pass the module"), ("m.joblib", "load it, and pass the estimator")],
)
def test_a_file_of_another_library_is_told_what_to_pass(tmp_path, name, hint):
    (tmp_path / name).write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(ArtifactError, match=f"truncated, or not an ONNX model: {hint}"):
        open_artifact(tmp_path / name)


def test_every_cut_of_a_model_is_an_artifact_error(linear, tmp_path):
    content = linear(2, 2).SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ArtifactError):
            open_artifact(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.onnx", "there is no such file"),
        ("toy.onnx/model.onnx", "there is no such file"),
        ("", "it is a folder: pass the .onnx file in it"),
    ],
)
def test_a_path_to_no_file_is_an_error_that_says_so(linear, saved, tmp_path, path, message):
    saved(linear())
    with pytest.raises(ArtifactError) as caught:
        open_artifact(tmp_path / path)
    assert str(caught.value) == f"cannot open the model {tmp_path / path}: {message}"


STEP = LineageStep("train", {"epochs": 3}, None, {"torch": "2.13.0"})


def test_name_variant_and_lineage_travel_in_the_file(linear, tmp_path):
    artifact = save_artifact(linear(), tmp_path / "m.onnx", name="digits", variant="fp32", lineage=[STEP])
    assert (artifact.name, artifact.variant, artifact.lineage) == ("digits", "fp32", (STEP,))


def test_saving_the_same_model_twice_gives_the_same_digest_and_leaves_the_model_as_it_was(linear, tmp_path):
    model = linear()
    before = model.SerializeToString(deterministic=True)
    first = save_artifact(model, tmp_path / "a.onnx", name="digits", variant="", lineage=[STEP])
    second = save_artifact(model, tmp_path / "b.onnx", name="digits", variant="", lineage=[STEP])
    assert first.sha256 == second.sha256
    assert model.SerializeToString(deterministic=True) == before


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
    monkeypatch.setattr(module, "INLINE_LIMIT_BYTES", 4 * 64 * 300)
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
    monkeypatch.setattr(module, "INLINE_LIMIT_BYTES", 0)
    artifact = save_artifact(linear(4, 3), tmp_path / "m.onnx", name="digits", variant="", lineage=())
    stored = onnx.load(artifact.path, load_external_data=False)
    assert all(tensor.HasField("raw_data") for tensor in stored.graph.initializer)


def test_a_kill_before_the_last_step_leaves_the_old_model_and_its_weights(linear, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "INLINE_LIMIT_BYTES", 0)
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


SECOND_NS = 1_000_000_000


@pytest.fixture
def opened(linear, saved, monkeypatch):
    """An artifact that was opened long after it was written."""
    path = saved(linear()).path
    late = os.stat(path).st_mtime_ns + 10 * SECOND_NS
    with monkeypatch.context() as later:
        later.setattr("pytest_modelserve.artifacts.artifact.time.time_ns", lambda: late)
        return open_artifact(path)


def test_file_at_rest_is_not_read_again_to_know_it(opened, monkeypatch):
    monkeypatch.setattr(module, "_sha256", lambda _: pytest.fail("the file was read"))
    assert is_unchanged(opened)
    assert load_model(opened).graph.name == "graph"


def test_file_that_was_just_written_is_read_again_unless_nobody_else_can_write(linear, saved, monkeypatch):
    fresh = saved(linear())
    read = []
    really = module._sha256
    monkeypatch.setattr(module, "_sha256", lambda path: read.append(path) or really(path))
    assert is_unchanged(without_change_check(fresh))
    assert not read
    assert is_unchanged(
        replace(fresh, file_states=tuple(replace(each, seen_ns=each.modified_ns) for each in fresh.file_states))
    )
    assert read == [fresh.path]


def test_file_that_was_touched_and_not_changed_is_still_the_one(opened):
    os.utime(opened.path, ns=(1, 1))
    assert is_unchanged(opened)


def test_other_bytes_of_the_same_size_and_time_are_seen(opened):
    before = os.stat(opened.path)
    content = bytearray(opened.path.read_bytes())
    content[-1] ^= 1
    opened.path.write_bytes(content)
    os.utime(opened.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not is_unchanged(opened)
    with pytest.raises(ArtifactError, match="has changed since it was opened"):
        load_model(opened)


def test_external_weights_that_changed_are_seen(linear, tmp_path):
    artifact = save_artifact(linear(64, 32), tmp_path / "m.onnx", name="n", variant="", lineage=(), external_data=True)
    (weights,) = artifact.external
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    assert not is_unchanged(artifact)


@pytest.mark.parametrize(
    ("modified_ns", "age_ns", "expected"),
    [
        (5 * SECOND_NS + 1, SECOND_NS, True),
        (5 * SECOND_NS + 1, SECOND_NS // 100, False),  # within one tick
        (5 * SECOND_NS, SECOND_NS, False),  # a clock of whole seconds
        (5 * SECOND_NS, 3 * SECOND_NS, True),
    ],
)
def test_no_file_counts_as_unchanged_if_read_within_the_tick_in_which_it_was_written(
    tmp_path, monkeypatch, modified_ns, age_ns, expected
):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    found = replace(file_state(path), modified_ns=modified_ns, changed_ns=modified_ns, seen_ns=modified_ns + age_ns)
    monkeypatch.setattr("pytest_modelserve.artifacts.artifact.file_state", lambda _: found)
    assert found.is_surely_unchanged(path) is expected


def test_baseline_of_one_file_is_a_copy_byte_for_byte(linear, saved, tmp_path):
    candidate = saved(linear())
    stored = store_baseline(candidate, tmp_path / "new" / "champion.onnx")
    assert stored.sha256 == candidate.sha256
    assert stored.path == tmp_path / "new" / "champion.onnx"


def test_baseline_has_its_weights_in_the_file(linear, tmp_path, run):
    model = linear(64, 32)
    candidate = save_artifact(model, tmp_path / "m.onnx", name="n", variant="", lineage=(), external_data=True)
    assert candidate.external
    stored = store_baseline(candidate, tmp_path / "new" / "champion.onnx")
    assert stored.external == ()
    x = np.ones((1, 64), np.float32)
    np.testing.assert_array_equal(run(stored, features=x)["logits"], run(candidate, features=x)["logits"])


def test_candidate_that_changed_is_not_stored(linear, saved, tmp_path):
    candidate = saved(linear())
    candidate.path.write_bytes(candidate.path.read_bytes() + b"\x12\x01a")
    with pytest.raises(ArtifactError, match="has changed since it was opened"):
        store_baseline(candidate, tmp_path / "champion.onnx")
    assert not (tmp_path / "champion.onnx").exists()


def test_folder_of_baselines_that_cannot_be_written_is_named(linear, saved, tmp_path):
    (tmp_path / "occupied").write_text("")
    with pytest.raises(ArtifactError, match=r"occupied/champion.onnx cannot be written: .*--modelserve-baselines"):
        store_baseline(saved(linear()), tmp_path / "occupied" / "champion.onnx")


@pytest.mark.parametrize("name", ["", "../champion", "a/b", ".hidden", "a b"])
def test_name_of_a_baseline_that_is_no_file_name_is_refused(name):
    with pytest.raises(UsageError, match=r"baseline name .* is invalid: use letters"):
        baseline_path(Path("baselines"), name)
