from __future__ import annotations

import functools
import importlib
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from pytest_modelserve.artifacts import Store, digest_of
from pytest_modelserve.errors import ArtifactError, MissingDependencyError, UsageError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.training import ModelSource, train
from pytest_modelserve.training.train import weights_digest

RUNS = []


def build():
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 2))


def fit(module, data, progress, *, epochs=3):
    RUNS.append(epochs)
    assert torch.get_num_threads() == 1  # sums come out otherwise on two
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_grad_enabled()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    x = torch.from_numpy(data["x"])
    for _ in progress(range(epochs), "epochs"):
        noise = np.random.standard_normal(1) + random.random()
        loss = (module(x) - float(noise[0])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def diverge(module, data, progress):
    with torch.no_grad():
        module[0].weight[0, :3] = torch.nan


def fail(module, data, progress):
    torch.manual_seed(5)
    raise KeyError("no such column")


def overwrite(module, data, progress):
    data["x"][:] = 0.0


DATA = {"x": np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)}


def source(**changes):
    parts = {"name": "small", "build": build, "fit": fit, "data": DATA, "example_inputs": DATA["x"][:2]}
    return ModelSource(**{**parts, **changes})


@pytest.fixture
def store(tmp_path):
    RUNS.clear()
    return Store(tmp_path / "cache")


