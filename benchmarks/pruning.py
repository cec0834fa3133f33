"""Half of the channels removed: time, bytes and accuracy of convolutional networks on digits, before and after.

`python -m benchmarks.pruning` takes about 40 seconds on a quiet host. Times are medians of calls of onnxruntime on 256
images with one thread, interleaved call by call, over those of the original as `ms.serve` opens it; bytes are those of
the initializers; the accuracy gate has a budget of one point on 900 held-out images. By default onnxruntime computes
convolutions in blocks of 8 or 16 channels, by processor: a layer with fewer channels takes as long, and its pooling
leaves the blocks. "16" prunes with `multiple_of=16`. "no blocks" is the pruned model at the optimization level
"extended", which has no such layout.
"""

# ruff: noqa: D102 (forward)
from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

import pytest_modelserve as ms
from fixtures.digits import DATA

HELD_OUT = 900
IMAGES = 256


class DigitsNet(nn.Module):
    """The network of example_models/digits_cnn, `factor` times as wide."""

    def __init__(self, factor: int = 1) -> None:
        super().__init__()
        a, b, c = 16 * factor, 32 * factor, 64 * factor
        self.features = nn.Sequential(
            nn.Conv2d(1, a, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(4 * b, c), nn.ReLU(), nn.Linear(c, 10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(image.unsqueeze(1)))
        return logits


class Bottleneck(nn.Module):
    """A residual block of ResNeXt: 1×1, grouped 3×3 and 1×1 convolutions, each with batch normalization."""

    def __init__(self, width: int, groups: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


class ResidualNet(nn.Module):
    """A ResNeXt of two stages for images (batch, 8, 8)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.first = Bottleneck(width)
        self.down = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        self.second = Bottleneck(2 * width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.second(self.down(self.first(self.stem(image.unsqueeze(1)))))
        logits: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "digits CNN": (DigitsNet, 30),
    "digits CNN, 16": (DigitsNet, 30),
    "digits CNN, 4 × as wide": (partial(DigitsNet, 4), 15),
    "ResNeXt of 64 and 128 channels": (ResidualNet, 10),
}


def shifted(batch: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return the batch with each image moved by up to one pixel."""
    padded = nn.functional.pad(batch["images"], (1, 1, 1, 1))
    moves = torch.randint(0, 3, (len(padded), 2), generator=generator)
    images = [image[a : a + 8, b : b + 8] for image, (a, b) in zip(padded, moves.tolist(), strict=True)]
    return {**batch, "images": torch.stack(images)}


def initializer_bytes(artifact: ms.Artifact) -> int:
    graph = onnx.load(artifact.path).graph
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer)


def time_ratios(
    small: ms.Artifact, large: ms.Artifact, images: NDArray[np.float32], *, calls: int = 200
) -> list[float]:
    """Return the times of the small model, with and without blocks, over that of the large one with blocks."""
    sessions = []
    for artifact, level in ((large, "ALL"), (small, "ALL"), (small, "EXTENDED")):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        sessions.append(onnxruntime.InferenceSession(str(artifact.path), options))
    seconds = np.zeros((calls, len(sessions)))
    for row in seconds:
        for number, session in enumerate(sessions):
            start = time.perf_counter()
            session.run(None, {"image": images})
            row[number] = time.perf_counter() - start
    medians = np.median(seconds, axis=0)
    return (medians[1:] / medians[0]).tolist()  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=len(NETWORKS), help="how many of the networks, in order")
    chosen = parser.parse_args().networks
    with np.load(DATA) as data:
        images, labels = (data["images"] / 16).astype(np.float32), data["labels"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    held_out, training = order[:HELD_OUT], order[HELD_OUT:]
    rows = {"images": images[training], "labels": labels[training]}
    print(f"{'half of the channels removed':32}  time  no blocks  bytes  accuracy gate at 1 point")
    with tempfile.TemporaryDirectory() as cache, ms.Pipeline(Path(cache)) as pipeline:
        for name, (build, epochs) in list(NETWORKS.items())[:chosen]:
            spec = ms.TrainSpec(
                loss="cross_entropy", epochs=epochs, learning_rate=3e-3, schedule="warmup-cosine", inputs="images",
                labels="labels", augmentation=shifted,
            )  # fmt: skip
            source = ms.ModelSource(name="net", build=build, fit=spec, data=rows, example_inputs=images[:2])
            trained = pipeline.train(source)
            longer = replace(spec, epochs=2 * epochs)
            step = 16 if name.endswith(", 16") else 1
            pruned = pipeline.prune(trained, amount=0.5, structured=True, multiple_of=step, fine_tune=longer)
            large, small = pipeline.export(trained), pipeline.export(pruned)
            evidence = ms.measure_accuracy_parity(small, large, images[held_out], labels[held_out], max_drop=0.01)
            times = time_ratios(small, large, images[:IMAGES])
            sizes = initializer_bytes(small) / initializer_bytes(large)
            drop = f"drop {100 * evidence.value:5.2f} points, at most {100 * evidence.interval.high:.2f}"
            print(f"{name:32}  {times[0]:.2f}  {times[1]:9.2f}  {sizes:5.2f}  {evidence.verdict}: {drop}", flush=True)


if __name__ == "__main__":
    main()
