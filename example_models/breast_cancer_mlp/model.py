"""A small network that classifies tumors by 30 measurements, with its pre- and postprocessing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import pytest_modelserve as ms

LABELS = ("malignant", "benign")
POSTPROCESS = (ms.Softmax(), ms.ArgMax(LABELS))


def preprocess(rows: NDArray[np.float32]) -> tuple[ms.Impute, ms.Standardize, ms.Clip]:
    """Return the preprocessing steps, fitted to the training `rows` (n, 30).

    A missing measurement is imputed by the median of its column. Standardized measurements are clipped at five standard
    deviations, so that a misplaced decimal point does not outweigh the other 29 measurements.
    """
    rows = rows.astype(np.float64)
    return (
        ms.Impute(np.nanmedian(rows, axis=0)),
        ms.Standardize(np.nanmean(rows, axis=0), np.nanstd(rows, axis=0)),
        ms.Clip(-5, 5),
    )


class BreastCancerMLP(nn.Module):
    """Network with one hidden layer, from standardized measurements (batch, columns) to logits (batch, 2)."""

    def __init__(self, columns: int = 30) -> None:
        super().__init__()
        self.hidden = nn.Linear(columns, 64)
        self.output = nn.Linear(64, len(LABELS))

    def forward(self, measurements: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.output(torch.relu(self.hidden(measurements)))
        return logits


class MonotoneMLP(nn.Module):
    """Monotone network: all weights are positive, so a larger measurement never makes a tumor look more benign."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(30, 64)
        self.output = nn.Linear(64, 1)
        with torch.no_grad():
            for layer in (self.hidden, self.output):
                layer.weight.copy_(layer.weight / 4 - 4)  # softplus of -4 is 0.02

    def forward(self, measurements: torch.Tensor) -> torch.Tensor:
        weights = [nn.functional.softplus(layer.weight) for layer in (self.hidden, self.output)]
        hidden = torch.relu(nn.functional.linear(measurements, weights[0], self.hidden.bias))
        malignant = nn.functional.linear(hidden, weights[1], self.output.bias)
        return torch.cat([malignant, -malignant], dim=1)


class BlindMLP(BreastCancerMLP):
    """BreastCancerMLP with a 31st input column that it ignores."""

    def forward(self, measurements: torch.Tensor) -> torch.Tensor:
        return super().forward(measurements[:, :30])


def answers(module: nn.Module, prepared: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Return the label (n,) and the probabilities (n, 2) of preprocessed rows, as the deployed file does."""
    with torch.no_grad():
        probabilities = torch.softmax(module(torch.from_numpy(prepared)), dim=1).numpy()
    return {"label": np.array(LABELS)[probabilities.argmax(axis=1)], "probabilities": probabilities}


def fit(model: nn.Module, data: dict[str, NDArray[Any]], progress: Any, *, epochs: int = 60) -> None:
    """Train `model` in place by AdamW on cross-entropy, in shuffled batches of 32."""
    rows, benign = torch.from_numpy(data["rows"]), torch.from_numpy(data["benign"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in progress(range(epochs), "training breast_cancer_mlp"):
        for batch in torch.randperm(len(benign)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(rows[batch]), benign[batch]).backward()
            optimizer.step()


def source(
    prepared: NDArray[np.float32],
    benign: NDArray[np.int64],
    *,
    build: Callable[[], nn.Module] = BreastCancerMLP,
    name: str = "breast_cancer_mlp",
) -> ms.ModelSource:
    """Return the source of a trained model, on preprocessed rows (n, columns)."""
    return ms.ModelSource(
        name=name,
        build=build,
        fit=fit,
        data={"rows": prepared, "benign": benign},
        example_inputs=prepared[:2],
    )
