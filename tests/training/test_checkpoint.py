"""Checkpoints: a training that is killed goes on to the same bits, and bad files are one clear error."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pytest_modelserve as ms
from pytest_modelserve.artifacts import Store
from pytest_modelserve.errors import ArtifactError, TrainingError, UsageError

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 4)).astype(np.float32)
DATA = {"x": X, "y": X[:, :3].argmax(1)}
SPEC = ms.TrainSpec(
    loss="cross_entropy",
    epochs=6,
    batch_size=20,
    schedule="cosine",
    early_stopping=ms.EarlyStopping(patience=3),
)
STOP_AT = []


class StoppedError(Exception):
    pass


class Net(nn.Module):
    """Has dropout and batch norm, whose states count; stops in the middle if STOP_AT says so."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        if STOP_AT and self.calls == STOP_AT[0]:
            raise StoppedError
        return self.layers(x)


def source(settings=SPEC, data=DATA, build=Net):
    return ms.ModelSource(name="small", build=build, fit=settings, data=data, example_inputs=X[:2])


@pytest.fixture
def path(tmp_path):
    """The checkpoint of a training that stopped in the middle of its third epoch."""
    path = tmp_path / "training.ckpt"
    STOP_AT[:] = [8]
    with pytest.raises(StoppedError):
        ms.train(source(), store=Store(tmp_path / "first"), checkpoint=path, checkpoint_every_s=0)
    STOP_AT.clear()
    return path


def test_resumed_training_ends_with_the_same_bits_and_metrics(path, tmp_path):
    whole = ms.train(source(), store=Store(tmp_path / "whole"))
    assert ms.read_checkpoint(path).step == 7
    resumed = ms.train(source(), store=Store(tmp_path / "second"), checkpoint=path)
    assert resumed.sha256 == whole.sha256
    assert dataclasses.replace(resumed.metrics, seconds=0) == dataclasses.replace(whole.metrics, seconds=0)
    assert not path.exists()


def test_checkpoint_of_the_store_lasts_until_the_training_is_complete(tmp_path):
    store = Store(tmp_path)
    STOP_AT[:] = [3]
    with pytest.raises(StoppedError):
        ms.train(source(), store=store, checkpoint_every_s=0)
    STOP_AT.clear()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    ms.train(source(), store=store)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_clean_store_has_no_checkpoints(tmp_path):
    store = Store(tmp_path)
    STOP_AT[:] = [3]
    with pytest.raises(StoppedError):
        ms.train(source(), store=store, checkpoint_every_s=0)
    STOP_AT.clear()
    store.clean()
    assert not list((tmp_path / "checkpoints").iterdir())


def cut(path):
    os.truncate(path, path.stat().st_size - 100)


def damage(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def header_with(old, new):
    """Return a function that replaces a part of a checkpoint's header."""
    return lambda path: path.write_bytes(path.read_bytes().replace(old, new, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            cut,
            r"the checkpoint .*training\.ckpt is cut: got \d+ bytes, expected \d+\. Delete the file to train from the",
        ),
        (damage, r"the checkpoint .* is damaged: its sha256 is not the one in its header\. Delete the file"),
        (
            header_with(b'"format": 1', b'"format": 2'),
            r"the checkpoint .* has format 2, and this version of pytest-modelserve reads up to 1: install",
        ),
        *(
            (header_with(old, new), r"the checkpoint .* is damaged: its header cannot be read\. Delete the file")
            for old, new in [
                (b"1,", b",,"),
                (b"1,", b"null,"),
                (b'"bytes": ', b'"bytes": "?", "was": '),
                (b"identity", b"id"),
            ]
        ),
        (
            lambda path: path.write_bytes(b"weights"),
            r".*training\.ckpt is no checkpoint of pytest-modelserve: use another",
        ),
        (lambda path: path.write_bytes(b""), r".*training\.ckpt is no checkpoint of pytest-modelserve: use another"),
        (lambda path: [path.unlink(), path.mkdir()], r"the checkpoint .* cannot be read: Is a directory"),
    ],
    ids=["cut", "damaged", "newer", "no JSON", "no format", "no size", "no identity", "weights", "empty", "folder"],
)
def test_checkpoint_that_cannot_be_read_is_an_error_and_stays(path, tmp_path, change, message):
    change(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ArtifactError, match=f"^{message}"):
        ms.train(source(), store=Store(tmp_path / "second"), checkpoint=path)
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize(
    ("changes", "seed", "message"),
    [
        ({"settings": dataclasses.replace(SPEC, epochs=7)}, 0, r"settings: epochs 6, here 7\. Delete the file"),
        (
            {"data": {**DATA, "x": X + 1}},
            0,
            r"other data\. Delete the file to train from the beginning, or use another",
        ),
        ({"build": lambda: nn.Linear(4, 3)}, 0, r"other code \(.*\); other initial weights\. Delete"),
        ({}, 1, r"other initial weights; seed 0, here 1\. Delete"),
    ],
    ids=["settings", "data", "model", "seed"],
)
def test_checkpoint_of_another_training_is_refused_with_what_differs(path, tmp_path, changes, seed, message):
    before = path.read_bytes()
    with pytest.raises(UsageError, match=f"training.ckpt belongs to another training: {message}"):
        ms.train(source(**changes), seed=seed, store=Store(tmp_path / "second"), checkpoint=path)
    assert path.read_bytes() == before


