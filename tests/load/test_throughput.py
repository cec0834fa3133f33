"""Rows per second while clients always have a request in flight."""

import math
import time

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.errors import UsageError
from pytest_modelserve.load import throughput
from pytest_modelserve.load.load_run import REQUEST, LoadRun
from pytest_modelserve.load.schedule import Schedule
from pytest_modelserve.load.throughput import rows_per_second, throughput_bounds

ROWS = np.zeros((8, 2), np.float32)


@pytest.fixture
def measured(monkeypatch):
    """The verdict on a given run."""

    def measure(run, **budget):
        monkeypatch.setattr(throughput, "run_load", lambda *args, **settings: run)
        return ms.measure_throughput(np.negative, ROWS, **budget)

    return measure


def steady(load, **settings):
    """One client that gets 8 rows every 10 ms: 800 rows a second."""
    return load(np.full(1_000, 10.0), rate=100, clients=1, **settings)


@pytest.mark.parametrize(("least", "verdict"), [(790, "PASS"), (810, "FAIL")])
def test_throughput_is_compared_with_its_budget(measured, load, least, verdict):
    evidence = measured(steady(load), min_rows_per_s=least)
    assert (evidence.verdict, evidence.value) == (verdict, pytest.approx(800))


def test_windows_get_all_rows_in_proportion_to_the_time_in_flight(load):
    run = load(np.full(7, 1_000.0), rate=1, clients=1)  # seven requests of a second, in 64 windows
    assert rows_per_second(run, [ROWS]) == pytest.approx(np.full(64, 8.0))


def test_interval_of_random_service_times_keeps_its_level():
    rng, low_too_high, high_too_low = np.random.default_rng(0), 0, 0
    for _ in range(200):
        ends = np.cumsum(rng.exponential(0.01, 800))
        requests = np.zeros(int(np.searchsorted(ends, 5.0)), REQUEST)
        requests["sent"], requests["ended"], requests["answered"] = (
            ends[: requests.size],
            ends[1 : requests.size + 1],
            True,
        )
        run = LoadRun(Schedule("one client", 5.0, clients=1), requests, first_s=0.5)
        bounds, _ = throughput_bounds(rows_per_second(run, [ROWS[:1]]), low_level=0.95, high_level=0.999)
        low_too_high += bounds.low > 100
        high_too_low += bounds.high < 100
    assert low_too_high <= 20  # 10 are expected
    assert high_too_low <= 2


def test_rows_without_an_answer_do_not_count(measured, load):
    evidence = measured(steady(load, failed=range(0, 1_000, 2)), min_rows_per_s=500)
    assert evidence.value == pytest.approx(400)
    assert evidence.verdict == "FAIL"
    assert "500 requests failed with OSError: refused" in evidence.findings


def test_generator_that_leaves_its_clients_idle_can_pass_and_not_fail(measured, load):
    idle = load(np.full(1_000, 5.0), rate=100, clients=1)
    assert measured(idle, min_rows_per_s=700).verdict == "PASS"
    evidence = measured(idle, min_rows_per_s=900)
    assert (evidence.verdict, evidence.interval.high) == ("INCONCLUSIVE", math.inf)
    assert evidence.summary == "the generator kept its clients busy for 50 % of the time only"


def test_real_load_has_all_clients_in_flight_and_fails_no_low_budget():
    evidence = ms.measure_throughput(
        lambda x: time.sleep(0.001) or x, ROWS, min_rows_per_s=1, clients=3, duration_s=0.3
    )
    assert evidence.verdict != "FAIL"
    assert evidence.details["most_in_flight"] == 3
    assert evidence.details["load"] == "3 clients"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min_rows_per_s": 0}, "min_rows_per_s must be a positive number of rows per second"),
        ({"min_rows_per_s": 5, "clients": 0}, "clients must be a whole number"),
        ({"min_rows_per_s": 5, "duration_s": math.nan}, "duration_s must be a positive number"),
    ],
)
def test_invalid_arguments_are_named(given, message):
    with pytest.raises(UsageError, match=message):
        ms.measure_throughput(np.negative, ROWS, **given)
