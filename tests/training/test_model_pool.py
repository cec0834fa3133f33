"""Several models trained at the same time."""

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.artifacts import Store
from pytest_modelserve.errors import TrainingError, UsageError
from pytest_modelserve.training.model_pool import train_models

torch = pytest.importorskip("torch")
ROWS = np.arange(8, dtype=np.float32).reshape(4, 2)


def build():
    return torch.nn.Linear(2, 1)


def fill(module, data):
    """Fill the weights with the first number of the data; 2 ends the process."""
    if data["x"][0, 0] == 2:
        import os

        os._exit(3)
    with torch.no_grad():
        module.weight.fill_(float(data["x"][0, 0]))


def source(number):
    return ms.ModelSource(name="fill", build=build, fit=fill, data={"x": ROWS[number:]}, example_inputs=ROWS)


def test_processes_train_the_same_models_and_a_crash_keeps_what_is_complete(tmp_path):
    one, two = (Store(tmp_path / name) for name in ("one", "two"))
    with pytest.raises(TrainingError, match=r"training 2 of 3 models: its process ended: exited with status 3"):
        train_models(source, [0, 0, 1], store=two, processes=2)
    trained = [
        train_models(lambda number: source(2 * number), [5, 6], store=store, processes=processes)
        for store, processes in ((one, 1), (two, 2))
    ]
    assert [model.module().weight[0, 0].item() for model in trained[1]] == [0.0, 4.0]
    assert [model.sha256 for model in trained[0]] == [model.sha256 for model in trained[1]]  # also the random biases
    assert {entry.path.name for entry in one.entries()} <= {entry.path.name for entry in two.entries()}


def test_invalid_numbers_of_processes_are_refused(tmp_path):
    with pytest.raises(UsageError, match="processes must be an integer of at least 1; got 0"):
        train_models(source, [0], store=Store(tmp_path), processes=0)
