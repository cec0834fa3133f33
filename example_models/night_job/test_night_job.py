"""Monitoring of ten windows: a gradual drift, a sudden one, a window that comes late, and a change that is harmless."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pytest_modelserve as ms
from example_models.night_job.job import (
    FIRST_YEAR,
    TrendForecaster,
    Year,
    forecast_monitor,
    tumor_monitor,
    tumor_nights,
    years,
)
from fixtures.breast_cancer import BreastCancer
from fixtures.co2 import CO2
from fixtures.golden import FOLDER


@pytest.fixture(scope="module")
def forecaster(co2: CO2) -> TrendForecaster:
    weeks = co2.training.weeks
    fitted = weeks >= np.datetime64("1970-01-01")
    return TrendForecaster(weeks[fitted], co2.training.ppm[fitted])


@pytest.fixture(scope="module")
def reference(co2: CO2, forecaster: TrendForecaster) -> list[Year]:
    return years(forecaster, co2.series.weeks, co2.series.ppm, first=1970, count=10)


@pytest.fixture(scope="module")
def eighties(co2: CO2, forecaster: TrendForecaster) -> list[Year]:
    return years(forecaster, co2.series.weeks, co2.series.ppm, first=FIRST_YEAR, count=10)


def serve(monitor: ms.Monitor, year: Year) -> None:
    monitor.check(year.name, slot=year.slot, outputs=year.forecasts, ids=year.ids)


def label(monitor: ms.Monitor, year: Year) -> ms.Evidence:
    return monitor.add_labels(year.name, year.ids, year.measured)


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the monitor detects that an old forecaster has worn out")
def test_gradual_drift_of_the_error_is_detected(tmp_path: Path, reference: list[Year], eighties: list[Year]) -> None:
    """Concentrations rise faster than in the 1970s: the error grows from 0.9 ppm in 1980 to 3.9 in 1989."""
    monitor = forecast_monitor(tmp_path / "co2.state", reference)
    verdicts = []
    for year in eighties:
        serve(monitor, year)
        verdicts.append(str(label(monitor, year).verdict))
    assert verdicts == ["INCONCLUSIVE"] * 7 + ["FAIL"] * 3
    ms.assert_no_alarm(monitor, label="labels of all years")


def test_window_and_labels_that_come_late_lead_to_the_same_verdict(
    tmp_path: Path, reference: list[Year], eighties: list[Year]
) -> None:
    in_time = forecast_monitor(tmp_path / "in time.state", reference)
    late = forecast_monitor(tmp_path / "late.state", reference)
    for year in eighties:
        serve(in_time, year)
        label(in_time, year)
    for year in [*eighties[:4], *eighties[5:], eighties[4]]:  # 1984 comes last
        serve(late, year)
    for year in reversed(eighties):
        evidence = label(late, year)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.value == in_time.check().value
    assert [event.verdict for event in late.history()].count("FAIL") < 10  # revised by labels, and the history says so


@pytest.fixture(scope="module")
def profile() -> ms.ReferenceProfile:
    return ms.ReferenceProfile.load(FOLDER / "breast_cancer.profile.json")


def test_texture_that_reads_two_percent_higher_is_harmless(
    tmp_path: Path, profile: ms.ReferenceProfile, breast_cancer: BreastCancer
) -> None:
    """The first nights have too few rows to distinguish a tolerated shift from none; then the monitor passes."""
    monitor = tumor_monitor(tmp_path / "tumors.state", profile)
    held_out = breast_cancer.held_out
    windows = tumor_nights(breast_cancer.columns, held_out.rows, held_out.benign, texture=1.02)
    verdicts = [str(monitor.check(night, data=rows).verdict) for night, rows in enumerate(windows)]
    assert verdicts == ["INCONCLUSIVE"] * 3 + ["PASS"] * 7
    ms.assert_no_alarm(monitor, label="ten nights")


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the monitor detects a radius in another unit")
def test_sudden_change_of_a_unit_is_detected_in_its_first_night(
    tmp_path: Path, profile: ms.ReferenceProfile, breast_cancer: BreastCancer
) -> None:
    monitor = tumor_monitor(tmp_path / "tumors.state", profile)
    held_out = breast_cancer.held_out
    windows = tumor_nights(breast_cancer.columns, held_out.rows, held_out.benign, centimeters_from=6)
    for night, rows in enumerate(windows):
        evidence = monitor.check(night, data=rows)
        if night < 6:
            assert evidence.verdict is not ms.Verdict.FAIL
        elif night == 6:
            assert evidence.details["changes"][0]["stream"] == "'mean_radius' outside its range"
            ms.assert_no_alarm(monitor, label="night 6")
