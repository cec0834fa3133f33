"""Training by several processes: the same as by one up to rounding, and an end for all if one of them fails."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from torch import distributed, nn
from torch.nn import functional

import pytest_modelserve as ms
from pytest_modelserve.artifacts import Store
from pytest_modelserve.errors import TrainingError, UsageError
from pytest_modelserve.training.data_parallel import join_group

CORES = len(os.sched_getaffinity(0))
RNG = np.random.default_rng(0)
X = RNG.standard_normal((87, 4)).astype(np.float32)
CLASSES = X[:, :3].argmax(1)
SPEC = ms.TrainSpec(
    loss="cross_entropy",
    epochs=4,
    batch_size=23,  # parts of 11 and 12 rows
    optimizer="sgd-momentum",
    learning_rate=0.05,
    class_weights=[1.0, 2.0, 3.0],
    max_grad_norm=1.0,
    early_stopping=ms.EarlyStopping(patience=3),
)
two_cores = pytest.mark.skipif(CORES < 2, reason="needs two cores")


def build():
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


def source(settings=SPEC, build=build):
    return ms.ModelSource(name="small", build=build, fit=settings, data={"x": X, "y": CLASSES}, example_inputs=X[:2])


def tensors(trained):
    return [each.detach().numpy() for each in trained.module().parameters()]


def test_a_process_waits_for_the_others_as_long_as_it_may(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "init_process_group", lambda *_, **__: None)
    store = distributed.FileStore(str(tmp_path / "rendezvous"), 2)
    join_group("cpu", 1000, store=store, rank=0, size=2)
    assert store.timeout == timedelta(seconds=1000)


@two_cores
def test_two_processes_train_like_one_up_to_rounding(tmp_path):
    tmp_path /= "a folder, 100 %"
    one = ms.train(source(), store=Store(tmp_path))
    two = ms.train(source(), store=Store(tmp_path), processes=2)
    assert (one.metrics.processes, two.metrics.processes) == (1, 2)
    np.testing.assert_allclose(two.metrics.losses, one.metrics.losses, rtol=1e-6)
    np.testing.assert_allclose(two.metrics.held_out_losses, one.metrics.held_out_losses, rtol=1e-6)
    for ours, theirs in zip(tensors(two), tensors(one), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert not list((tmp_path / "checkpoints").glob("*"))
    assert not list((tmp_path / "building").iterdir())


CALLS = []


def failing_loss(outputs, labels):
    """Do in the third step of rank 1 what the environment says, unless torchrun has started all again."""
    CALLS.append(None)
    is_first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if len(CALLS) == 3 and is_first and distributed.is_initialized() and distributed.get_rank() == 1:
        match os.environ.get("MODELSERVE_TEST_FAULT"):
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(600)
            case "raise":
                raise KeyError("no such column")
            case "nan":
                return outputs.sum() * float("nan")
    return functional.cross_entropy(outputs, labels)


FAILING = dataclasses.replace(SPEC, loss=failing_loss, class_weights=None)


@two_cores
def test_training_goes_on_to_the_same_bits_after_one_of_its_processes_was_killed(tmp_path, monkeypatch):
    store, path = Store(tmp_path / "a"), tmp_path / "training.ckpt"
    monkeypatch.setenv("MODELSERVE_TEST_FAULT", "kill")
    with pytest.raises(TrainingError) as caught:
        ms.train(source(FAILING), store=store, processes=2, checkpoint=path, checkpoint_every_s=0)
    text = "training 'small': the process with rank 1 of 2 was killed by SIGKILL; all were ended\nIt printed nothing."
    assert str(caught.value) == text
    assert ms.read_checkpoint(path).step in (1, 2)  # the end of all may come before the second one is written
    with pytest.raises(UsageError, match=r"belongs to another training: processes 2, here 1\."):
        ms.train(source(FAILING), store=store, checkpoint=path)
    monkeypatch.delenv("MODELSERVE_TEST_FAULT")
    resumed = ms.train(source(FAILING), store=store, processes=2, checkpoint=path)
    assert resumed.sha256 == ms.train(source(FAILING), store=Store(tmp_path / "b"), processes=2).sha256


@two_cores
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "raise",
            r"rank 1 of 2 exited with status 1; all were ended\nThe end of its log:\n(.*\n)*  KeyError: 'no such col",
        ),
        (
            "hang",
            r"2 processes made no progress for 5 s \(hang_limit_s\), rank 1 fell behind; all(.*\n)*.* in failing_loss",
        ),
        ("nan", r"the loss is nan in step 3 of 16 \(epoch 1 of 4\): lower the learning rate(.*) no checkpoint yet"),
    ],
)
def test_failure_of_one_process_ends_all_and_shows_where(tmp_path, monkeypatch, fault, message):
    monkeypatch.setenv("MODELSERVE_TEST_FAULT", fault)
    limit_s = 5 if fault == "hang" else 300
    with pytest.raises(TrainingError, match=message):
        ms.train(source(FAILING), store=Store(tmp_path), processes=2, hang_limit_s=limit_s)
    assert not list((tmp_path / "building").iterdir())
    assert not list((tmp_path / "entries").iterdir())


def build_with_batch_norm():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


@two_cores
def test_batch_norm_is_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match="BatchNorm1d '1' normalizes each process's rows by themselves on CPUs"):
        ms.train(source(build=build_with_batch_norm), store=Store(tmp_path), processes=2)


def fit(module, data):
    pass


@pytest.mark.parametrize(
    ("settings", "processes", "message"),
    [
        (SPEC, 0, "processes must be an integer of at least 1; got 0"),
        (SPEC, 1.5, "processes must be an integer of at least 1; got 1.5"),
        (SPEC, CORES + 1, f"processes: {CORES + 1} processes on this host are more than its {CORES} cores, which only"),
        (fit, 2, "processes=2 needs a source whose fit is ms.TrainSpec(...): a function trains in one process. Write"),
    ],
)
def test_processes_that_cannot_train_are_refused(tmp_path, settings, processes, message):
    with pytest.raises(UsageError) as caught:
        ms.train(source(settings), store=Store(tmp_path), processes=processes)
    assert str(caught.value).startswith(message)


@two_cores
def test_batch_with_fewer_rows_than_processes_and_a_wrong_limit_are_refused(tmp_path):
    small = dataclasses.replace(SPEC, batch_size=1)
    with pytest.raises(UsageError, match="batch_size=1 leaves no row of a batch for some of 2 processes"):
        ms.train(source(small), store=Store(tmp_path), processes=2)
    with pytest.raises(UsageError, match="hang_limit_s must be a number of seconds above 0; got 0"):
        ms.train(source(), store=Store(tmp_path), processes=2, hang_limit_s=0)


@pytest.mark.parametrize(
    ("rank", "size", "processes", "message"),
    [
        ("0", "2", 3, "processes=3, but torchrun started 2: leave processes out, or pass 2"),
        ("2", "2", 1, "RANK=2 and WORLD_SIZE=2 of the environment must be integers, 0 ≤ rank < size"),
        ("0", "two", 1, "RANK=0 and WORLD_SIZE=two of the environment must be integers, 0 ≤ rank < size"),
    ],
)
def test_environment_of_torchrun_that_cannot_be_meant_is_refused(tmp_path, monkeypatch, rank, size, processes, message):
    environment = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as caught:
        ms.train(source(), store=Store(tmp_path), processes=processes)
    assert str(caught.value) == message


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
import test_data_parallel as t
print(t.ms.train(t.source(t.FAILING), store=t.Store({cache!r}), checkpoint_every_s=0).sha256, flush=True)
"""


@two_cores
def test_processes_of_torchrun_train_to_the_same_bits_though_one_was_killed(tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text(SCRIPT.format(folder=str(Path(__file__).parent), cache=str(tmp_path / "cache")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--max-restarts=1",
        "--rdzv-backend=c10d",
    ]
    done = subprocess.run(
        [*torchrun, "--local-addr=127.0.0.1", f"--rdzv-endpoint=127.0.0.1:{port}", str(tmp_path / "script.py")],
        env={**os.environ, "MODELSERVE_TEST_FAULT": "kill"},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    trained = ms.train(source(FAILING), store=Store(tmp_path / "local"), processes=2)
    assert done.stdout.split() == [trained.sha256] * 2
    assert "exitcode: -9" in done.stderr  # torchrun may end the other process before that can report it
