"""A source that is no model, and a disk that fills up: one clear error, and nothing half done."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from pytest_modelserve.artifacts import open_artifact
from pytest_modelserve.compression import RECIPES, compress
from pytest_modelserve.errors import ArtifactError, UsageError


@pytest.fixture
def opening(tmp_path):
    """What is said of a file with these bytes."""

    def open_it(content):
        path = tmp_path / "given.onnx"
        path.write_bytes(content)
        with pytest.raises(ArtifactError) as caught:
            open_artifact(path)
        return str(caught.value).removeprefix(f"cannot open the model {path}: ")

    return open_it


def test_file_that_is_no_model_is_refused(opening):
    assert opening(b"PK\x03\x04 a zip file, as torch.save writes it") == "it is truncated, or not an ONNX model"
    assert opening(b"") == "the file is empty"


@pytest.mark.parametrize("seed", range(20))
def test_encrypted_file_is_refused(opening, seed):
    """Ciphertext looks like random bytes, of which protobuf reads the first few now and then."""
    assert opening(np.random.default_rng(seed).bytes(4096)) in (
        "it is truncated, or not an ONNX model",
        "it has no graph with an output, so it is not an ONNX model, or was truncated",
    )


def test_truncated_file_is_refused_wherever_it_ends(mlp, opening):
    content = mlp().path.read_bytes()
    for share in range(1, 10):
        assert opening(content[: len(content) * share // 10]) == "it is truncated, or not an ONNX model"


@pytest.mark.parametrize("recipe", RECIPES)
def test_file_that_was_damaged_after_it_was_opened_is_refused(mlp, store, weight, needed, recipe):
    source = mlp()
    source.path.write_bytes(source.path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="it is truncated, or not an ONNX model"):
        compress(source, recipe, store=store, **needed(recipe, weight(8, 8)))


def test_path_in_place_of_an_artifact_is_a_usage_error(mlp, store):
    path = str(mlp().path)
    with pytest.raises(UsageError) as caught:
        compress(path, "fp16", store=store)
    assert str(caught.value) == (
        "artifact is a str, not an Artifact: pass what open_artifact(path), export(...) or compose(...) returns"
    )


@pytest.fixture
def everything(saved, weight):
    """A model with something to do for every recipe."""
    nodes = [
        ("Add", ["one", "one"], "two", {}),
        ("Mul", ["x", "two"], "scaled", {}),
        ("Gemm", ["scaled", "w", "b"], "h", {}),
        ("Relu", ["h"], "y", {}),
    ]
    weights = {"one": np.ones(64, np.float32), "w": weight(64, 64), "b": weight(64)}
    return saved(nodes, {"x": ["batch", 64]}, {"y": ["batch", 64]}, weights)


def failure(source, store, attempt):
    """What is said when `attempt` fails for want of room; the source is as it was, and nothing lies in the store."""
    before = source.path.read_bytes()
    with pytest.raises(ArtifactError) as caught:
        attempt()
    assert source.path.read_bytes() == before
    for folder in ("entries", "building"):
        assert not list((store.root / folder).iterdir())
    return str(caught.value)


def full_disk_message(store, code, text):
    return (
        f"the cache folder {store.root} cannot be written: [Errno {code}] {text}. "
        "Free space or grant permission there, or choose another folder with --modelserve-cache"
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_disk_that_fills_while_the_result_is_written(everything, store, weight, monkeypatch, needed, recipe):
    options = needed(recipe, weight(8, 64))

    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("pytest_modelserve._files.os.fsync", fill)
        message = failure(everything, store, lambda: compress(everything, recipe, store=store, **options))
    assert message == full_disk_message(store, errno.ENOSPC, "No space left on device")
    assert compress(everything, recipe, store=store, **options).variant == recipe


def test_disk_that_fills_while_a_tool_is_handed_the_model(everything, store, weight, monkeypatch):
    options = {"recipe": "int8-static", "calibration": weight(8, 64)}

    def fill(*_):
        yield b"half a model"
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("pytest_modelserve._onnx.serialization.serialize", fill)
        message = failure(everything, store, lambda: compress(everything, store=store, **options))
    assert message == full_disk_message(store, errno.ENOSPC, "No space left on device")
    assert compress(everything, store=store, **options).variant == "int8-static"


def test_half_a_file_that_onnx_leaves_on_a_full_disk_is_reported_as_a_full_disk(everything, store, monkeypatch):
    """It writes in C++ and says nothing; whoever reads the file says "wire format was corrupt"."""
    really = onnx.shape_inference.infer_shapes_path

    def cut_short(model, output, *rest, **options):
        really(model, output, *rest, **options)
        written = Path(output).read_bytes()
        Path(output).write_bytes(written[: len(written) // 2])

    def fill(_self, _chunk):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("onnx.shape_inference.infer_shapes_path", cut_short)
        full.setattr("pytest_modelserve._files.write_zeros", fill)
        message = failure(everything, store, lambda: compress(everything, "int8-dynamic", store=store))
    assert message == full_disk_message(store, errno.ENOSPC, "No space left on device")


_LIMITED = """
import resource, sys
from pathlib import Path
from pytest_modelserve.artifacts import Store, open_artifact
from pytest_modelserve.compression import compress
from pytest_modelserve.errors import ArtifactError

source, root, recipe, limit = sys.argv[1:]
source, store = open_artifact(source), Store(Path(root))
free = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), free[1]))
try:
    compress(source, recipe, store=store)
except ArtifactError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, free)
compress(source, recipe, store=store)
"""


@pytest.mark.parametrize("recipe", ["int8-dynamic", "optimize"])
def test_limit_on_the_size_of_files_is_reported_without_any_stand_in(everything, store, recipe):
    """What the file system itself refuses: a file that onnx writes, and one that onnxruntime writes in C++."""
    ran = subprocess.run(
        [sys.executable, "-c", _LIMITED, everything.path, store.root, recipe, "4096"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"the cache folder {store.root} cannot be written: [Errno 27]")


def test_full_temporary_folder_is_reported_as_full(mlp, store, monkeypatch):
    """What comes from a generator lies there while it is read."""

    def rows():
        yield np.ones((2, 8), np.float32)
        raise AssertionError("read on although the disk is full")

    def fill(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", fill)
    with pytest.raises(ArtifactError) as caught:
        compress(mlp(), "int8-static", calibration=rows(), store=store)
    start, _, end = str(caught.value).partition(": ")
    assert start.startswith("batch 0 of calibration= cannot be written to ")
    assert end == (
        "No space left on device. Batches from a generator are spooled there: set TMPDIR to a folder with more space, or pass a list"
    )
    assert not store.root.exists()


def test_failure_of_the_users_own_generator_passes_through(mlp, store):
    def rows():
        yield np.ones((2, 8), np.float32)
        raise FileNotFoundError("shard 2 is gone")

    with pytest.raises(FileNotFoundError, match="shard 2 is gone"):
        compress(mlp(), "int8-static", calibration=rows(), store=store)
