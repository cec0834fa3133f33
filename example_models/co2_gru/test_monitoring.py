"""Monitoring of the weeks that come in after 1979: one drift that matters, one column that did not move, and one window
that is too short to tell.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

import pytest_modelserve as ms
from example_models.co2_gru.monitoring import level, seasonal_change, weekly_change
from fixtures.co2 import CO2
from fixtures.golden import FOLDER


@pytest.fixture(scope="module")
def season(co2: CO2) -> NDArray[np.float64]:
    return seasonal_change(co2.training.weeks, co2.training.ppm)


@pytest.fixture(scope="module")
def changes() -> ms.ReferenceProfile:
    return ms.ReferenceProfile.load(FOLDER / "co2_change.profile.json")


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate catches a level that left the training range")
def test_level_that_left_the_training_range_is_caught(co2: CO2) -> None:
    """A drift that matters to every model that reads the level itself; the profile says that a year is one block."""
    profile = ms.ReferenceProfile.load(FOLDER / "co2_level.profile.json")
    since = co2.series.between(len(co2.training.ppm), len(co2.series.ppm))
    ms.assert_no_drift(level(since.ppm), profile, max_distance=0.1, name="co2 level 1980-2001")


def test_weekly_change_is_what_it_was(co2: CO2, changes: ms.ReferenceProfile, season: NDArray[np.float64]) -> None:
    """What the forecaster reads, and why it still forecasts at a level that it has never seen."""
    since = co2.series.between(len(co2.training.ppm), len(co2.series.ppm))
    ms.assert_no_drift(
        weekly_change(since.weeks, since.ppm, season=season),
        changes,
        max_distance=0.1,
        name="co2 weekly change 1980-2001",
    )


def test_half_a_year_is_too_short_to_tell(co2: CO2, changes: ms.ReferenceProfile, season: NDArray[np.float64]) -> None:
    recent = co2.series.between(len(co2.series.ppm) - 27, len(co2.series.ppm))
    with pytest.raises(ms.GateInconclusive, match=r"give about [\d,]+ rows"):
        ms.assert_no_drift(
            weekly_change(recent.weeks, recent.ppm, season=season),
            changes,
            max_distance=0.1,
            name="co2 weekly change, last 26 weeks",
        )
