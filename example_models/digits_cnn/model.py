"""A small convolutional network for 8×8 images of digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import pytest_modelserve as ms

CLASSES = 10
PREPROCESS = (ms.Scale(1 / 16),)
"""Scaling of the pixels, integers from 0 to 16, to the range from 0 to 1."""


class DigitsCNN(nn.Module):
    """Two convolutions and two dense layers, from images (batch, 8, 8) between 0 and 1 to logits (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, CLASSES))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(image.unsqueeze(1)))
        return logits


def fit(model: nn.Module, data: dict[str, NDArray[Any]], progress: Any, *, epochs: int = 30) -> None:
    """Train `model` in place by Adam on cross-entropy, in shuffled batches of 64."""
    images, labels = torch.from_numpy(data["images"]), torch.from_numpy(data["labels"])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in progress(range(epochs), "training digits_cnn"):
        for rows in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()


def source(images: NDArray[np.float32], labels: NDArray[np.int64]) -> ms.ModelSource:
    """Return the source of the trained model, fitted to preprocessed images."""
    return ms.ModelSource(
        name="digits_cnn",
        build=DigitsCNN,
        fit=fit,
        data={"images": images, "labels": labels},
        example_inputs=images[:2],
    )
