"""Release gates of the textbook network. It was fitted to one random pair, so there is no accuracy to speak of: what
can be judged is whether each file still answers as the trained model does. The last test shows what a catch looks like.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import pytest_modelserve as ms


@pytest.fixture(scope="module")
def rows() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((256, 10)).astype(np.float32)


@pytest.fixture(scope="module")
def fp32(modelserve: ms.Pipeline, seed_mlp: ms.TrainedModel) -> ms.Artifact:
    return modelserve.export(seed_mlp)


@pytest.fixture(scope="module")
def trained(modelserve: ms.Pipeline, seed_mlp: ms.TrainedModel) -> ms.Predictor:
    """The reference: eager torch."""
    return modelserve.serve(seed_mlp)


def test_export_answers_as_torch_does(
    modelserve: ms.Pipeline, fp32: ms.Artifact, trained: ms.Predictor, rows: NDArray[np.float32]
) -> None:
    ms.assert_output_parity(modelserve.serve(fp32), trained, rows, rtol=1e-5, atol=1e-5)


def test_simplified_answers_as_torch_does(
    modelserve: ms.Pipeline, fp32: ms.Artifact, trained: ms.Predictor, rows: NDArray[np.float32]
) -> None:
    simplified = modelserve.serve(modelserve.compress(fp32, "simplify"))
    ms.assert_output_parity(simplified, trained, rows, rtol=1e-5, atol=1e-5)


def test_served_model_answers_in_time(modelserve: ms.Pipeline, fp32: ms.Artifact, rows: NDArray[np.float32]) -> None:
    ms.assert_latency(modelserve.serve(fp32), rows[:1], max_ms=1.0)


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate catches a bias that was lost on the way")
def test_candidate_without_its_bias_is_caught(
    modelserve: ms.Pipeline, seed_mlp: ms.TrainedModel, trained: ms.Predictor, rows: NDArray[np.float32]
) -> None:
    """A converter that folds layers and forgets a bias leaves a file that loads, runs and looks healthy."""
    model = seed_mlp.module()
    with torch.no_grad():
        model.output.bias.zero_()
    candidate = modelserve.serve(modelserve.export(model, rows[:2], name="seed_mlp"), variant="without bias")
    ms.assert_output_parity(candidate, trained, rows, rtol=1e-5, atol=1e-5)
