"""Latency budgets, judged on given durations; one test alone reads a real clock."""

from __future__ import annotations

import time
from itertools import count
from typing import Any

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.performance.latency import judge_latency
from pytest_modelserve.performance.timing import CallTimes, Clocks, time_calls, warm_up

X = np.zeros((1, 1), np.float32)
LEVELS: dict[str, Any] = {"quantile": 0.95, "low_level": 0.999, "high_level": 0.95}


def times(wall: float, cpu: float, n: int = 472) -> CallTimes:
    """Durations from 0.5 to 1.5 times the given ones, spread evenly."""
    spread = np.linspace(0.5, 1.5, n)
    return CallTimes(wall * spread, cpu * spread)


@pytest.mark.parametrize(
    ("wall", "cpu", "verdict"),
    [
        (1.0, 1.0, ms.Verdict.PASS),
        (1.38, 1.38, ms.Verdict.INCONCLUSIVE),
        (4.0, 4.0, ms.Verdict.FAIL),
        (4.0, 1.0, ms.Verdict.INCONCLUSIVE),  # the host was busy, the model was not slow
    ],
)
def test_three_verdicts_by_two_clocks(wall: float, cpu: float, verdict: ms.Verdict) -> None:
    judged = judge_latency(times(wall, cpu), **LEVELS, works_in_this_thread=True)
    assert judged.verdict(2.0) is verdict


def test_busy_host_is_told() -> None:
    judged = judge_latency(times(4.0, 1.0), **LEVELS, works_in_this_thread=True)
    assert judged.findings(2.0) == (
        "noisy host: by wall time the call is too slow (5.8 ms), by the thread's own CPU time it is not (1.45 ms)",
    )
    slow = judge_latency(times(4.0, 3.9), **LEVELS, works_in_this_thread=True)
    assert slow.findings(2.0) == ("the thread's own CPU time exceeds the budget too: 5.66 ms",)


def test_model_that_waits_is_judged_by_wall_time() -> None:
    judged = judge_latency(times(4.0, 0.0), **LEVELS, works_in_this_thread=False)
    assert judged.verdict(2.0) is ms.Verdict.FAIL


def test_calls_are_timed_by_the_clocks_given() -> None:
    ticks = count(step=1_000_000)
    found = time_calls(lambda: None, 3, clocks=Clocks(wall=lambda: next(ticks), cpu=lambda: 0))
    assert found.wall_ms.tolist() == [1.0, 1.0, 1.0]
    assert found.cpu_ms.tolist() == [0.0, 0.0, 0.0]


def test_warm_up_ignores_the_first_calls() -> None:
    durations = iter([9_000] * 5 + [10] * 5)
    now = [0]

    def call() -> None:
        now[0] += next(durations)

    assert warm_up(call, clock=lambda: now[0]) == 10


def test_model_that_raises_tells_which_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count()

    def fails(x: Any) -> Any:
        if next(calls) == 14:  # ten calls warm up
            raise RuntimeError("out of memory")
        return x

    with pytest.raises(RuntimeError, match="out of memory") as error:
        ms.measure_latency(ms.serve(fails), X, max_ms=1000)
    assert error.value.__notes__ == ["raised by timed call 5 of 472"]


def test_real_clock_sees_a_slow_call_and_a_fast_one() -> None:
    def slow(x: Any) -> Any:
        time.sleep(0.004)
        return x

    evidence = ms.measure_latency(ms.serve(slow), X, max_ms=0.5)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.gate == "latency p95"
    assert evidence.quantities[0].value > 4
    assert ms.measure_latency(ms.serve(lambda x: x), X, max_ms=1000).verdict is ms.Verdict.PASS


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"max_ms": 0}, "max_ms is a positive number of milliseconds, not 0"),
        ({"max_ms": float("nan")}, "max_ms is a positive number"),
        ({"max_ms": 1, "quantile": 1.0}, "quantile lies between 0 and 1"),
        ({"max_ms": 1, "confidence": 95}, "confidence is a probability"),
    ],
)
def test_impossible_budget_is_refused(budget: dict[str, Any], message: str) -> None:
    with pytest.raises(ms.UsageError, match=message):
        ms.measure_latency(ms.serve(lambda x: x), X, **budget)
