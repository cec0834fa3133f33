"""Budgets of the first answer, over given starts."""

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.performance import cold_start
from pytest_modelserve.performance.cold_start import median_starts
from pytest_modelserve.performance.fresh_process import FreshStart

X = np.ones((4, 64), np.float32)
RATES = {"confidence": 0.95, "alpha": 0.001}


def start(wall, cpu, run_delay=None):
    return FreshStart(wall * 0.8, cpu * 0.8, wall * 0.2, cpu * 0.2, 0, 1, run_delay)


@pytest.fixture
def starts(monkeypatch):
    """Fresh processes that take so many milliseconds of wall and CPU time."""

    def given(wall, cpu, run_delay=None):
        monkeypatch.setattr(
            cold_start, "start_in_fresh_process", lambda job, inputs, time_limit_s: start(wall, cpu, run_delay)
        )

    return given


@pytest.mark.parametrize(
    ("wall", "cpu", "budgets", "verdict", "n"),
    [
        (8, 8, {"max_ms": 10}, ms.Verdict.PASS, 6),
        (20, 20, {"max_ms": 10}, ms.Verdict.FAIL, 10),
        (20, 8, {"max_ms": 10}, ms.Verdict.INCONCLUSIVE, 10),  # the host was busy
        (20, 8, {"max_cpu_ms": 10}, ms.Verdict.PASS, 6),
        (8, 20, {"max_cpu_ms": 10}, ms.Verdict.FAIL, 10),
        (8, 20, {"max_ms": 10, "max_cpu_ms": 10}, ms.Verdict.FAIL, 11),
    ],
)
def test_verdicts_by_two_clocks(starts, small_model, wall, cpu, budgets, verdict, n):
    starts(wall, cpu)
    evidence = ms.measure_cold_start(small_model, X, **budgets)
    assert (evidence.verdict, evidence.n) == (verdict, n)


@pytest.mark.parametrize(
    ("wall", "cpu", "run_delay", "verdict"),
    [
        (20, 8, 12, ms.Verdict.PASS),  # the host was busy
        (20, 8, 2, ms.Verdict.FAIL),  # the start waited for a disk by itself
        (50, 20, 30, ms.Verdict.FAIL),
    ],
)
def test_time_of_other_processes_does_not_count(starts, small_model, wall, cpu, run_delay, verdict):
    starts(wall, cpu, run_delay)
    evidence = ms.measure_cold_start(small_model, X, max_ms=10)
    assert evidence.verdict is verdict
    values = {quantity.name: quantity.value for quantity in evidence.quantities}
    assert (values["start"], values["wall start"]) == pytest.approx((wall - run_delay, wall))


def test_session_and_first_call_have_their_own_figures(starts, small_model):
    starts(20, 10)
    evidence = ms.measure_cold_start(small_model, X, max_ms=15)
    values = {quantity.name: quantity.value for quantity in evidence.quantities}
    assert values == pytest.approx({"start": 20, "session": 16, "session CPU": 8, "first call": 4, "first call CPU": 2})
    assert evidence.findings == (
        "noisy host, or waiting for a disk: the start is too slow by wall time (20 ms), but not by CPU time (10 ms)",
    )


def test_several_threads_cannot_excuse_wall_time():
    (quantity,) = median_starts([start(20, 60)] * 10, max_cpu_ms=None, max_ms=10, **RATES)
    assert quantity.verdict is ms.Verdict.FAIL
    assert quantity.interval is not None
    assert quantity.interval.low == pytest.approx(20)


def test_real_start_is_inside_a_minute(small_model):
    evidence = ms.assert_cold_start(small_model, X, max_cpu_ms=60_000, confidence=0.6)
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.n == 3


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ({}, "give max_cpu_ms, max_ms, or both"),
        ({"max_ms": -1}, "max_ms must be a positive number of milliseconds; got -1"),
        ({"max_cpu_ms": float("nan")}, "max_cpu_ms"),
    ],
)
def test_invalid_budget_is_refused(budgets, message, small_model):
    with pytest.raises(ms.UsageError, match=message):
        ms.measure_cold_start(small_model, X, **budgets)
