"""Growth of memory, on given readings."""

from __future__ import annotations

import math
import mmap
from itertools import count
from typing import Any

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.evidence import Budget
from pytest_modelserve.performance import memory as leak
from pytest_modelserve.performance.memory import Readings, calls_for, growth_per_call, read_while_calling

X = np.ones((1, 1), np.float32)
KIB = 1024


def measured(monkeypatch: pytest.MonkeyPatch, memory_after: Any, max_kib: float = 1.0) -> ms.Evidence:
    """The evidence for a model after whose n-th call the process holds `memory_after(n)` bytes."""
    calls = [0]

    def model(x: Any) -> Any:
        calls[0] += 1
        return x

    monkeypatch.setattr(leak, "resident_bytes", lambda: int(memory_after(calls[0])))
    return ms.measure_memory_growth(ms.serve(model), X, max_kib_per_call=max_kib)


def in_steps(bytes_per_call: float) -> Any:
    """As a heap grows: by 132 KiB where the last ones are full."""
    return lambda n: (100 << 20) + 132 * KIB * math.ceil(n * bytes_per_call / (132 * KIB))


@pytest.mark.parametrize(
    ("kib_per_call", "verdict"),
    [
        (0.0, ms.Verdict.PASS),
        (0.5, ms.Verdict.PASS),
        (1.0, ms.Verdict.INCONCLUSIVE),
        (1.5, ms.Verdict.FAIL),
        (4.0, ms.Verdict.FAIL),
    ],
)
def test_heap_that_grows_in_steps(monkeypatch: pytest.MonkeyPatch, kib_per_call: float, verdict: ms.Verdict) -> None:
    evidence = measured(monkeypatch, in_steps(kib_per_call * KIB))
    assert evidence.verdict is verdict
    assert evidence.quantities[0].value == pytest.approx(kib_per_call * KIB, rel=0.1)


def test_growth_while_warming_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = measured(monkeypatch, lambda n: (100 << 20) + min(n, 1000) * 100 * KIB)
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.quantities[0].value == 0


def test_single_jump_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = measured(monkeypatch, lambda n: (100 << 20) + (50 << 20) * (n > 4000))
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE


def test_memory_that_goes_up_and_down_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    evidence = measured(monkeypatch, lambda n: (100 << 20) + rng.integers(0, 256 * KIB))
    assert evidence.verdict is ms.Verdict.PASS


def test_error_rates_hold_for_a_heap_that_grows_by_chance() -> None:
    """Steps that come by chance, exactly at the budget on average; both rates at 10 %. Of 400 runs at most 61 may be
    wrong at 10 % in less than 1 in 1,000."""
    rng = np.random.default_rng(1)
    budget = Budget("at_most", 1.0 * KIB)
    passed = failed = 0
    for _ in range(400):
        steps = rng.poisson(2.0, 20) * 132.0 * KIB
        readings = Readings(np.concatenate([[0], np.cumsum(steps)]), 264)
        value, interval = growth_per_call(readings, budget, confidence=0.9, alpha=0.1)
        verdict = budget.verdict(value, interval)
        passed += verdict is ms.Verdict.PASS
        failed += verdict is ms.Verdict.FAIL
    assert passed <= 61
    assert failed <= 61


def test_hidden_growth_has_room_in_the_high_end() -> None:
    _, interval = growth_per_call(
        Readings(np.full(21, 5e6), 264), Budget("at_most", 1024), confidence=0.95, alpha=0.001
    )
    assert (interval.low, interval.high) == (0, pytest.approx(132 * KIB / 5280))


def test_smaller_budget_takes_more_calls() -> None:
    assert calls_for(1024) == 5280
    assert calls_for(102.4) == 52_800
    assert calls_for(1 << 30) == 400


def test_failure_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [0]

    def model(x: Any) -> Any:
        calls[0] += 1
        return x

    monkeypatch.setattr(leak, "resident_bytes", lambda: (100 << 20) + calls[0] * 4096)
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_no_leak(ms.serve(model, name="cache"), X, max_kib_per_call=1)
    assert (
        str(failure.value)
        == """\
memory growth: memory grows with every call

  growth a call 4.0 KiB   (growth in all 20.6 MiB → resident 125.8 MiB)
  interval   [4.0 KiB, 4.0 KiB]  low at 99.9 %, high at 95 %, mean growth over 20 stretches, Student's t or Hall's transformation, n = 5280 calls
  budget     at most 1.0 KiB
  verdict    FAIL: the whole interval lies above the budget

  candidate  cache
  next       look for what keeps inputs or outputs alive (caches, lists, callbacks), or run it in a process where nothing else allocates"""
    )


def test_slow_model_ends_at_the_cap() -> None:
    now = [0]

    def call() -> None:
        now[0] += 1_000_000_000

    for limit_s, calls in ((300.0, 200), (50.0, 0)):
        now[0] = 0
        readings = read_while_calling(call, 400, read=lambda: 5, wall=lambda: now[0], time_limit_s=limit_s)
        assert (now[0], readings.calls, readings.in_time) == (limit_s * 1e9, calls, False)
        _, interval = growth_per_call(readings, Budget("at_most", 1), confidence=0.95, alpha=0.001)
        assert (interval.low, interval.high) == (-math.inf, math.inf)


def test_model_that_raises_tells_which_call() -> None:
    made = count(1)

    def call() -> None:
        if next(made) == 150:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError) as error:
        read_while_calling(call, 400, read=lambda: 5, wall=lambda: 0, time_limit_s=1)
    assert error.value.__notes__ == ["raised by call 150 of 500"]


def test_real_leak_is_found() -> None:
    kept: list[mmap.mmap] = []

    def leak(x: Any) -> Any:
        """Keep pages that are new: an object could move into a hole that earlier tests left in the heap."""
        kept.append(mmap.mmap(-1, 200_000))
        kept[-1].write(bytes(200_000))
        return x

    with pytest.raises(ms.GateFailure, match="memory growth: memory grows with every call"):
        ms.assert_no_leak(ms.serve(leak), X, max_kib_per_call=20)
    for pages in kept:
        pages.close()


@pytest.mark.parametrize("budget", [0, -1, float("nan")])
def test_impossible_budget_is_refused(budget: float) -> None:
    with pytest.raises(ms.UsageError, match="max_kib_per_call is a positive number of KiB"):
        ms.measure_memory_growth(ms.serve(lambda x: x), X, max_kib_per_call=budget)
