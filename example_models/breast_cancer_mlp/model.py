"""A small network on 30 measurements of a tumour, with its preparation and its words."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import pytest_modelserve as ms

LABELS = ("malignant", "benign")
POSTPROCESS = (ms.Softmax(), ms.ArgMax(LABELS))


def preprocess(rows: NDArray[np.float32]) -> tuple[ms.Impute, ms.Standardise, ms.Clip]:
    """What is done to every row before the network, by the statistics of the training `rows` (n, 30).

    A missing measurement becomes the median of its column; what lies more than five standard deviations out counts as
    five: a slip of the decimal point must not outweigh the other 29 measurements.
    """
    rows = rows.astype(np.float64)
    return (
        ms.Impute(np.nanmedian(rows, axis=0)),
        ms.Standardise(np.nanmean(rows, axis=0), np.nanstd(rows, axis=0)),
        ms.Clip(-5, 5),
    )


class BreastCancerMLP(nn.Module):
    """One hidden layer; standardised measurements (batch, 30) in, logits (batch, 2) out."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(30, 64)
        self.output = nn.Linear(64, len(LABELS))

    def forward(self, measurements: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.output(torch.relu(self.hidden(measurements)))
        return logits


def fit(model: nn.Module, data: dict[str, NDArray[Any]], progress: Any, *, epochs: int = 60) -> None:
    """Train `model` in place by AdamW on cross-entropy, in shuffled batches of 32."""
    rows, benign = torch.from_numpy(data["rows"]), torch.from_numpy(data["benign"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in progress(range(epochs), "training breast_cancer_mlp"):
        for batch in torch.randperm(len(benign)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(rows[batch]), benign[batch]).backward()
            optimizer.step()


def source(prepared: NDArray[np.float32], benign: NDArray[np.int64]) -> ms.ModelSource:
    """The recipe of the trained model, on rows (n, 30) that `preprocess` has prepared."""
    return ms.ModelSource(
        name="breast_cancer_mlp",
        build=BreastCancerMLP,
        fit=fit,
        data={"rows": prepared, "benign": benign},
        example_inputs=prepared[:2],
    )
