"""Three trainings of a digits network: one that memorizes its rows, one that stops early, and a private one.

Two fifths of the labels are random, as from careless annotators: what a network knows of them, it has memorized.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

import pytest_modelserve as ms

MEMBERS, NON_MEMBERS = slice(0, 400), slice(400, 1400)
"""Rows of the training, and rows like them; the rest trains the attacker's reference model."""
OTHERS = slice(1400, None)
RANDOM_LABELS = 0.4

MEMORIZING = ms.TrainSpec(loss="cross_entropy", epochs=40, batch_size=80, learning_rate=0.02)
CAREFUL = ms.TrainSpec(loss="cross_entropy", epochs=3, batch_size=50, learning_rate=0.005)


def private() -> ms.TrainSpec:
    """Return the settings of a training with differential privacy."""
    privacy = ms.PrivateTraining(epsilon=4.0, delta=1e-3, max_grad_norm=1.0, accountant="rdp")  # the faster one
    return ms.TrainSpec(
        loss="cross_entropy", epochs=10, batch_size=80, optimizer="sgd", learning_rate=1.0, privacy=privacy
    )


def build() -> nn.Module:
    """Return the untrained network, from 64 pixels to 10 logits."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def annotated(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the labels (n,) with two fifths of them drawn at random."""
    rng = np.random.default_rng(0)
    is_random = rng.random(len(labels)) < RANDOM_LABELS
    return np.where(is_random, rng.integers(0, 10, len(labels)), labels)


def source(name: str, spec: ms.TrainSpec, pixels: NDArray[np.float32], labels: NDArray[np.int64]) -> ms.ModelSource:
    """Return the source of a network trained on pixels (n, 64) from 0 to 1."""
    return ms.ModelSource(name=name, build=build, fit=spec, data={"x": pixels, "y": labels}, example_inputs=pixels[:2])
