"""Monitoring of the weeks after 1979: relevant drift, a column without drift, and a window that is too short.

Each decade is also compared with the previous one.
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


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate detects a level outside the training range")
def test_level_outside_the_training_range_is_detected(co2: CO2) -> None:
    """This drift affects every model with the level as input; in the profile, a year is one block."""
    profile = ms.ReferenceProfile.load(FOLDER / "co2_level.profile.json")
    since = co2.series.between(len(co2.training.ppm), len(co2.series.ppm))
    ms.assert_no_drift(level(since.ppm), profile, max_distance=0.1, name="co2 level 1980-2001")


def test_weekly_change_does_not_drift(co2: CO2, changes: ms.ReferenceProfile, season: NDArray[np.float64]) -> None:
    """The forecaster uses the weekly change as input, so that it also works at new levels."""
    since = co2.series.between(len(co2.training.ppm), len(co2.series.ppm))
    ms.assert_no_drift(
        weekly_change(since.weeks, since.ppm, season=season),
        changes,
        max_distance=0.1,
        name="co2 weekly change 1980-2001",
    )


def test_weekly_change_has_no_faults(co2: CO2, changes: ms.ReferenceProfile, season: NDArray[np.float64]) -> None:
    since = co2.series.between(len(co2.training.ppm), len(co2.series.ppm))
    ms.assert_data_quality(
        weekly_change(since.weeks, since.ppm, season=season), changes, max_rate=0.1, name="co2 weekly change 1980-2001"
    )


def test_half_a_year_is_too_short_to_decide(
    co2: CO2, changes: ms.ReferenceProfile, season: NDArray[np.float64]
) -> None:
    recent = co2.series.between(len(co2.series.ppm) - 27, len(co2.series.ppm))
    with pytest.raises(ms.GateInconclusive, match=r"provide about [\d,]+ rows"):
        ms.assert_no_drift(
            weekly_change(recent.weeks, recent.ppm, season=season),
            changes,
            max_distance=0.1,
            name="co2 weekly change, last 26 weeks",
        )


DECADES = (1970, 1980, 1990)


def decade(co2: CO2, start: int) -> slice:
    """Return the rows of ten years."""
    first, last = np.searchsorted(co2.series.weeks, [np.datetime64(str(start)), np.datetime64(str(start + 10))])
    return slice(int(first), int(last))


@pytest.mark.parametrize("start", DECADES)
@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the level rises in every decade")
def test_level_of_a_decade_differs_from_the_one_before(co2: CO2, start: int) -> None:
    before, now = (level(co2.series.ppm[decade(co2, each)]) for each in (start - 10, start))
    profile = ms.reference_profile(before, block=52, name=f"co2 level {start - 10}s")
    ms.assert_no_drift(now, profile, max_distance=0.2, name=f"co2 level {start}s")


@pytest.mark.parametrize("start", DECADES)
def test_weekly_change_of_a_decade_is_that_of_the_one_before(co2: CO2, season: NDArray[np.float64], start: int) -> None:
    """The level has a trend; the weekly change without its season has none."""
    before, now = (
        weekly_change(co2.series.weeks[rows], co2.series.ppm[rows], season=season)
        for rows in (decade(co2, start - 10), decade(co2, start))
    )
    profile = ms.reference_profile(before, name=f"co2 weekly change {start - 10}s")
    ms.assert_data_quality(now, profile, max_rate=0.1, name=f"co2 weekly change {start}s")
    ms.assert_no_drift(now, profile, max_distance=0.2, name=f"co2 weekly change {start}s")
