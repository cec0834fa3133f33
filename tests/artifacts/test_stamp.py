from __future__ import annotations

import os
from dataclasses import replace

import pytest

from pytest_modelserve.artifacts import (
    artifact as module,
    is_unchanged,
    load_model,
    open_artifact,
    save_artifact,
    without_change_check,
)
from pytest_modelserve.artifacts.artifact import file_state
from pytest_modelserve.errors import ArtifactError

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


def test_file_that_was_put_in_its_place_is_seen(opened, linear):
    opened.path.with_name("other").write_bytes(linear(4, 2).SerializeToString())
    os.replace(opened.path.with_name("other"), opened.path)
    assert not is_unchanged(opened)


def test_external_weights_that_changed_are_seen(linear, tmp_path):
    artifact = save_artifact(linear(64, 32), tmp_path / "m.onnx", name="n", variant="", lineage=(), external_data=True)
    (weights,) = artifact.external
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    assert not is_unchanged(artifact)


@pytest.mark.parametrize(
    ("modified_ns", "age_ns", "told"),
    [
        (5 * SECOND_NS + 1, SECOND_NS, True),
        (5 * SECOND_NS + 1, SECOND_NS // 100, False),  # within one tick
        (5 * SECOND_NS, SECOND_NS, False),  # a clock of whole seconds
        (5 * SECOND_NS, 3 * SECOND_NS, True),
    ],
)
def test_nothing_is_told_of_a_file_read_within_the_tick_in_which_it_was_written(
    tmp_path, monkeypatch, modified_ns, age_ns, told
):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    found = replace(file_state(path), modified_ns=modified_ns, changed_ns=modified_ns, seen_ns=modified_ns + age_ns)
    monkeypatch.setattr("pytest_modelserve.artifacts.artifact.file_state", lambda _: found)
    assert found.is_surely_unchanged(path) is told
