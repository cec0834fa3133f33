"""Training by several processes against one: `python -m benchmarks.training_processes [--processes 2] [--epochs 20]`.

For a multilayer perceptron, a convolutional network and a Transformer layer: the largest relative difference of the
loss in the first epoch and in all, the largest difference of a weight relative to the largest weight of its tensor, and
the seconds. Rounding differences grow in a training; how far is shown by one process that starts with every weight of
the first tensor changed by one rounding.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

import pytest_modelserve as ms
from fixtures.digits import DATA


class OneLayer(nn.Module):
    """A Transformer layer over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 10) of images (batch, 8, 8)."""
        logits: torch.Tensor = self.head(self.layer(x).flatten(1))
        return logits


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "cnn": cnn, "transformer": OneLayer}


def source(build: Callable[[], nn.Module], optimizer: str, epochs: int) -> ms.ModelSource:
    with np.load(DATA) as stored:
        images = (stored["images"] / 16).astype(np.float32)
        labels = stored["labels"].astype(np.int64)
    rate = 0.05 if optimizer.startswith("sgd") else 1e-3
    spec = ms.TrainSpec(loss="cross_entropy", epochs=epochs, optimizer=optimizer, learning_rate=rate, schedule="cosine")
    return ms.ModelSource(
        name="digits", build=build, fit=spec, data={"x": images, "y": labels}, example_inputs=images[:2]
    )


def nudged(build: Callable[[], nn.Module]) -> nn.Module:
    """Return the module with the first tensor's weights one rounding larger."""
    module = build()
    with torch.no_grad():
        first = next(module.parameters())
        first.copy_(torch.nextafter(first, torch.full_like(first, torch.inf)))
    return module


class Run:
    """Losses, weights and seconds of one training."""

    def __init__(self, build: Callable[[], nn.Module], optimizer: str, epochs: int, processes: int = 1) -> None:
        with tempfile.TemporaryDirectory() as cache, ms.Pipeline(cache) as pipeline:
            trained = pipeline.train(source(build, optimizer, epochs), processes=processes)
            self.weights = [each.detach().numpy() for each in trained.module().parameters()]
        assert trained.metrics is not None
        self.losses, self.seconds = np.array(trained.metrics.losses), trained.metrics.seconds

    def difference(self, other: Run) -> tuple[float, float, float]:
        """Return how far the loss of the first epoch, of any epoch, and a weight are from those of `other`."""
        losses = np.abs(self.losses / other.losses - 1)
        pairs = zip(self.weights, other.weights, strict=True)
        return losses[0], losses.max(), max(np.abs(one - two).max() / np.abs(two).max() for one, two in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2, help="processes to compare with one (default: 2)")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of each training (default: 20)")
    options = parser.parse_args()
    print(f"{options.processes} processes against one, {options.epochs} epochs of 1,797 digits in batches of 64")
    print(f"{'':26}{'processes':34}one, other rounding at the start")
    print(f"{'model':12} {'optimizer':13}" + 2 * f"{'epoch 1':10}{'epochs':10}{'weights':14}" + "seconds")
    for name, build in MODELS.items():
        for optimizer in ("adam", "sgd-momentum"):
            one = Run(build, optimizer, options.epochs)
            several = Run(build, optimizer, options.epochs, options.processes)
            other = Run(functools.partial(nudged, build), optimizer, options.epochs)
            differences = (*several.difference(one), *other.difference(one))
            columns = (f"{value:<{width}.0e}" for value, width in zip(differences, (10, 10, 14) * 2, strict=True))
            print(f"{name:12} {optimizer:13}{''.join(columns)}{one.seconds:.1f} and {several.seconds:.1f}", flush=True)


if __name__ == "__main__":
    main()
