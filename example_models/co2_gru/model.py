"""A small recurrent network that forecasts next week's carbon dioxide from the weeks before."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import pytest_modelserve as ms

CHANGE_PPM = 0.5
"""About the standard deviation of the change from week to week, which is what the network sees and predicts.

The level itself rises from 313 ppm to 374 in the data: a network that was shown levels would have to answer for ones
that it has never met. Its changes stay what they were.
"""


class CO2GRU(nn.Module):
    """One GRU layer over weekly changes; windows (batch, time) in ppm in, the week after each, (batch,), out.

    A window holds two weeks or more, oldest first. The network is trained on two to three years, of which it needs one
    to find its place in the season.
    """

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.recurrent = nn.GRU(1, hidden, batch_first=True)
        self.change = nn.Linear(hidden, 1)

    def changes_after(self, window: torch.Tensor) -> torch.Tensor:
        """The change in ppm that is forecast after each week but the first, (batch, time - 1)."""
        seen = (window[:, 1:] - window[:, :-1]) / CHANGE_PPM
        states, _ = self.recurrent(seen.unsqueeze(-1))
        changes: torch.Tensor = self.change(states).squeeze(-1) * CHANGE_PPM
        return changes

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        return window[:, -1] + self.changes_after(window)[:, -1]


def fit(model: nn.Module, data: dict[str, NDArray[Any]], progress: Any, *, steps: int = 200) -> None:
    """Train `model` in place by AdamW on the squared error of every change after the first half year of a stretch.

    A stretch is three years from anywhere in the series; 32 of them make a step. Twenty-two years are few: it is the
    weight decay that keeps the network from learning their noise by heart.
    """
    assert isinstance(model, CO2GRU)
    stretches = torch.from_numpy(data["ppm"]).to(torch.float32).unfold(0, 156, 1)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=steps)
    for _ in progress(range(steps), "training co2_gru"):
        ppm = stretches[torch.randint(len(stretches), (32,))]
        forecast, change = model.changes_after(ppm[:, :-1]), ppm[:, 2:] - ppm[:, 1:-1]
        optimizer.zero_grad()
        nn.functional.mse_loss(forecast[:, 26:], change[:, 26:]).backward()
        optimizer.step()
        schedule.step()


def persistence(window: NDArray[np.float32]) -> NDArray[np.float32]:
    """The forecast that needs no model: next week is like this week."""
    return window[:, -1]


def source(ppm: NDArray[np.float64], *, window_weeks: int) -> ms.ModelSource:
    """The recipe of the trained model: what is built, how it is fitted, on which series (n,) without gaps."""
    return ms.ModelSource(
        name="co2_gru",
        build=CO2GRU,
        fit=fit,
        data={"ppm": ppm},
        example_inputs=np.stack([ppm[:window_weeks], ppm[-window_weeks:]]).astype(np.float32),
    )
