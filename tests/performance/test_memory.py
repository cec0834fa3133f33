"""Memory budgets over given starts, and growth of memory on given readings."""

from __future__ import annotations

import math
import mmap
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.evidence import Budget
from pytest_modelserve.performance import memory
from pytest_modelserve.performance.fresh_worker import FreshStart, peak_bytes, reset_peak, resident_bytes
from pytest_modelserve.performance.memory import Readings, calls_needed, growth_per_call, read_memory
from tests.performance.simulated import FakeClock

KIB = 1024
MIB = 1 << 20
X = np.ones((4, 64), np.float32)
ROW = np.ones((1, 1), np.float32)


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Fresh processes whose peaks, in MiB above a baseline of 70, are these in turn."""

    def given(*mib: float) -> None:
        turn = cycle(mib)
        monkeypatch.setattr(
            memory,
            "start_in_fresh_process",
            lambda job, inputs, time_limit_s: FreshStart(1, 1, 1, 1, 70 * MIB, int((70 + next(turn)) * MIB)),
        )

    return given


def test_verdict_follows_the_median_peak(peaks: Any, small_model: ms.Artifact) -> None:
    peaks(10, 10.1, 9.9)
    passed = ms.measure_memory(small_model, X, max_mib=11)
    assert (passed.verdict, passed.n, passed.n_unit) == (ms.Verdict.PASS, 6, "fresh processes")
    failed = ms.measure_memory(small_model, X, max_mib=9)
    assert (failed.verdict, failed.n) == (ms.Verdict.FAIL, 10)
    straddling = ms.measure_memory(small_model, X, max_mib=10)
    assert (straddling.verdict, straddling.n) == (ms.Verdict.INCONCLUSIVE, 10)


def test_one_outlying_process_does_not_decide(peaks: Any, small_model: ms.Artifact) -> None:
    peaks(30, *[10] * 9)
    assert ms.measure_memory(small_model, X, max_mib=11).verdict is ms.Verdict.PASS


def test_failure_text_has_baseline_and_spread(peaks: Any, small_model: ms.Artifact) -> None:
    peaks(*[20, 20.25] * 5)
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_memory(small_model, X, max_mib=8)
    assert (
        str(failure.value)
        == f"""\
memory: serving takes more memory than its budget allows

  peak       20.0 MiB   (spread 256.0 KiB → baseline 70.0 MiB)
  interval   [20.0 MiB, 20.2 MiB]  low at 99.9 %, high at 97.5 %, sign interval of the median, one of 2 interim analyses, n = 10 fresh processes
  budget     at most 8.0 MiB
  verdict    FAIL: the whole interval lies above the budget

  candidate  small  sha256 {small_model.sha256[:12]}…
  next       serve smaller batches, compress the weights (`int8-dynamic`), or raise max_mib"""
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_mib": 0}, "max_mib must be a positive number of MiB; got 0"), ({"max_mib": 1, "alpha": 2}, "alpha")],
)
def test_invalid_memory_budget_is_refused(options: Any, message: str, small_model: ms.Artifact) -> None:
    with pytest.raises(ms.UsageError, match=message):
        ms.measure_memory(small_model, X, **options)


def test_host_without_proc_is_named(monkeypatch: pytest.MonkeyPatch, small_model: ms.Artifact, tmp_path: Path) -> None:
    missing = tmp_path / "status"
    monkeypatch.setattr(memory, "check_host", lambda: resident_bytes(missing))
    with pytest.raises(ms.ModelServeError) as error:
        ms.measure_memory(small_model, X, max_mib=100)
    assert str(error.value) == (f"VmRSS is missing from {missing}, from which memory is read: run this gate on Linux")


def test_memory_is_read_in_bytes(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t   2048 kB\nVmRSS:\t   1024 kB\n")
    assert (resident_bytes(status), peak_bytes(status)) == (1 << 20, 2 << 20)
    status.write_text("Name:\tpython\n")
    with pytest.raises(ms.ModelServeError, match="VmHWM"):
        peak_bytes(status)


def test_peak_is_reset_where_the_kernel_allows_it() -> None:
    big = np.ones(64 * MIB, np.uint8)
    before = peak_bytes()
    assert big.all()
    del big
    if reset_peak():
        assert peak_bytes() < before


def growth_evidence(monkeypatch: pytest.MonkeyPatch, memory_after: Any, max_kib: float = 1.0) -> ms.Evidence:
    """The evidence for a model after whose n-th call the process holds `memory_after(n)` bytes."""
    calls = [0]

    def model(x: Any) -> Any:
        calls[0] += 1
        return x

    monkeypatch.setattr(memory, "resident_bytes", lambda: int(memory_after(calls[0])))
    return ms.measure_memory_growth(ms.serve(model), ROW, max_kib_per_call=max_kib)


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
    evidence = growth_evidence(monkeypatch, in_steps(kib_per_call * KIB))
    assert evidence.verdict is verdict
    assert evidence.quantities[0].value == pytest.approx(kib_per_call * KIB, rel=0.1)


def test_growth_during_warm_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = growth_evidence(monkeypatch, lambda n: (100 << 20) + min(n, 1000) * 100 * KIB)
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.quantities[0].value == 0


def test_single_jump_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = growth_evidence(monkeypatch, lambda n: (100 << 20) + (50 << 20) * (n > 4000))
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE


def test_memory_that_oscillates_is_not_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    evidence = growth_evidence(monkeypatch, lambda n: (100 << 20) + rng.integers(0, 256 * KIB))
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


def test_high_end_allows_for_growth_hidden_in_a_heap_step() -> None:
    _, interval = growth_per_call(
        Readings(np.full(21, 5e6), 264), Budget("at_most", 1024), confidence=0.95, alpha=0.001
    )
    assert (interval.low, interval.high) == (0, pytest.approx(132 * KIB / 5280))


def test_smaller_budget_takes_more_calls() -> None:
    assert calls_needed(1024) == 5280
    assert calls_needed(102.4) == 52_800
    assert calls_needed(1 << 30) == 400


def test_failure_text_has_total_growth_and_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [0]

    def model(x: Any) -> Any:
        calls[0] += 1
        return x

    monkeypatch.setattr(memory, "resident_bytes", lambda: (100 << 20) + calls[0] * 4096)
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_no_leak(ms.serve(model, name="cache"), ROW, max_kib_per_call=1)
    assert (
        str(failure.value)
        == """\
