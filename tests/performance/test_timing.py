"""Timed calls on given clocks, the host lock, and the state of the host."""

import gc
import random
import threading
import time

import numpy as np
import pytest

from pytest_modelserve.performance import timing
from pytest_modelserve.performance.timing import (
    CallTimes,
    Clocks,
    TimeBudget,
    host_lock,
    host_state,
    run_delay_clock,
    time_blocks,
    time_calls,
    warm_up,
)
from tests.performance.simulated import FakeClock


def test_calls_are_timed_by_both_clocks():
    clock = FakeClock()
    found = time_calls(clock.call(1e6), 3, clocks=Clocks(wall=clock, cpu=lambda: 0))
    assert found.wall_ms.tolist() == [1.0, 1.0, 1.0]
    assert found.cpu_ms is not None
    assert found.cpu_ms.tolist() == [0.0, 0.0, 0.0]


def test_run_delay_is_subtracted_from_wall_time():
    wall, delay = FakeClock(), FakeClock()
    delays = iter([0, 4e6, 0])

    def call():
        interrupted = next(delays)
        delay.spend(interrupted)
        wall.spend(1e6 + interrupted)

    found = time_calls(call, 3, clocks=Clocks(wall=wall, cpu=lambda: 0, run_delay=delay))
    assert found.wall_ms.tolist() == [1.0, 5.0, 1.0]
    assert found.undisturbed_ms.tolist() == [1.0, 1.0, 1.0]
    assert found.disturbed == pytest.approx(1 / 3)


def test_delay_between_two_calls_is_not_subtracted():
    times = CallTimes(np.array([1.0, 1.0]), delay_ms=np.array([4.0, 0.25]))
    assert times.undisturbed_ms.tolist() == [1.0, 0.75]


def test_parts_of_a_run_are_joined_by_every_clock():
    first, later = CallTimes(np.ones(2), delay_ms=np.zeros(2)), CallTimes(np.ones(1), delay_ms=np.ones(1))
    joined = CallTimes(np.zeros(0)).followed_by(first).followed_by(later)
    assert joined.cpu_ms is None
    assert joined.delay_ms is not None
    assert joined.delay_ms.tolist() == [0, 0, 1]


def thread_folder(root, text):
    path = root / str(threading.get_native_id()) / "schedstat"
    path.parent.mkdir()
    path.write_text(text)
    return path


def test_run_delay_is_the_second_figure_of_schedstat(tmp_path):
    path = thread_folder(tmp_path, "36070318 105240634 25\n")
    with run_delay_clock(tmp_path) as clock:
        assert clock is not None
        assert clock() == 105_240_634
        path.write_text("36070318 205240634 26\n")
        assert clock() == 205_240_634


def test_system_that_does_not_count_has_no_run_delay(tmp_path):
    with run_delay_clock(tmp_path) as missing:
        assert missing is None
    thread_folder(tmp_path, "0 0 0\n")
    with run_delay_clock(tmp_path) as uncounted:
        assert uncounted is None


def test_kernel_counts_what_other_processes_take():
    """Run delay and CPU time never exceed wall time together, and the run delay never falls."""
    with run_delay_clock() as clock:
        if clock is None:
            pytest.skip("this system does not report run delays")
        # From the outer reading to the inner one, as the thread may lose the CPU between any two.
        wall, delay, cpu = time.perf_counter_ns(), clock(), time.thread_time_ns()
        sum(range(300_000))
        cpu = time.thread_time_ns() - cpu
        delay = clock() - delay
        wall = time.perf_counter_ns() - wall
        assert 0 <= delay <= wall - cpu + 1_000_000


def test_no_call_begins_after_the_deadline():
    clock = FakeClock()
    assert len(time_calls(clock.call(10), 100, clocks=Clocks(wall=clock, cpu=lambda: 0), deadline_ns=35)) == 4


def test_garbage_collector_is_off_during_calls_and_restored():
    seen = []
    time_calls(lambda: seen.append(gc.isenabled()), 1, clocks=Clocks())
    assert seen == [False]
    assert gc.isenabled()


