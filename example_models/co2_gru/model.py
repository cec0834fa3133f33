"""A small recurrent network that forecasts the carbon dioxide of the next week from previous weeks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import pytest_modelserve as ms

CHANGE_PPM = 0.5
"""The approximate standard deviation of the weekly change, which is the input and the target of the network.

The level rises from 313 ppm to 374 in the data, so a network on levels would extrapolate. The distribution of the
weekly changes stays the same.
"""


class CO2GRU(nn.Module):
    """GRU over weekly changes, from windows (batch, time) in ppm to the level of the following week, (batch,).

    A window holds at least two weeks, oldest first. Training windows are three years long; about one year is needed to
    determine the season.
    """

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.recurrent = nn.GRU(1, hidden, batch_first=True)
        self.change = nn.Linear(hidden, 1)

    def changes_after(self, window: torch.Tensor) -> torch.Tensor:
        """Return the forecast change in ppm after each week except the first, (batch, time - 1)."""
        changes = (window[:, 1:] - window[:, :-1]) / CHANGE_PPM
        states, _ = self.recurrent(changes.unsqueeze(-1))
        forecasts: torch.Tensor = self.change(states).squeeze(-1) * CHANGE_PPM
        return forecasts

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        return window[:, -1] + self.changes_after(window)[:, -1]


def fit(model: nn.Module, data: dict[str, NDArray[Any]], progress: Any, *, steps: int = 120) -> None:
    """Train `model` in place by AdamW on the squared error of the weekly changes.

    A step uses 32 random windows of three years, without the errors of their first half year. The weight decay limits
    overfitting to the 22 years of training data.
    """
    assert isinstance(model, CO2GRU)
    windows = torch.from_numpy(data["ppm"]).to(torch.float32).unfold(0, 156, 1)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=steps)
    for _ in progress(range(steps), "training co2_gru"):
        ppm = windows[torch.randint(len(windows), (32,))]
        forecast, change = model.changes_after(ppm[:, :-1]), ppm[:, 2:] - ppm[:, 1:-1]
        optimizer.zero_grad()
        nn.functional.mse_loss(forecast[:, 26:], change[:, 26:]).backward()
        optimizer.step()
        schedule.step()


def persistence(window: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the persistence forecast: next week equals this week."""
    return window[:, -1]


def source(ppm: NDArray[np.float64]) -> ms.ModelSource:
    """Return the source of the trained model, fitted to the series `ppm` (n,) without gaps.

    The example windows are short: torch's exporter runs the recurrent layer week by week, for windows of two years ten
    times as long, and the exported file is the same.
    """
    return ms.ModelSource(
        name="co2_gru",
        build=CO2GRU,
        fit=fit,
        data={"ppm": ppm},
        example_inputs=np.stack([ppm[:8], ppm[-8:]]).astype(np.float32),
    )
