"""How calls are timed, on given clocks."""

from __future__ import annotations

import gc
from itertools import count

import pytest

from pytest_modelserve.performance.timing import Clocks, time_calls, time_in_turn, warm_up


def test_calls_are_timed_by_the_clocks_given() -> None:
    now = [0]

    def call() -> None:
        now[0] += 1_000_000

    found = time_calls(call, 3, clocks=Clocks(wall=lambda: now[0], cpu=lambda: 0))
    assert found.wall_ms.tolist() == [1.0, 1.0, 1.0]
    assert found.cpu_ms.tolist() == [0.0, 0.0, 0.0]


def test_calls_take_turns() -> None:
    now, order = [0], []

    def call(name: str, ns: int) -> None:
        order.append(name)
        now[0] += ns

    clocks = Clocks(wall=lambda: now[0], cpu=lambda: now[0])
    a, b = time_in_turn((lambda: call("a", 1_000_000), lambda: call("b", 2_000_000)), 2, clocks=clocks)
    assert order == ["a", "b", "a", "b"]
    assert (a.wall_ms.tolist(), b.cpu_ms.tolist()) == ([1.0, 1.0], [2.0, 2.0])


def test_no_call_begins_after_the_deadline() -> None:
    now = [0]

    def call() -> None:
        now[0] += 10

    clocks = Clocks(wall=lambda: now[0], cpu=lambda: 0)
    assert len(time_calls(call, 100, clocks=clocks, deadline_ns=35)) == 4


def test_collector_rests_inside_and_is_left_as_it_was() -> None:
    seen = []
    time_calls(lambda: seen.append(gc.isenabled()), 1, clocks=Clocks())
    assert seen == [False]
    assert gc.isenabled()


def test_warm_up_ignores_the_first_calls() -> None:
    durations = iter([9_000] * 5 + [10] * 5)
    now = [0]

    def call() -> None:
        now[0] += next(durations)

    assert warm_up(call, clock=lambda: now[0]) == 10


def test_warm_up_of_slow_calls_ends_early() -> None:
    now, made = [0], count()

    def call() -> None:
        next(made)
        now[0] += 1_500_000_000

    assert warm_up(call, clock=lambda: now[0]) == 1.5e9
    assert next(made) == 2


def test_error_while_warming_up_names_the_call() -> None:
    def fails() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError) as error:
        warm_up(fails, clock=lambda: 0)
    assert error.value.__notes__ == ["raised by warm-up call 1 of 10"]
