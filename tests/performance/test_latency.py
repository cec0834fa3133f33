"""Latency budgets, judged on given durations; one test alone reads a real clock."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count, repeat
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pytest_modelserve as ms
from pytest_modelserve.performance import latency
from pytest_modelserve.performance.latency import judge_latency
from pytest_modelserve.performance.timing import CallTimes, Clocks
from tests.performance.simulated import Host, Served

X = np.zeros((1, 1), np.float32)
LEVELS: dict[str, Any] = {"quantile": 0.95, "low_level": 0.999, "high_level": 0.95}


def times(wall: float, cpu: float, n: int = 472, *, sort: bool = False) -> CallTimes:
    """Durations from 0.5 to 1.5 times the given ones, spread evenly, in no order."""
    spread = np.linspace(0.5, 1.5, n)
    if not sort:
        np.random.default_rng(0).shuffle(spread)
    return CallTimes(wall * spread, cpu * spread)


def simulated(monkeypatch: pytest.MonkeyPatch, **clocks: Any) -> None:
    monkeypatch.setattr(latency, "Clocks", lambda: Clocks(**clocks))


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


def test_model_that_waits_is_judged_by_wall_time_and_says_so() -> None:
    judged = judge_latency(times(4.0, 0.0), **LEVELS, works_in_this_thread=False)
    assert judged.verdict(2.0) is ms.Verdict.FAIL
    assert judged.findings(2.0) == (
        "judged by wall time alone: such a model may wait, for a lock or a network, which CPU time misses",
    )


def test_bursts_count_as_one_call_each() -> None:
    """A tenth of the calls is slow, in bursts of 20: the p95 is that of a burst, and 944 calls are few of those."""
    rng = np.random.default_rng(1)
    durations = np.where(np.repeat(rng.random(48) < 0.1, 20)[:944], 4.0, 1.0) * rng.uniform(0.9, 1.1, 944)
    judged = judge_latency(CallTimes(durations, durations), **LEVELS, works_in_this_thread=True)
    assert judged.wall.block != 1
    assert judged.verdict(2.0) is ms.Verdict.INCONCLUSIVE
    assert judged.findings(2.0)[-1].startswith("calls about the quantile depend on each other ")


def test_drift_is_inconclusive() -> None:
    judged = judge_latency(times(1.0, 1.0, sort=True), **LEVELS, works_in_this_thread=True)
    assert judged.verdict(20.0) is ms.Verdict.INCONCLUSIVE
    assert judged.interval.high == math.inf
    assert judged.findings(20.0) == (
        "calls about the quantile depend on each other over some 32 of the 472, so that nothing bounds it: "
        "more calls or a quieter host would",
    )


def test_fast_calls_go_on_for_a_quarter_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]

    def fast(x: Any) -> Any:
        now[0] += 50_000
        return x

    simulated(monkeypatch, wall=lambda: now[0], cpu=lambda: now[0])
    assert ms.measure_latency(ms.serve(fast), X, max_ms=1).n == 5000


def wandering(durations: Iterator[float], monkeypatch: pytest.MonkeyPatch) -> ms.Predictor:
    """A model whose calls take so many milliseconds; the ten of the warm-up one."""
    now, warm = [0.0], count()

    def model(x: Any) -> Any:
        duration = 1.0 if next(warm) < 10 else next(durations, None)
        if duration is None:
            raise RuntimeError("no more calls")
        now[0] += 1e6 * duration
        return x

    simulated(monkeypatch, wall=lambda: int(now[0]), cpu=lambda: int(now[0]))
    return ms.serve(model)


def test_clear_case_is_told_at_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for max_ms, verdict in ((3.0, ms.Verdict.PASS), (1.2, ms.Verdict.FAIL)):
        model = wandering(iter(rng.uniform(1, 2, 10_000)), monkeypatch)
        evidence = ms.measure_latency(model, X, max_ms=max_ms)
        assert evidence.verdict is verdict
        assert evidence.n == evidence.details["looks"][0] == 640
        assert evidence.method.name.endswith(", look 1 of 3")
        assert evidence.method.source.endswith("; Bonferroni over the looks")


def test_close_case_is_looked_at_again_with_more_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The p95 is 1.95 and the budget 1.96: 640 calls cannot tell, 5,000 can."""
    model = wandering(iter(np.random.default_rng(1).uniform(1, 2, 10_000)), monkeypatch)
    evidence = ms.measure_latency(model, X, max_ms=1.96)
    assert evidence.details["looks"] == [640, 1789, 5000]
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.n == evidence.details["looks"][evidence.details["looks_taken"] - 1] > 640


