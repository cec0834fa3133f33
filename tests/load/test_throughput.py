"""Rows per second while clients always have a request in flight."""

import math
import time

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.errors import UsageError
from pytest_modelserve.load import throughput
from pytest_modelserve.load.throughput import rows_per_second

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


def test_real_load_of_several_clients_passes():
    evidence = ms.assert_throughput(lambda x: time.sleep(0.001) or x, ROWS, min_rows_per_s=1, clients=3, duration_s=0.3)
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
