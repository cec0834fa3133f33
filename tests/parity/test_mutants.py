"""A sample of the mutants that `python -m benchmarks.localization` runs in full, and the rule that excludes some."""

import functools
import hashlib
import random
from collections import Counter

import onnx
import pytest

import pytest_modelserve as ms
from benchmarks.localization import COPIES, outcome, reseeded
from fixtures.mutants import KINDS, TABLE, load, original

# The quickest to export that have every kind between them.
MODELS = ("mlp", "residual_cnn", "token_classifier", "dict_outputs", "mlp int8-static")
EACH_KIND = 2
# A list that is changed after a look at the results proves nothing: a new list needs a new digest here.
FROZEN = "f7777719e50c118878ea4de7ec20c47570bf9aaa6abc4606a7f376ab2f567cc4"
EVERY = tuple(load())
SAMPLE = tuple(
    mutant
    for kind in KINDS
    for mutant in random.Random(kind).sample([m for m in EVERY if m.kind == kind and m.model in MODELS], EACH_KIND)
)


@pytest.fixture(scope="session")
def originals(modelserve):
    """The original of each model by name, exported at first use."""
    return functools.cache(lambda name: original(modelserve, name))


def test_list_of_mutants_is_the_frozen_one():
    assert hashlib.sha256(TABLE.read_bytes()).hexdigest() == FROZEN
    assert len({str(mutant) for mutant in EVERY}) == len(EVERY) >= 400
    assert len({mutant.model for mutant in EVERY}) >= 8
    assert set(Counter(mutant.kind for mutant in EVERY)) == set(KINDS)


@pytest.mark.parametrize("mutant", SAMPLE, ids=str)
def test_broken_node_is_located(mutant, originals, tmp_path):
    found = outcome(mutant, originals(mutant.model), tmp_path)
    assert found.is_equivalent or found.is_exact, found.message


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("model", [name for name in MODELS if "int8" not in name])
def test_rewritten_copy_has_no_divergence(model, copy, originals, tmp_path):
    source = originals(model)
    for seed in range(2):
        onnx.save(reseeded(source.model, seed), tmp_path / "reference.onnx")
        COPIES[copy](tmp_path / "reference.onnx", tmp_path / "copy.onnx")
        found = ms.locate_divergence(tmp_path / "copy.onnx", tmp_path / "reference.onnx", source.inputs)
        assert found is None, str(found)
