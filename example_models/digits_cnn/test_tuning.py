"""The smallest variant of the digits network that keeps its accuracy within two points, on 597 held-out images.

One test searches a grid of recipes and judges it as a whole; one quantizes to a budget, and leaves as many nodes in
float as the gate needs. Neither chooses a model outside the budget in more than 5 % of samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pytest_modelserve as ms
from example_models.digits_cnn.model import PREPROCESS
from fixtures.digits import Digits

MAX_DROP = 0.02


@pytest.fixture(scope="module")
def exported(modelserve: ms.Pipeline, digits_cnn: ms.TrainedModel) -> ms.Artifact:
    return modelserve.export(digits_cnn)


@pytest.fixture(scope="module")
def images(modelserve: ms.Pipeline, digits: Digits) -> NDArray[np.float32]:
    return modelserve.prepare(PREPROCESS, digits.held_out.images)


@pytest.fixture(scope="module")
def calibration(modelserve: ms.Pipeline, digits: Digits) -> NDArray[np.float32]:
    return modelserve.prepare(PREPROCESS, digits.training.images[:128])


@pytest.fixture(scope="module")
def keeps_accuracy(modelserve: ms.Pipeline, exported: ms.Artifact, images: NDArray[np.float32], digits: Digits) -> Any:
    """The gate, against the outputs of the original."""
    outputs, labels = modelserve.serve(exported).predict(images), digits.held_out.labels
    return lambda candidate: ms.assert_accuracy_parity(candidate, outputs, images, labels, max_drop=MAX_DROP)


def test_smallest_variant_of_a_grid_takes_a_third_of_the_weights(
    modelserve: ms.Pipeline,
    exported: ms.Artifact,
    images: NDArray[np.float32],
    calibration: NDArray[np.float32],
    keeps_accuracy: Any,
) -> None:
    tuning = modelserve.tune(
        exported,
        images[:1],
        gates=keeps_accuracy,
        objective="size",
        recipes=["fp16", "int8-dynamic", "int4-weights", {"recipe": "int8-static", "exclude": [0, 1, 2]}],
        calibration=calibration,
    )
    ms.assert_size(tuning.require(), exported, max_ratio=0.35)


def test_int8_keeps_as_many_nodes_as_the_gate_needs(
    modelserve: ms.Pipeline,
    exported: ms.Artifact,
    images: NDArray[np.float32],
    calibration: NDArray[np.float32],
    keeps_accuracy: Any,
) -> None:
    tuning = modelserve.tune(
        exported, images[:1], gates=keeps_accuracy, objective="size", recipe="int8-static", calibration=calibration
    )
    ms.assert_size(tuning.require(), exported, max_ratio=0.6)