def test_nan_loss_keeps_the_last_good_checkpoint_and_says_where(tmp_path):
    diverging = ms.TrainSpec(loss="mse", epochs=50, optimizer="sgd", learning_rate=1e4, batch_size=60)
    path = tmp_path / "training.ckpt"
    problem = source(diverging, {"x": X, "y": X[:, :3]})
    for _ in range(2):  # a rerun goes on from the checkpoint, and ends in the same way
        with pytest.raises(TrainingError) as caught:
            ms.train(problem, store=Store(tmp_path / "cache"), checkpoint=path, checkpoint_every_s=0)
        step = ms.read_checkpoint(path).step
        assert 0 < step < 50
        assert f"in step {step + 1} of 50 (epoch {step + 1} of 50): lower the learning rate, set max" in str(
            caught.value
        )
        assert str(caught.value).endswith(f"The last good checkpoint is {path}, after step {step}")
        assert all(bool(each.isfinite().all()) for each in ms.read_checkpoint(path).weights.values())
    assert not list((tmp_path / "cache" / "entries").iterdir())


def test_checkpoint_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        ArtifactError, match=r"the checkpoint .* cannot be written: .*\. Free space or grant permission"
    ):
        ms.train(source(), store=Store(tmp_path / "c"), checkpoint=tmp_path / "file" / "x", checkpoint_every_s=0)


class UnreadableSchedule(torch.optim.lr_scheduler.LambdaLR):
    def state_dict(self):
        return {**super().state_dict(), "path": Path("x")}


def test_state_that_cannot_be_read_back_is_refused_at_the_first_checkpoint(tmp_path):
    settings = dataclasses.replace(SPEC, schedule=lambda optimizer, steps: UnreadableSchedule(optimizer, lambda _: 1.0))
    with pytest.raises(UsageError, match="the state of the optimizer or the schedule cannot be kept in a checkpoint"):
        ms.train(source(settings), store=Store(tmp_path), checkpoint_every_s=0)


def test_checkpoint_of_a_function_and_a_negative_time_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"checkpoint needs a source whose fit is ms\.TrainSpec"):
        ms.train(source(lambda module, data: None), store=Store(tmp_path), checkpoint=tmp_path / "c")
    with pytest.raises(UsageError, match="checkpoint_every_s must be a number of seconds, at least 0; got -1"):
        ms.train(source(), store=Store(tmp_path), checkpoint_every_s=-1)


KILLED = """
import sys
sys.path.insert(0, {folder!r})
import test_checkpoint as t
forward = t.Net.forward
def told(self, x):
    print("step", flush=True)
    return forward(self, x)
t.Net.forward = told
print(t.ms.train(t.source(), store=t.Store({cache!r}), checkpoint={path!r}, checkpoint_every_s=0).sha256)
"""


def test_training_whose_process_was_killed_ends_with_the_same_bits(tmp_path):
    path = tmp_path / "training.ckpt"
    code = KILLED.format(folder=str(Path(__file__).parent), cache=str(tmp_path / "cache"), path=str(path))
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(8):
            process.stdout.readline()
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert ms.read_checkpoint(path).step > 4
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("step") < 24 - 4  # calls of the module, in training and on held-out rows
    assert done.stdout.split()[-1] == ms.train(source(), store=Store(tmp_path / "whole")).sha256
