"""How pairs are timed."""

from __future__ import annotations

import math
import random
from itertools import count

from pytest_modelserve.performance.slowdown import Pairing, pairing_for


def test_order_within_pairs_is_shuffled() -> None:
    order: list[int] = []
    calls = (lambda: order.append(0), lambda: order.append(1))
    ticks = count()
    Pairing(lambda: next(ticks), lambda: 0).log_ratios(calls, 100, rng=random.Random(0))
    first = order[::2]
    assert sorted(order[:2]) == [0, 1]
    assert 30 < sum(first) < 70


def test_ratio_is_of_the_two_blocks() -> None:
    now = [0]

    def spend(ns: int) -> None:
        now[0] += ns

    pairing = Pairing(lambda: now[0], lambda: now[0], repeats=3)
    ratios = pairing.log_ratios((lambda: spend(300), lambda: spend(100)), 2, rng=random.Random(0))
    assert [round(math.exp(ratio), 6) for ratio in ratios] == [3.0, 3.0]


def test_blocks_fill_a_fifth_of_a_millisecond_of_the_slower_model() -> None:
    now = [0]

    def spend(ns: int) -> None:
        now[0] += ns

    calls = (lambda: spend(10_000), lambda: spend(20_000))
    clock = lambda: now[0]  # noqa: E731
    assert pairing_for(calls, clock=clock, wall=clock, quantile=None) == (Pairing(clock, clock, None, 10), 0.5)
    assert pairing_for(calls, clock=clock, wall=clock, quantile=0.95)[0].repeats == 100
    assert pairing_for(calls, clock=clock, wall=clock, quantile=0.1)[0].repeats == 50


def test_no_call_begins_after_the_deadline() -> None:
    now = [0]

    def spend() -> None:
        now[0] += 10

    for quantile in (None, 0.9):
        now[0] = 0
        pairing = Pairing(lambda: now[0], lambda: now[0], quantile, repeats=1)
        ratios = pairing.log_ratios((spend, spend), 100, rng=random.Random(0), deadline_ns=45)
        assert (len(ratios), now[0]) == (2, 50)
