"""Models whose weights do not fit into one file, with the limit of 1 GiB lowered to nothing."""

import os

import numpy as np
import onnx
import pytest

from pytest_modelserve._onnx.serialization import write_model
from pytest_modelserve.artifacts import load_model, open_artifact
from pytest_modelserve.compression import RECIPES, compress
from pytest_modelserve.errors import ArtifactError


@pytest.fixture
def all_is_large(monkeypatch):
    monkeypatch.setattr("pytest_modelserve._onnx.serialization._INLINE_LIMIT_BYTES", 0)
    monkeypatch.setattr("pytest_modelserve.artifacts.artifact.INLINE_LIMIT_BYTES", 0)


@pytest.fixture
def source(saved, weight):
    """Something for every recipe: a constant to fold, and weights that take more than 1 KiB in 4 bits."""
    nodes = [
        ("Add", ["one", "one"], "two", {}),
        ("Mul", ["x", "two"], "scaled", {}),
        ("Gemm", ["scaled", "w1", "b1"], "h", {}),
        ("Relu", ["h"], "r", {}),
        ("Gemm", ["r", "w2", "b2"], "y", {}),
    ]
    weights = {"one": np.ones(64, np.float32), "w1": weight(64, 128) / 8, "b1": weight(128), "w2": weight(128, 64) / 8}
    return lambda: saved(nodes, {"x": ["batch", 64]}, {"y": ["batch", 64]}, {**weights, "b2": weight(64)})


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_reads_and_writes_weights_in_files_of_their_own(
    source, all_is_large, store, weight, noise_db, needed, recipe
):
    large, rows = source(), weight(64, 64)
    options = needed(recipe, rows)
    small = compress(large, recipe, store=store, **options)
    assert large.external
    assert small.external
    assert all(tensor.external_data or len(tensor.raw_data) < 1024 for tensor in load_model(small).graph.initializer)
    ratio = {"fp16": 0.5, "int8-dynamic": 0.3, "int8-static": 0.3, "int4-weights": 0.2}.get(recipe, 1.01)
    assert large.initializer_bytes * ratio * 0.7 < small.initializer_bytes < large.initializer_bytes * ratio * 1.1
    assert noise_db(small, large, rows)["y"] > 15
    again = compress(large, recipe, store=store, **options)
    assert again == small
    assert os.stat(again.path).st_mtime_ns == os.stat(small.path).st_mtime_ns


def test_outputs_are_those_of_the_recipe_on_a_model_in_one_file(source, store, weight, outputs_of, monkeypatch):
    rows = weight(16, 64)
    single = source()
    expected = outputs_of(compress(single, "int8-dynamic", store=store), rows)
    monkeypatch.setattr("pytest_modelserve._onnx.serialization._INLINE_LIMIT_BYTES", 0)
    monkeypatch.setattr("pytest_modelserve.artifacts.artifact.INLINE_LIMIT_BYTES", 0)
    onnx.save(load_model(single), single.path, save_as_external_data=True, location="weights", size_threshold=0)
    parted = open_artifact(single.path)
    got = outputs_of(compress(parted, "int8-dynamic", store=store), rows)
    np.testing.assert_array_equal(got["y"], expected["y"])


def test_chain_hands_weights_in_files_on(source, all_is_large, store, weight, noise_db):
    large = source()
    small = compress(large, ["simplify", "int8-dynamic", "optimize"], store=store)
    assert small.variant == "simplify+int8-dynamic+optimize"
    assert noise_db(small, large, weight(64, 64))["y"] > 20


def test_model_keeps_its_weights_when_they_are_written_to_a_file(source, all_is_large, tmp_path):
    """`onnx.save` takes them out of the model that it is handed."""
    model = load_model(source())
    onnx.load_external_data_for_model(model, str(tmp_path))
    before = model.SerializeToString(deterministic=True)
    folder = tmp_path / "work"
    folder.mkdir()
    assert write_model(model, folder / "model.onnx")
    assert model.SerializeToString(deterministic=True) == before
    assert len(list(folder.iterdir())) == 2


def test_source_whose_weights_are_gone_is_refused_by_name(source, all_is_large, store):
    large = source()
    (weights,) = large.external
    weights.unlink()
    with pytest.raises(ArtifactError) as caught:
        compress(large, "fp16", store=store)
    assert str(caught.value) == (
        f"cannot open the model {large.path}: tensor 'w1' is stored in '{weights.name}', which does not exist: copy that "
        "file together with the model"
    )
    assert not list((store.root / "entries").iterdir())
