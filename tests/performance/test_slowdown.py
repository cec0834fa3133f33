"""The paired comparison, on a simulated clock: durations are drawn, and nothing waits."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.performance import slowdown
from pytest_modelserve.performance.slowdown import time_pairs
from pytest_modelserve.performance.timing import Clocks

X = np.zeros((1, 1), np.float32)


class Host:
    """A clock that moves by what calls cost; its speed wanders, and now and then it does something else."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.speed = 1.0

    def clock(self) -> int:
        return int(self.now)

    def call(self, cost_ns: float) -> Callable[..., Any]:
        def run(x: Any) -> Any:
            self.speed = min(3.0, max(0.5, self.speed * self.rng.lognormvariate(0, 0.02)))
            burst = 2_000_000 if self.rng.random() < 0.01 else 0
            self.now += cost_ns * self.speed * self.rng.lognormvariate(0, 0.05) + burst
            return x

        return run


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ms.Evidence]:
    """The evidence for a true slowdown on a simulated host."""

    def judge(true_slowdown: float, max_slowdown: float = 1.10, seed: int = 0, **options: Any) -> ms.Evidence:
        host = Host(seed)
        monkeypatch.setattr(slowdown, "Clocks", lambda: Clocks(wall=host.clock))
        candidate, reference = ms.serve(host.call(100_000 * true_slowdown)), ms.serve(host.call(100_000))
        return ms.measure_not_slower(candidate, reference, X, max_slowdown=max_slowdown, seed=seed, **options)

    return judge


@pytest.mark.parametrize(
    ("true_slowdown", "verdict"),
    [(1.0, ms.Verdict.PASS), (1.10, ms.Verdict.INCONCLUSIVE), (1.25, ms.Verdict.FAIL), (0.5, ms.Verdict.PASS)],
)
def test_three_verdicts(judged: Callable[..., ms.Evidence], true_slowdown: float, verdict: ms.Verdict) -> None:
    evidence = judged(true_slowdown)
    assert evidence.verdict is verdict
    assert evidence.quantities[0].value == pytest.approx(true_slowdown, rel=0.05)


def test_clear_case_needs_few_pairs(judged: Callable[..., ms.Evidence]) -> None:
    assert judged(2.0).n == 20
    assert judged(1.10).n == 800


def test_model_against_itself_never_fails(judged: Callable[..., ms.Evidence]) -> None:
    verdicts = [judged(1.0, seed=seed).verdict for seed in range(60)]
    assert verdicts.count(ms.Verdict.FAIL) == 0
    assert verdicts.count(ms.Verdict.PASS) >= 57


def test_error_rates_hold_over_the_looks(judged: Callable[..., ms.Evidence]) -> None:
    """A candidate exactly on its budget, with both rates raised to 20 % so that 200 runs can see them: neither verdict
    may come more often than that, however often the gate looks (one-sided binomial test at 1 in 1,000: 60 of 200)."""
    verdicts = [judged(1.10, seed=seed, confidence=0.8, alpha=0.2).verdict for seed in range(200)]
    assert verdicts.count(ms.Verdict.PASS) <= 60
    assert verdicts.count(ms.Verdict.FAIL) <= 60
    assert verdicts.count(ms.Verdict.INCONCLUSIVE) < 200


def test_order_within_pairs_is_shuffled() -> None:
    order: list[int] = []
    calls = (lambda: order.append(0), lambda: order.append(1))
    ticks = iter(range(10_000))
    time_pairs(calls, 100, repeats=1, clock=lambda: next(ticks), rng=random.Random(0))
    first = order[::2]
    assert sorted(order[:2]) == [0, 1]
    assert 30 < sum(first) < 70


@pytest.mark.parametrize("budget", [1.0, 0.9, 1.02, float("nan")])
def test_budget_below_the_resolution_is_refused(budget: float) -> None:
    model = ms.serve(lambda x: x)
    with pytest.raises(ms.UsageError, match=r"max_slowdown is a factor of at least 1.03"):
        ms.measure_not_slower(model, model, X, max_slowdown=budget)


def test_real_clock_sees_twice_the_work() -> None:
    def work(times: int) -> Callable[[Any], Any]:
        return lambda _: np.linalg.matrix_power(M, 2**times)

    M = np.eye(100)
    once, twice = ms.serve(work(2), name="once"), ms.serve(work(4), name="twice")
    with pytest.raises(ms.GateFailure, match="not slower: the candidate is slower than its budget allows"):
        ms.assert_not_slower(twice, once, X, max_slowdown=1.2)
    assert ms.assert_not_slower(once, twice, X, max_slowdown=1.2).quantities[0].value < 0.9
