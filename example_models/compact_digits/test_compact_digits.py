"""A smaller digits network: half of its channels removed, and a student of a quarter of its size.

Both are judged like any other candidate, against the deployed network, on 597 held-out images.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import pytest_modelserve as ms
from example_models.digits_cnn.model import PREPROCESS
from fixtures.digits import Digits

FINE_TUNING = ms.TrainSpec(
    loss="cross_entropy",
    epochs=30,
    learning_rate=2e-3,
    schedule="warmup-cosine",
    inputs="images",
    labels="labels",
)


class SmallCNN(nn.Module):
    """The same network with 8 and 12 channels and 32 hidden units, a fifth of the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(image.unsqueeze(1)))
        return logits


@pytest.fixture(scope="module")
def images(modelserve: ms.Pipeline, digits: Digits) -> NDArray[np.float32]:
    """The held-out images as the networks take them."""
    return modelserve.prepare(PREPROCESS, digits.held_out.images)


@pytest.fixture(scope="module")
def champion(modelserve: ms.Pipeline, digits_cnn: ms.TrainedModel) -> ms.Artifact:
    return modelserve.export(digits_cnn)


@pytest.fixture(scope="module")
def pruned(modelserve: ms.Pipeline, digits_cnn: ms.TrainedModel) -> ms.PrunedModel:
    """The network without half of its channels, fine-tuned."""
    return modelserve.prune(digits_cnn, amount=0.5, structured=True, fine_tune=FINE_TUNING)


@pytest.fixture(scope="module")
def half(modelserve: ms.Pipeline, pruned: ms.PrunedModel) -> ms.Artifact:
    return modelserve.export(pruned)


@pytest.fixture(scope="module")
def student(
    modelserve: ms.Pipeline, digits_cnn: ms.TrainedModel, images: NDArray[np.float32], digits: Digits
) -> ms.DistilledModel:
    """A small network that learns from the large one, beside the same network that does not."""
    source = ms.ModelSource(
        name="digits_small",
        build=SmallCNN,
        fit=FINE_TUNING,
        data=digits_cnn.source.data,
        example_inputs=digits_cnn.source.example_inputs,
    )
    return modelserve.distill(digits_cnn, source, held_out=(images, digits.held_out.labels))


@pytest.fixture(scope="module")
def quarter(modelserve: ms.Pipeline, student: ms.DistilledModel) -> ms.Artifact:
    return modelserve.export(student)


def test_half_of_the_channels_are_gone(pruned: ms.PrunedModel) -> None:
    assert {layer.layer: layer.removed for layer in pruned.layers if not layer.note} == {
        "features.0": 0.5,
        "features.3": 0.5,
        "classifier.1": 0.5,
    }


def test_pruned_network_is_smaller(half: ms.Artifact, champion: ms.Artifact) -> None:
    ms.assert_size(half, champion, max_ratio=0.35)


def test_pruned_network_keeps_the_accuracy(
    half: ms.Artifact, champion: ms.Artifact, images: NDArray[np.float32], digits: Digits
) -> None:
    ms.assert_accuracy_parity(half, champion, images, digits.held_out.labels, max_drop=0.025)


def test_student_has_a_quarter_of_the_size(quarter: ms.Artifact, champion: ms.Artifact) -> None:
    ms.assert_size(quarter, champion, max_ratio=0.25)


def test_student_is_accurate(quarter: ms.Artifact, images: NDArray[np.float32], digits: Digits) -> None:
    ms.assert_accuracy(quarter, images, digits.held_out.labels, min_value=0.9)


def test_teacher_does_not_help_this_student(student: ms.DistilledModel) -> None:
    """The same student learns as much from the labels alone: the distillation is left out of the release."""
    assert student.evidence is not None
    assert student.evidence.interval is not None
    assert student.evidence.interval.low <= 0


def test_search_over_structures_and_recipes_finds_the_smallest_network(
    modelserve: ms.Pipeline,
    champion: ms.Artifact,
    pruned: ms.PrunedModel,
    student: ms.DistilledModel,
    images: NDArray[np.float32],
    digits: Digits,
) -> None:
    """Two structures with two recipes each, all judged together: at most one search in twenty is wrong."""
    outputs, labels = modelserve.serve(champion).predict(images), digits.held_out.labels
    tuning = modelserve.tune(
        champion,
        images[:1],
        gates=lambda candidate: ms.assert_accuracy_parity(candidate, outputs, images, labels, max_drop=0.04),
        objective="size",
        sources={"half": pruned, "fifth": student},
        recipes=["fp16", "int8-dynamic"],
    )
    ms.assert_size(tuning.require(), champion, max_ratio=0.25)