def test_warm_up_ignores_the_first_calls():
    durations = iter([9_000] * 5 + [10] * 5)
    clock = FakeClock()
    assert warm_up(lambda: clock.spend(next(durations)), clock=clock) == 10


def test_warm_up_of_slow_calls_ends_early():
    clock = FakeClock()
    assert warm_up(clock.call(1.5e9), clock=clock) == 1.5e9
    assert clock.now == 2 * 1.5e9


def test_error_during_warm_up_names_the_call():
    with pytest.raises(ZeroDivisionError) as error:
        warm_up(lambda: 1 // 0, clock=lambda: 0)
    assert error.value.__notes__ == ["raised by warm-up call 1 of 10"]


def test_one_thread_holds_the_host_lock_at_a_time(tmp_path):
    inside, most = [0], [0]

    def work():
        for _ in range(20):
            with host_lock(tmp_path) as held:
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


def test_gate_runs_without_a_lock_that_is_not_free_or_cannot_be_written(tmp_path):
    with host_lock(tmp_path) as first, host_lock(tmp_path, timeout_s=0.02) as second:
        assert (first, second) == (True, False)
    (tmp_path / "occupied").write_text("")
    with host_lock(tmp_path / "occupied") as held:
        assert not held


def test_user_without_a_name_holds_the_lock_too(tmp_path, monkeypatch):
    """A container may run under a number that no user has."""

    def no_name():
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(timing.getpass, "getuser", no_name)
    with host_lock(tmp_path) as held:
        assert held
        assert [path.name for path in tmp_path.iterdir()] == ["pytest_modelserve-timing-unknown.lock"]


def test_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), host_lock(tmp_path):
        raise RuntimeError
    with host_lock(tmp_path, timeout_s=0.02) as held:
        assert held


def test_waiting_for_the_lock_is_not_counted(monkeypatch, tmp_path):
    clock = FakeClock()
    budget = TimeBudget(1.0, Clocks(wall=clock))
    original = timing.host_lock

    def slow_lock():
        clock.spend(5e9)
        return original(tmp_path)

    monkeypatch.setattr(timing, "host_lock", slow_lock)
    with budget.timed() as deadline_ns:
        clock.spend(4e8)
        assert deadline_ns == 6_000_000_000
    assert budget.used_ns == 400_000_000
    assert not budget.is_used_up
    clock.spend(6e8)
    assert budget.is_used_up


@pytest.fixture
def root(tmp_path):
    for name, text in {
        "proc/pressure/cpu": "some avg10=12.50 avg60=0.58 avg300=11.06 total=3252601104\nfull avg10=0.00 avg60=0.00\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_host_state_has_what_the_kernel_reports(root):
    state = host_state(root)
    assert state.pop("load_average") >= 0
    assert state == {"pressure_stall_percent": 12.5, "cpu_quota": 1.5, "governor": "powersave"}


def test_missing_quota_is_left_out(root):
    (root / "sys/fs/cgroup/cpu.max").write_text("max 100000\n")
    assert "cpu_quota" not in host_state(root)


def test_first_version_of_cgroups_is_read_too(tmp_path):
    folder = tmp_path / "sys/fs/cgroup/cpu"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    (folder / "cpu.cfs_quota_us").write_text("50000\n")
    assert host_state(tmp_path)["cpu_quota"] == 0.5
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert set(host_state(tmp_path)) <= {"load_average"}


def test_calls_of_several_models_are_timed_side_by_side_in_random_order():
    now, order = [0], []

    def call(name, takes_ns):
        def run():
            order.append(name)
            now[0] += takes_ns

        return run

    calls = [call("a", 100), call("b", 300), call("c", 50)]
    durations = time_blocks(calls, [2, 1, 4], 20, clock=lambda: now[0], rng=random.Random(0))
    np.testing.assert_allclose(durations, np.tile([100, 300, 50], (20, 1)))
    assert (order.count("a"), order.count("b"), order.count("c")) == (40, 20, 80)
    firsts = {order[start] for start in range(0, len(order), 7)}
    assert firsts == {"a", "b", "c"}
