"""Turns on the host: one timed gate at a time, and none that hangs for it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pytest_modelserve.performance import timing as turn
from pytest_modelserve.performance.timing import Cap, host_turn


def test_one_holds_the_turn_at_a_time(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(20):
            with host_turn(tmp_path) as held:
                assert held
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_patience_ends(tmp_path: Path) -> None:
    with host_turn(tmp_path) as first, host_turn(tmp_path, patience_s=0.02) as second:
        assert (first, second) == (True, False)


def test_folder_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("")
    with host_turn(tmp_path / "occupied") as held:
        assert not held


def test_turn_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), host_turn(tmp_path):
        raise RuntimeError
    with host_turn(tmp_path, patience_s=0.02) as held:
        assert held


def test_waiting_for_a_turn_is_not_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0]
    cap = Cap(1.0, wall=lambda: now[0])
    original = turn.host_turn

    def slow_to_come() -> object:
        now[0] += 5_000_000_000
        return original(tmp_path)

    monkeypatch.setattr(turn, "host_turn", slow_to_come)
    with cap.turn() as deadline_ns:
        now[0] += 400_000_000
        assert deadline_ns == 6_000_000_000
    assert cap.used_ns == 400_000_000
    assert not cap.is_used_up
    now[0] += 600_000_000
    assert cap.is_used_up
