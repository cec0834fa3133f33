"""Accuracy after quantization, with and without quantization-aware training, on digits.

`python -m benchmarks.quantization_aware` takes about a minute on a quiet host. The float model of each pair is trained
for as many further epochs as the quantization-aware one, so that more training alone explains no difference.
"""

# ruff: noqa: D102 (forward)
from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import pytest_modelserve as ms
from example_models.digits_cnn.model import DigitsCNN
from fixtures.digits import DATA

TRAINING = 600
FURTHER = 20


class Mlp(nn.Module):
    """Two hidden layers over the pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(image)
        return logits


def with_weights(build: Any, weights: dict[str, torch.Tensor]) -> nn.Module:
    module: nn.Module = build()
    module.load_state_dict(weights)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    with np.load(DATA) as data:
        images, labels = (data["images"] / 16).astype(np.float32), data["labels"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    training, held_out = order[:TRAINING], order[TRAINING:]
    rows = {"images": images[training], "labels": labels[training]}
    spec = ms.TrainSpec(
        loss="cross_entropy", epochs=40, learning_rate=3e-3, schedule="warmup-cosine", inputs="images", labels="labels"
    )
    further = replace(spec, epochs=FURTHER, learning_rate=1e-3)
    cases: list[tuple[str, Any, Any]] = [
        ("int8-static", "digits CNN", DigitsCNN),
        ("int4-weights", "MLP of width 32", partial(Mlp, 32)),
        ("int4-weights", "MLP of width 12", partial(Mlp, 12)),
    ]
    print(f"accuracy in %, mean of {len(seeds)} seeds: float, quantized after it, quantization-aware")
    with tempfile.TemporaryDirectory() as cache, ms.Pipeline(Path(cache)) as pipeline:

        def accuracy(artifact: ms.Artifact) -> float:
            (scores,) = pipeline.serve(artifact).predict(images[held_out]).values()
            return float(100 * (scores.argmax(axis=1) == labels[held_out]).mean())

        def quantized(model: Any, recipe: str) -> ms.Artifact:
            calibration = {"calibration": images[training]} if recipe == "int8-static" else {}
            return pipeline.compress(pipeline.export(model), recipe, **calibration)

        for recipe, name, build in cases:
            found = []
            for seed in seeds:
                source = ms.ModelSource(name="net", build=build, fit=spec, data=rows, example_inputs=images[:2])
                trained = pipeline.train(source, seed=seed)
                longer = replace(source, build=partial(with_weights, build, trained.module().state_dict()), fit=further)
                plain = pipeline.train(longer, seed=seed)
                aware = pipeline.quantization_aware(trained, recipe, fine_tune=further)
                found.append(
                    [
                        accuracy(pipeline.export(plain)),
                        accuracy(quantized(plain, recipe)),
                        accuracy(quantized(aware, recipe)),
                    ]
                )
            means = np.mean(found, axis=0)
            print(f"{name:16} {recipe:12}  {means[0]:6.2f}  {means[1]:6.2f}  {means[2]:6.2f}", flush=True)


if __name__ == "__main__":
    main()
