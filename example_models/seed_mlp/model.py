"""The textbook's first network: 10 → 50 → 2, fitted to one random pair. It knows nothing of the world."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import pytest_modelserve as ms


class SeedMLP(nn.Module):
    """One hidden layer with ReLU; (batch, 10) in, (batch, 2) out."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(10, 50)
        self.output = nn.Linear(50, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.output(torch.relu(self.hidden(x.view(x.size(0), -1))))
        return y


def fit(model: nn.Module, data: dict[str, NDArray[Any]], progress: Any) -> None:
    """100 steps of Adam at 0.001 on the mean squared error."""
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for _ in progress(range(100), "training seed_mlp"):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


def source() -> ms.ModelSource:
    """The recipe on one random pair: there are no real data behind this model."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 10), (1, 2)))
    return ms.ModelSource(name="seed_mlp", build=SeedMLP, fit=fit, data={"x": x, "y": y}, example_inputs=x)