def test_no_look_begins_after_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that take eight times as long as those of the warm-up: 640 of them are over after 5.1 s."""
    evidence = ms.measure_latency(wandering(repeat(8.0), monkeypatch), X, max_ms=8 - 1e-9, quantile=0.95)
    assert evidence.details["looks_taken"] == 1


def test_dependent_calls_are_followed_by_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of 1 ms, and of 2 ms in bursts of 10 that take a fifth of the time, under a budget between them."""
    model = wandering(iter(bursty(np.random.default_rng(0), 10_000, 10, 0.2)), monkeypatch)
    evidence = ms.measure_latency(model, X, max_ms=1.9)
    assert evidence.details["block"] != 1
    assert evidence.details["looks_taken"] > 1


def bursty(rng: np.random.Generator, n: int, length: float, share: float) -> NDArray[np.float64]:
    """0.9 to 1.1, and in bursts of mean `length` that take `share` of the time twice that; from the steady state on."""
    leave = 1 / length
    enter = leave * share / (1 - share)
    inside, slow = rng.random() < share, np.empty(n, dtype=bool)
    for i, u in enumerate(rng.random(n)):
        inside = u >= leave if inside else u < enter
        slow[i] = inside
    return rng.uniform(0.9, 1.1, n) * np.where(slow, 2, 1)


