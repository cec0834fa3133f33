"""A multilayer perceptron with layers of 10, 50 and 2 units, fitted to one random pair of input and target."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import pytest_modelserve as ms


class SeedMLP(nn.Module):
    """Network with one hidden layer and ReLU, from (batch, 10) to (batch, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(10, 50)
        self.output = nn.Linear(50, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.output(torch.relu(self.hidden(x)))
        return y


def fit(model: nn.Module, data: dict[str, NDArray[Any]], progress: Any) -> None:
    """Train `model` in place by 100 steps of Adam on the mean squared error."""
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for _ in progress(range(100), "training seed_mlp"):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


def source() -> ms.ModelSource:
    """Return the source of the trained model, fitted to one random pair."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 10), (1, 2)))
    return ms.ModelSource(name="seed_mlp", build=SeedMLP, fit=fit, data={"x": x, "y": y}, example_inputs=x)
