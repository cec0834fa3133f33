"""Gain of distillation over the same student without a teacher, on digits, with its interval.

`python -m benchmarks.distillation [--seeds 5]` takes about two minutes on a quiet host. The teacher is the network of
example_models/digits_cnn; the student has a fifth of its parameters. Both learn from 600 images; 1,197 judge. In the
last line most training labels of the student are wrong and those of the teacher are not: there distillation must gain.
"""

# ruff: noqa: D102 (forward)
from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import pytest_modelserve as ms
from example_models.digits_cnn.model import DigitsCNN
from fixtures.digits import DATA

TRAINING = 600


class Student(nn.Module):
    """A network of the same form with a fifth of the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(image.unsqueeze(1)))
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    with np.load(DATA) as data:
        images, labels = (data["images"] / 16).astype(np.float32), data["labels"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    training, held_out = order[:TRAINING], order[TRAINING:]
    rng = np.random.default_rng(1)
    spec = ms.TrainSpec(
        loss="cross_entropy", epochs=40, learning_rate=3e-3, schedule="warmup-cosine", inputs="images", labels="labels"
    )
    rows = {"images": images[training], "labels": labels[training]}
    wrong = np.where(rng.random(TRAINING) < 0.6, rng.integers(0, 10, TRAINING), rows["labels"])
    source = ms.ModelSource(name="teacher", build=DigitsCNN, fit=spec, data=rows, example_inputs=images[:2])
    student = replace(source, name="student", build=Student)
    settings = {
        "temperature 4, weight 0.5": (student, {}),
        "temperature 2, weight 0.9": (student, {"temperature": 2.0, "soft_weight": 0.9}),
        "and the second convolution matched": (student, {"hidden": [("features.3", "features.3")]}),
        "60 % of the student's labels random": (replace(student, data={**rows, "labels": wrong}), {"soft_weight": 1.0}),
    }
    with tempfile.TemporaryDirectory() as cache, ms.Pipeline(Path(cache)) as pipeline:
        teacher = pipeline.train(source)
        for name, (learner, options) in settings.items():
            small = pipeline.distill(
                teacher, learner, held_out=(images[held_out], labels[held_out]), seeds=seeds, **options
            )
            assert small.evidence is not None
            control, taught = (100 * small.evidence.quantities[place].value for place in (2, 3))
            print(
                f"{name:36} {small.evidence.summary} (control {control:.1f} %, teacher {taught:.1f} %, "
                f"{len(seeds)} seeds)",
                flush=True,
            )


if __name__ == "__main__":
    main()