def state():
    return (
        random.getstate(),
        np.random.get_state()[1].tobytes(),
        torch.get_rng_state().numpy().tobytes(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


@pytest.fixture
def unusual_state():
    """A process that has set everything otherwise than the default."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.set_num_threads(before)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)


def test_rerun_gives_the_same_bits_whatever_the_process_did_before(tmp_path, unusual_state):
    torch.manual_seed(1)
    first = train(source(), store=Store(tmp_path / "a"))
    random.seed(8)
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)
    with torch.inference_mode():
        second = train(source(), store=Store(tmp_path / "b"))
    assert first.sha256 == second.sha256
    for one, other in zip(first.module().parameters(), second.module().parameters(), strict=True):
        assert torch.equal(one, other)


def test_state_of_the_process_is_put_back(store, unusual_state):
    before = state()
    train(source(), store=store).module()
    assert state() == before


def test_state_of_the_process_is_put_back_after_an_error_which_passes_through(store, unusual_state):
    before = state()
    with pytest.raises(KeyError, match="no such column"):
        train(source(fit=fail), store=store)
    assert state() == before


def test_same_training_runs_once(store):
    first = train(source(), store=store)
    second = train(source(), store=store)
    assert RUNS == [3]
    assert (first.weights, first.sha256, first.seed) == (second.weights, second.sha256, second.seed)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"x": DATA["x"] + 1}},
        {"fit": functools.partial(fit, epochs=4)},
        {"build": lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 2))},
    ],
)
def test_other_data_settings_or_code_train_anew(store, changes):
    first = train(source(), store=store)
    second = train(source(**changes), store=store)
    assert len(RUNS) == 2
    assert first.sha256 != second.sha256


def test_other_seed_trains_anew(store):
    assert train(source(), seed=0, store=store).sha256 != train(source(), seed=1, store=store).sha256


def test_edited_file_of_a_module_class_trains_anew(store, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    text = "from torch import nn\nclass Layer(nn.Linear):\n    FACTOR = {}\n"
    (tmp_path / "layers_of_a_user.py").write_text(text.format(1))
    layers = importlib.import_module("layers_of_a_user")

    def build_with_layer():
        return nn.Sequential(sys.modules["layers_of_a_user"].Layer(4, 2))

    train(source(build=build_with_layer), store=store)
    (tmp_path / "layers_of_a_user.py").write_text(text.format(2))
    importlib.reload(layers)
    train(source(build=build_with_layer), store=store)
    assert RUNS == [3, 3]


def test_fit_that_writes_into_its_data_does_not_change_the_source(store):
    one = source(fit=overwrite)
    train(one, store=store)
    assert one.data["x"].any()


def test_module_is_fresh_in_eval_mode_and_has_the_trained_weights(store):
    trained = train(source(), store=store)
    module = trained.module()
    assert not module.training
    assert weights_digest(module) == trained.sha256
    nn.init.zeros_(module[0].weight)
    assert weights_digest(trained.module()) == trained.sha256


def test_weights_are_a_plain_state_dict(store):
    trained = train(source(), store=store)
    weights = torch.load(trained.weights, weights_only=True)
    assert list(weights) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert digest_of(dict(weights)) == trained.sha256


def test_subject_names_the_source_and_the_weights(store):
    trained = train(source(), store=store)
    assert trained.subject == Subject("small", "torch", trained.sha256)


def test_nan_weights_are_refused_and_not_stored(store):
    with pytest.raises(UsageError) as caught:
        train(source(fit=diverge), seed=3, store=store)
    assert str(caught.value) == (
        "training 'small' with seed 3 left 3 of 32 values of '0.weight' NaN or infinite: lower the learning rate, clip "
        "the gradients, or look for NaN in the data"
    )
    assert not list((store.root / "entries").iterdir())


class WithExtraState(nn.Linear):
    """Keeps a vocabulary in its state dict."""

    def __init__(self):
        super().__init__(1, 1)
        self.vocabulary = {"a": 0}

    def get_extra_state(self):
        return self.vocabulary

    def set_extra_state(self, state):
        self.vocabulary = state


def test_state_that_is_no_tensor_is_trained_and_counts(store):
    def fit(module, data):
        module.vocabulary["b"] = 1

    x = np.ones((2, 1), np.float32)
    source = ModelSource(name="extra", build=WithExtraState, fit=fit, data={"x": x}, example_inputs=x)
    trained = train(source, store=store)
    module = trained.module()
    assert module.vocabulary == {"a": 0, "b": 1}
    assert weights_digest(module) == trained.sha256 != weights_digest(WithExtraState())


def test_build_that_returns_no_module_is_refused(store):
    with pytest.raises(UsageError) as caught:
        train(source(build=lambda: 3), store=store)
    assert str(caught.value) == "build() of 'small' returns a torch module, not int"


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, None])
def test_seed_that_numpy_cannot_take_is_refused(store, seed):
    with pytest.raises(UsageError, match="seed must be an integer from 0 to 4294967295"):
        train(source(), seed=seed, store=store)


def test_weights_that_are_gone_are_told(store):
    trained = train(source(), store=store)
    trained.weights.unlink()
    with pytest.raises(ArtifactError) as caught:
        trained.module()
    assert str(caught.value) == f"the weights of small / torch are gone from {trained.weights}: train again"


SIZES = []


def build_of_any_size():
    return nn.Linear(4, SIZES.pop())


def test_build_that_gives_another_module_every_time_is_told(store):
    SIZES[:] = [3, 2, 2]
    trained = train(source(build=build_of_any_size), store=store)
    with pytest.raises(UsageError, match=r"build\(\) of 'small' returns another module than the one that was trained"):
        trained.module()


def test_missing_torch_names_the_extra(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError) as caught:
        train(source(), store=store)
    assert str(caught.value) == "training needs torch, which is not installed: pip install 'pytest-modelserve[torch]'"


SCRIPT = """
import json, os, sys
from pathlib import Path
import numpy as np
import torch
from torch import nn
from pytest_modelserve.artifacts import Store
from pytest_modelserve.training import ModelSource, train

def build():
    return nn.Linear(64, 64)

def fit(module, data, progress):
    with open(os.environ["RUNS"], "a") as runs:
        runs.write("run\\n")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    x = torch.from_numpy(data["x"])
    for _ in progress(range(20), "steps"):
        optimizer.zero_grad()
        (module(x) - torch.randn(len(x), 64)).square().mean().backward()
        optimizer.step()

torch.set_num_threads(int(sys.argv[2]))
x = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)
source = ModelSource(name="race", build=build, fit=fit, data={"x": x}, example_inputs=x[:2])
print(json.dumps(train(source, store=Store(Path(sys.argv[1]))).sha256))
"""


def test_processes_that_train_at_once_train_once_and_another_store_gets_the_same_bits(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    runs = tmp_path / "runs.txt"

    def start(cache, threads):
        return subprocess.Popen(
            [sys.executable, tmp_path / "script.py", tmp_path / cache, threads],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "RUNS": str(runs)},
        )

    processes = [start("shared", "1"), start("shared", "2"), start("own", "2")]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], answers
    assert len({json.loads(out) for out, _ in answers}) == 1
    assert runs.read_text().splitlines() == ["run", "run"]  # one for each store
    assert [err for _, err in answers] == [b"", b"", b""]  # no bar where there is no terminal
