"""Two night jobs: an old forecaster of carbon dioxide, year by year, and new tumors, twenty at a time.

Each call of a job takes one window and a state file, as a scheduled job would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pytest_modelserve as ms
from example_models.breast_cancer_mlp.monitoring import columns_of

FIRST_YEAR = 1980
NIGHTS = 10
WEEKS_BETWEEN_FORECASTS = 13
"""One forecast a quarter is judged: the errors of neighboring weeks are nearly the same."""


@dataclass(frozen=True, slots=True)
class Year:
    """The weeks of a year (n,): ids, forecasts in ppm, and what was measured later."""

    name: str
    slot: int
    ids: NDArray[np.int64]
    forecasts: NDArray[np.float64]
    measured: NDArray[np.float64]


class TrendForecaster:
    """A forecast that was made once: a linear trend and two waves a year, fitted to the 1970s."""

    def __init__(self, weeks: NDArray[np.datetime64], ppm: NDArray[np.float64]) -> None:
        self._weights, *_ = np.linalg.lstsq(_terms(weeks), ppm, rcond=None)

    def predict(self, weeks: NDArray[np.datetime64]) -> NDArray[np.float64]:
        """Return the concentration at `weeks` (n,) in ppm."""
        forecast: NDArray[np.float64] = _terms(weeks) @ self._weights
        return forecast


def years(
    forecaster: TrendForecaster, weeks: NDArray[np.datetime64], ppm: NDArray[np.float64], *, first: int, count: int
) -> list[Year]:
    """Return windows of one year each, with one week of thirteen."""
    found = []
    for year in range(first, first + count):
        bounds = np.searchsorted(weeks, [np.datetime64(str(year)), np.datetime64(str(year + 1))])
        ids = np.arange(bounds[0], bounds[1], WEEKS_BETWEEN_FORECASTS)[:4]
        found.append(Year(str(year), year - FIRST_YEAR, ids, forecaster.predict(weeks[ids]), ppm[ids]))
    return found


def forecast_monitor(state: Path, reference: list[Year]) -> ms.Monitor:
    """Return the monitor of the forecaster: a forecast is right within 1 ppm, and labels come a year later."""
    correct = sum(int((np.abs(year.forecasts - year.measured) <= 1).sum()) for year in reference)
    rows = sum(year.ids.size for year in reference)
    streams = [ms.streams.accuracy(correct, rows, max_drop=0.1, within=1)]
    return ms.Monitor("co2 trend", streams, state=state, life=40)


def tumor_monitor(state: Path, profile: ms.ReferenceProfile) -> ms.Monitor:
    """Return the monitor of new tumors; with 369 reference rows, smaller tolerances could not be told from none."""
    streams = [ms.streams.columns(profile, max_shift=0.3, max_increase=0.05)]
    return ms.Monitor("tumors", streams, state=state, life=100)


def tumor_nights(
    columns: Sequence[str],
    rows: NDArray[np.float32],
    benign: NDArray[np.int64],
    *,
    texture: float = 1.0,
    centimeters_from: int = NIGHTS,
) -> list[dict[str, NDArray[Any]]]:
    """Return ten nights of twenty tumors: the texture times a factor, and the radius in centimeters from a night on."""
    found = []
    for night, (of_night, outcome) in enumerate(zip(np.split(rows, NIGHTS), np.split(benign, NIGHTS), strict=True)):
        changed = of_night.copy()
        changed[:, columns.index("mean_texture")] *= texture
        if night >= centimeters_from:
            changed[:, columns.index("mean_radius")] /= 10
        found.append(columns_of(columns, changed, outcome))
    return found


def _terms(weeks: NDArray[np.datetime64]) -> NDArray[np.float64]:
    year = (weeks - np.datetime64("1970-01-01")).astype(np.float64) / 365.25
    waves = [part(2 * np.pi * k * year) for k in (1, 2) for part in (np.cos, np.sin)]
    return np.stack([np.ones_like(year), year, *waves], axis=1)