memory growth: memory grows with every call

  growth per call 4.0 KiB   (total growth 20.6 MiB → resident 125.8 MiB)
  interval   [4.0 KiB, 4.0 KiB]  low at 99.9 %, high at 95 %, mean growth over 20 segments, Student's t or Hall's transformation, n = 5280 calls
  budget     at most 1.0 KiB
  verdict    FAIL: the whole interval lies above the budget

  candidate  cache
  next       look for references that keep inputs or outputs alive (caches, lists, callbacks), or measure in a process where nothing else allocates"""
    )


def test_slow_model_ends_at_the_time_limit() -> None:
    for limit_s, calls in ((300.0, 200), (50.0, 0)):
        clock = FakeClock()
        readings = read_memory(clock.call(1e9), 400, read=lambda: 5, wall=clock, time_limit_s=limit_s)
        assert (clock.now, readings.calls, readings.in_time) == (limit_s * 1e9, calls, False)
        _, interval = growth_per_call(readings, Budget("at_most", 1), confidence=0.95, alpha=0.001)
        assert (interval.low, interval.high) == (-math.inf, math.inf)


def test_model_that_raises_tells_which_call() -> None:
    made = count(1)

    def call() -> None:
        if next(made) == 150:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError) as error:
        read_memory(call, 400, read=lambda: 5, wall=lambda: 0, time_limit_s=1)
    assert error.value.__notes__ == ["raised by call 150 of 500"]


def test_real_leak_is_found() -> None:
    kept: list[mmap.mmap] = []

    def leak(x: Any) -> Any:
        """Keep pages that are new: an object could move into a hole that earlier tests left in the heap."""
        kept.append(mmap.mmap(-1, 200_000))
        kept[-1].write(bytes(200_000))
        return x

    with pytest.raises(ms.GateFailure, match="memory growth: memory grows with every call"):
        ms.assert_no_leak(ms.serve(leak), ROW, max_kib_per_call=20)
    for pages in kept:
        pages.close()


@pytest.mark.parametrize("budget", [0, -1, float("nan")])
def test_invalid_growth_budget_is_refused(budget: float) -> None:
    with pytest.raises(ms.UsageError, match="max_kib_per_call must be a positive number of KiB"):
        ms.measure_memory_growth(ms.serve(lambda x: x), ROW, max_kib_per_call=budget)
