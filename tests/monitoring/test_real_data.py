"""Drift that is known to be there, and drift that is not: carbon dioxide by decade, tumors by order of the file."""

import datetime
import re

import numpy as np
import pytest
from scipy.stats import ks_2samp

from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring import measure_data_quality, measure_drift, reference_profile
from pytest_modelserve.monitoring.readers import read_table


@pytest.fixture(scope="module")
def weekly(data_folder):
    """(weeks, level with gaps, level with gaps filled by straight lines)."""
    weeks, level = (column.values for column in read_table(data_folder / "co2_weekly.csv").columns)
    rows, known = np.arange(len(level)), ~np.isnan(level)
    return (
        [datetime.datetime.fromtimestamp(week, datetime.UTC) for week in weeks],
        level,
        np.interp(rows, rows[known], level[known]),
    )


def compared(weeks, values, **options):
    """The values of 1980 to 2001 held against those of 1958 to 1979, and the distance of their rows."""
    early = np.array([week.year < 1980 for week in weeks])
    then, now = values[early], values[~early]
    evidence = measure_drift({"co2": now}, reference_profile({"co2": then}), max_distance=0.10, **options)
    exact = ks_2samp(then[~np.isnan(then)], now[~np.isnan(now)]).statistic
    assert evidence.quantities[0].value == pytest.approx(exact, abs=0.001)
    return evidence, exact


@pytest.mark.parametrize("block", [None, 52])
def test_the_level_drifts_with_an_estimated_block_and_with_one_of_a_year(weekly, block):
    weeks, level, _ = weekly
    evidence, distance = compared(weeks, level, block=block)
    assert distance == pytest.approx(0.952, abs=5e-4)
    assert evidence.verdict is Verdict.FAIL
    assert evidence.findings[:1] == (
        "'co2' distance 0.952: mean 325 → 354.4 (+29.4), median 324.5 → 354.5; "
        "most gained from 337.5 on: 2.7 % → 97.8 % (+95.1 points)",
    )


@pytest.mark.parametrize(
    ("block", "verdict"),
    [(None, Verdict.FAIL), (8, Verdict.FAIL), (20, Verdict.FAIL), (52, Verdict.INCONCLUSIVE)],
)
def test_the_yearly_growth_drifts_and_blocks_of_a_year_are_too_few_to_say_so(weekly, block, verdict):
    weeks, _, filled = weekly
    evidence, distance = compared(weeks[52:], filled[52:] - filled[:-52], block=block)
    assert distance == pytest.approx(0.313, abs=5e-4)
    assert evidence.verdict is verdict
    if block is None:
        assert "the profile in blocks of about 62 in 'co2'" in evidence.findings[1]


def test_weekly_changes_less_their_seasonal_mean_do_not_drift(weekly):
    weeks, _, filled = weekly
    changes, season = np.diff(filled), np.array([week.isocalendar().week for week in weeks[1:]])
    early = np.array([week.year < 1980 for week in weeks[1:]])
    usual = {week: changes[early & (season == week)].mean() for week in set(season.tolist())}
    evidence, distance = compared(weeks[1:], changes - np.array([usual[week] for week in season.tolist()]))
    assert distance == pytest.approx(0.034, abs=5e-4)
    assert evidence.verdict is Verdict.PASS


@pytest.fixture(scope="module")
def tumors(data_folder):
    return {column.name: column.values for column in read_table(data_folder / "breast_cancer.csv").columns}


def split(columns, order):
    first, rest = order[:300], order[300:]
    return {n: v[first] for n, v in columns.items()}, {n: v[rest] for n, v in columns.items()}


def test_tumors_in_the_order_of_the_file_drift_above_all_in_their_label(tumors):
    first, rest = split(tumors, np.arange(569))
    evidence = measure_drift(rest, reference_profile(first), max_distance=0.10)
    assert evidence.verdict is Verdict.FAIL
    assert evidence.findings[0] == (
        "'benign' distance 0.241: mean 0.5133 → 0.7546 (+0.241), median 1 → 1; "
        "most gained at 1: 51.3 % → 75.5 % (+24.1 points)"
    )
    assert len(evidence.details["moved"]) == 5


def test_tumors_split_at_random_do_not_drift_and_lack_rows_for_a_tight_budget(tumors):
    for seed in range(5):
        first, rest = split(tumors, np.random.default_rng(seed).permutation(569))
        profile = reference_profile(first)
        assert measure_drift(rest, profile, max_distance=0.30).verdict is Verdict.PASS
        tight = measure_drift(rest, profile, max_distance=0.10)
        assert tight.verdict is Verdict.INCONCLUSIVE
        assert re.fullmatch(
            r"the profile has too few rows \(\d+\) for data of any size: profile about 2,\d{3} rows and test as many, "
            "or raise max_distance",
            tight.advice,
        )


def test_tumors_split_at_random_are_whole_and_a_unit_slip_is_not(tumors):
    first, rest = split(tumors, np.random.default_rng(0).permutation(569))
    profile = reference_profile(first)
    assert measure_data_quality(rest, profile, max_rate=0.10).verdict is Verdict.PASS
    slipped = {**rest, "mean_area": rest["mean_area"] / 100}
    evidence = measure_data_quality(slipped, profile, max_rate=0.10)
    assert evidence.verdict is Verdict.FAIL
    assert evidence.findings[0].startswith("'mean_area' outside [")
