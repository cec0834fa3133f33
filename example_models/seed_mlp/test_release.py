"""Release gates of the small perceptron: latency, and output parity of each file with the trained model.

There is no accuracy gate, because the network was fitted to one random pair. The last test shows a detected fault.
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


def test_export_matches_torch(
    modelserve: ms.Pipeline, fp32: ms.Artifact, trained: ms.Predictor, rows: NDArray[np.float32]
) -> None:
    ms.assert_output_parity(modelserve.serve(fp32), trained, rows, rtol=1e-5, atol=1e-5)


def test_optimized_model_matches_torch(
    modelserve: ms.Pipeline, fp32: ms.Artifact, trained: ms.Predictor, rows: NDArray[np.float32]
) -> None:
    optimized = modelserve.serve(modelserve.compress(fp32, "optimize"))
    ms.assert_output_parity(optimized, trained, rows, rtol=1e-5, atol=1e-5)


def test_served_model_is_fast_enough(modelserve: ms.Pipeline, fp32: ms.Artifact, rows: NDArray[np.float32]) -> None:
    ms.assert_latency(modelserve.serve(fp32), rows[:1], max_ms=0.2)


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate detects a missing bias")
def test_candidate_without_its_bias_is_detected(
    modelserve: ms.Pipeline, seed_mlp: ms.TrainedModel, trained: ms.Predictor, rows: NDArray[np.float32]
) -> None:
    """A converter folded layers and omitted a bias; the file still loads and runs."""
    model = seed_mlp.module()
    with torch.no_grad():
        model.output.bias.zero_()
    candidate = modelserve.serve(modelserve.export(model, rows[:2], name="seed_mlp"), variant="without bias")
    ms.assert_output_parity(candidate, trained, rows, rtol=1e-5, atol=1e-5)
