"""Trainings that are killed at random and resumed: `python -m benchmarks.training_resume [--kills 20] [--processes 1]`.

A network with dropout, batch norm, augmentation, a schedule and early stopping is trained on digits, with a checkpoint
after every step. Each training is killed by SIGKILL at a random time of its run and resumed in a new process. Its
weights are compared with those of an undisturbed training. With several processes the network has no batch norm, and
the process that supervises them is killed.
"""

from __future__ import annotations

import argparse
import pickle
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn

import pytest_modelserve as ms
from fixtures.digits import DATA
from pytest_modelserve._processes import ChildProcess, Crash, format_log
from pytest_modelserve.progress import progress

TIME_LIMIT_S = 600.0


def build(has_batch_norm: bool = True) -> nn.Module:
    norm: nn.Module = nn.BatchNorm2d(16) if has_batch_norm else nn.Identity()
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, 10),
    )  # fmt: skip


def build_without_batch_norm() -> nn.Module:
    return build(has_batch_norm=False)


def shift(batch: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return the images moved by up to a pixel."""
    down, right = torch.randint(-1, 2, (2,), generator=generator).tolist()
    return {**batch, "image": torch.roll(batch["image"], (down, right), (2, 3))}


def source(processes: int) -> ms.ModelSource:
    with np.load(DATA) as stored:
        images = (stored["images"][:1200, None] / 16).astype(np.float32)
        labels = stored["labels"][:1200].astype(np.int64)
    spec = ms.TrainSpec(
        loss="cross_entropy",
        epochs=8,
        batch_size=48,
        schedule="cosine",
        label_smoothing=0.1,
        max_grad_norm=1.0,
        early_stopping=ms.EarlyStopping(patience=4),
        augmentation=shift,
        inputs="image",
        labels="digit",
    )
    return ms.ModelSource(
        name="digits",
        build=build if processes == 1 else build_without_batch_norm,
        fit=spec,
        data={"image": images, "digit": labels},
        example_inputs=images[:2],
    )


def train(payload: bytes) -> bytes:
    """Train in the store that the payload names; return the digest and the duration."""
    cache, processes = pickle.loads(payload)
    with ms.Pipeline(cache) as pipeline:
        trained = pipeline.train(source(processes), processes=processes, checkpoint_every_s=0.0)
    return pickle.dumps((trained.sha256, trained.metrics.seconds))


def finished(cache: Path, processes: int) -> tuple[str, float]:
    """Return digest and duration of a training that runs to its end."""
    with ChildProcess("benchmarks.training_resume:train", preload=True) as child:
        result = child.call(pickle.dumps((cache, processes)), timeout_s=TIME_LIMIT_S)
    if isinstance(result, Crash):
        raise SystemExit(f"the training {result}{format_log(result.log_tail)}")
    digest, seconds = pickle.loads(result)
    return digest, seconds


def killed(cache: Path, processes: int, seconds: float) -> int:
    """Return the step of the checkpoint after a kill `seconds` after the first one; -1 if the training was complete."""
    with ChildProcess("benchmarks.training_resume:train", preload=True) as child, ThreadPoolExecutor(1) as pool:
        call = pool.submit(child.call, pickle.dumps((cache, processes)), timeout_s=TIME_LIMIT_S)
        while not call.done() and not list((cache / "checkpoints").glob("*.ckpt")):
            time.sleep(0.001)
        time.sleep(seconds)
        child.kill()
        if not isinstance(call.result(), Crash):
            return -1
    (path,) = (cache / "checkpoints").glob("*.ckpt")
    return ms.read_checkpoint(path).step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="trainings that are killed (default: 20)")
    parser.add_argument("--processes", type=int, default=1, help="processes of a training (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the times of the kills (default: 0)")
    options = parser.parse_args()
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        finished(Path(folder, "warm"), options.processes)  # starts the fork server
        expected, seconds = finished(Path(folder, "whole"), options.processes)
        steps, equal, attempts = [], 0, 0
        for number in progress(range(options.kills), "kills", total=options.kills):
            step = -1
            while step == -1:  # it was complete before the kill
                attempts += 1
                cache = Path(folder, f"{number}.{attempts}")
                step = killed(cache, options.processes, generator.uniform(0, seconds))
            steps.append(step)
            equal += finished(cache, options.processes)[0] == expected
    print(f"{options.kills} trainings in {options.processes} process(es), {seconds:.1f} s each, killed after steps")
    print(f"  {sorted(steps)}")
    print(f"resumed to equal sha256 of the weights: {equal} of {options.kills}")
    raise SystemExit(equal < options.kills)


if __name__ == "__main__":
    main()