def autoregressive(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """exp(0.2 z) with z standard normal, each 0.6 times the last plus noise."""
    z, noise = np.empty(n), rng.normal(size=n)
    z[0] = noise[0]
    for i in range(1, n):
        z[i] = 0.6 * z[i - 1] + 0.8 * noise[i]
    return np.exp(0.2 * z)


GENERATORS: dict[str, tuple[Callable[[np.random.Generator, int], NDArray[np.float64]], float]] = {
    "independent": (lambda rng, n: rng.uniform(1, 2, n), 1.95),
    "autoregressive": (autoregressive, math.exp(0.2 * 1.6448536269514722)),
    "bursts of 10": (
        lambda rng, n: bursty(rng, n, 10, 0.2),
        1.8 + 0.4 * 0.75,
    ),  # 5 % of the calls, a quarter of those in bursts
}


@pytest.mark.parametrize("name", GENERATORS)
def test_repeated_looks_keep_both_error_rates(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A model whose p95 is the budget is beyond it by a hair, or inside by one: each verdict is wrong for one of them.

    Both rates are set to 5 %, so that 60 runs show them: more than 10 errors of one kind have a chance of 1 in 3,000.
    """
    draw, p95 = GENERATORS[name]
    rng = np.random.default_rng(7)
    verdicts: Counter[ms.Verdict] = Counter()
    taken: Counter[int] = Counter()
    for _ in range(60):
        model = wandering(iter(draw(rng, 6000)), monkeypatch)
        evidence = ms.measure_latency(model, X, max_ms=p95, confidence=0.95, alpha=0.05)
        verdicts[evidence.verdict] += 1
        taken[evidence.details["looks_taken"]] += 1
    assert verdicts[ms.Verdict.PASS] <= 10
    assert verdicts[ms.Verdict.FAIL] <= 10
    assert max(taken) == 3


def test_machine_units_follow_the_speed_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a host that is ten times slower the same budget means the same."""
    for speed in (1, 10):
        now = [0]

        def spend(ns: int, now: list[int] = now) -> None:
            now[0] += ns

        monkeypatch.setattr(
            "pytest_modelserve.performance.latency.calibration_kernel",
            lambda spend=spend, speed=speed: lambda: spend(speed * 100_000),
        )
        simulated(monkeypatch, wall=lambda now=now: now[0], cpu=lambda now=now: now[0])
        model = ms.serve(lambda x, spend=spend, speed=speed: spend(speed * 300_000) or x)
        evidence = ms.measure_latency(model, X, max_machine_units=3.5)
        assert evidence.quantities[0].value == pytest.approx(3.0)
        assert evidence.quantities[0].unit == "ratio"
        assert evidence.verdict is ms.Verdict.PASS
        assert ms.measure_latency(model, X, max_machine_units=2.5).verdict is ms.Verdict.FAIL


def test_model_that_raises_tells_which_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0], count()

    def fails(x: Any) -> Any:
        now[0] += 1_000_000
        if next(calls) == 14:  # ten calls warm up
            raise RuntimeError("out of memory")
        return x

    simulated(monkeypatch, wall=lambda: now[0])
    with pytest.raises(RuntimeError, match="out of memory") as error:
        ms.measure_latency(ms.serve(fails), X, max_ms=1000)
    assert error.value.__notes__ == ["raised by timed call 5 of 640"]


def test_call_that_raises_at_a_later_look_is_counted_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = np.random.default_rng(1).uniform(1, 2, 1000)
    with pytest.raises(RuntimeError) as error:
        ms.measure_latency(wandering(iter(durations), monkeypatch), X, max_ms=1.95)
    assert error.value.__notes__ == ["raised by timed call 1001 of 1789"]


@pytest.mark.parametrize(("seconds", "calls", "timed"), [(3, 20, 19), (100, 1, 0)])
def test_model_that_sleeps_ends_at_the_cap(
    monkeypatch: pytest.MonkeyPatch, seconds: int, calls: int, timed: int
) -> None:
    now, made = [0], [0]

    def sleeps(x: Any) -> Any:
        made[0] += 1
        now[0] += seconds * 1_000_000_000
        return x

    simulated(monkeypatch, wall=lambda: now[0], cpu=lambda: 0)
    evidence = ms.measure_latency(ms.serve(sleeps), X, max_ms=200_000, time_limit_s=60)
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert evidence.n == timed
    assert made[0] <= calls
    assert evidence.quantities[0].interval.high == math.inf
    assert evidence.findings[-1] == (
        f"time_limit_s = 60 left room for {timed} timed calls of about {seconds} s: 59 are needed, {59 * seconds} s"
        if seconds == 3
        else "time_limit_s = 60 left room for 0 timed calls of about 100 s: 59 are needed, 5.9e+03 s"
    )


def test_failed_budget_tells_the_costliest_operators(monkeypatch: pytest.MonkeyPatch, small_model: ms.Artifact) -> None:
    with ms.serve(small_model) as served, pytest.raises(ms.GateFailure) as failure:
        ms.assert_latency(served, np.zeros((4, 64), np.float32), max_ms=1e-6)
    text = str(failure.value)
    assert "costliest operators (a profiling run of its own, on onnxruntime's CPU provider): " in text
    assert "MatMul fc" in text
    assert failure.value.evidence.details["operators"][0].keys() == {"node", "operator", "share"}


def test_real_clock_sees_a_slow_call_and_a_fast_one() -> None:
    def slow(x: Any) -> Any:
        time.sleep(0.004)
        return x

    evidence = ms.measure_latency(ms.serve(slow), X, max_ms=0.5, quantile=0.5)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.gate == "latency p50"
    assert evidence.quantities[0].value > 4


def test_rest_of_the_host_stands_beside_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(0)
    simulated(monkeypatch, wall=host.clock, cpu=host.clock)
    evidence = ms.measure_latency(Served(host, 1_000_000), X, max_ms=1000)
    assert evidence.details["host"]["load_average"] >= 0


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"max_ms": 0}, "max_ms is a positive number of milliseconds, not 0"),
        ({"max_ms": float("nan")}, "max_ms is a positive number"),
        ({"max_machine_units": -1}, "max_machine_units is a positive number of calibration kernels, not -1"),
        ({}, "give one budget: max_ms, or max_machine_units"),
        ({"max_ms": 1, "max_machine_units": 1}, "give one budget"),
        ({"max_ms": 1, "quantile": 1.0}, "quantile lies between 0 and 1"),
        ({"max_ms": 1, "confidence": 95}, "confidence is a probability"),
        ({"max_ms": 1, "time_limit_s": 0}, "time_limit_s is a positive number of seconds"),
    ],
)
def test_impossible_budget_is_refused(budget: dict[str, Any], message: str) -> None:
    with pytest.raises(ms.UsageError, match=message):
        ms.measure_latency(ms.serve(lambda x: x), X, **budget)


def test_input_without_rows_is_refused() -> None:
    with pytest.raises(ms.InputError, match=r"input 'a' of shape \(0, 3\) holds nothing to time"):
        ms.measure_latency(ms.serve(lambda x: x), {"a": np.zeros((0, 3))}, max_ms=1)
