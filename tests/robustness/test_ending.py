"""Rows that end a process are made simple with few deaths, and within their time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pytest_modelserve.robustness import minimizer
from pytest_modelserve.robustness.minimizer import Counterexample, minimize_crash
from pytest_modelserve.serving.subprocess_predictor import ProcessCrashError

Rows = dict[str, NDArray[Any]]
DIED = ProcessCrashError("the process that serves m died of SIGFPE")


class Deadly:
    """A process that ends where `rule` holds for one of its rows; counts how often."""

    def __init__(self, rule: Callable[[NDArray[Any]], NDArray[np.bool_]], *, seconds: float = 0.0) -> None:
        self.rule, self.seconds = rule, seconds
        self.deaths = 0

    def __call__(self, rows: Rows) -> ProcessCrashError | None:
        if not self.rule(rows["x"]).any():
            return None
        self.deaths += 1
        time.sleep(self.seconds)
        return DIED


def found(
    rows: NDArray[Any], base: NDArray[Any], crash: Any, error: ProcessCrashError = DIED
) -> tuple[Counterexample, int]:
    return minimize_crash({"x": rows}, {"x": base}, np.arange(len(rows)), crash, error=error)


@pytest.mark.parametrize(("size", "most"), [(10, 20), (150_528, 45)])
def test_one_row_of_a_thousand_and_two_of_its_features_cost_few_deaths(size: int, most: int) -> None:
    count = 1000 if size == 10 else 8
    rows = np.random.default_rng(0).uniform(0.1, 0.4, (count, size)).astype(np.float32)
    rows[count - 3, [1, size - 2]] = 0.87431286
    ends = Deadly(lambda x: (x[:, 1] > 0.5) & (x[:, size - 2] > 0.5))
    least, _ = found(rows, np.zeros_like(rows), ends)
    assert least.changes == ((0, 1), (0, size - 2))
    assert least.base_row == count - 3
    assert least.rows["x"][0, [1, size - 2]].tolist() == pytest.approx([0.8, 0.8], abs=0.3)
    assert (least.crash, least.reproduced, least.message) == ("crashed", True, str(DIED))
    assert least.initial_changes == size
    assert ends.deaths <= most


def test_rows_that_end_it_only_together_stay_together() -> None:
    rows = np.arange(1, 9, dtype=np.float64)[:, None]
    ends = Deadly(lambda x: np.array([{2.0, 7.0} <= set(x[:, 0])]))
    least, _ = found(rows, rows.copy(), ends)
    assert sorted(least.rows["x"][:, 0]) == [2, 7]
    assert least.base_row == 1


def test_a_base_row_that_ends_it_too_has_nothing_changed() -> None:
    least, _ = found(np.ones((1, 5)), np.zeros((1, 5)), Deadly(lambda x: np.ones(len(x), np.bool_)))
    assert least.changes == ()


def test_what_does_not_happen_again_is_told_as_it_was() -> None:
    rows = np.ones((3, 4))
    least, tried = found(rows, np.zeros((3, 4)), lambda rows: None)
    assert (least.reproduced, tried) == (False, 1)
    assert least.rows["x"] is rows
    assert least.message == str(DIED)


@pytest.mark.parametrize("needed", [np.arange(0, 400, 2), np.arange(3)], ids=["many", "few"])
def test_it_stops_in_time_with_rows_that_still_end_it_and_says_so(
    needed: NDArray[np.intp], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minimizer, "CRASH_TIME_S", 0.05)
    ends = Deadly(lambda x: (x[:, needed] > 0.5).all(axis=1), seconds=0.02)
    least, _ = found(np.ones((1, 400)), np.zeros((1, 400)), ends)
    assert ends({"x": least.rows["x"]}) is not None
    assert least.message == f"{DIED}; minimization stopped after 0 s, simpler rows may crash it too"
    assert ends.deaths < 20


def test_time_limits_that_trials_run_into_are_added_to_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minimizer, "CRASH_TIME_S", 0.0)
    ends = Deadly(lambda x: x[:, 3] > 0.5, seconds=0.01)
    least, _ = found(np.ones((1, 8)), np.zeros((1, 8)), ends, ProcessCrashError("late", time_limit_s=0.02))
    assert least.changes == ((0, 3),)
