"""When requests are due."""

import math

import numpy as np
import pytest

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.load.schedule import plan_schedule


def plan(**given):
    return plan_schedule(**{"duration_s": 10.0, **given})


def test_poisson_arrivals_have_independent_exponential_gaps_and_the_number_of_their_rate():
    found = plan(rate_qps=1_000)
    gaps = np.diff(found.due_s)
    assert (found.due_s.size, found.rate, found.is_open) == (10_000, 1_000, True)
    assert gaps.mean() == pytest.approx(1e-3, rel=0.03)
    assert gaps.std() == pytest.approx(1e-3, rel=0.05)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.04


def test_seed_decides_poisson_arrivals():
    assert np.array_equal(plan(rate_qps=50).due_s, plan(rate_qps=50).due_s)
    assert not np.array_equal(plan(rate_qps=50).due_s, plan(rate_qps=50, seed=1).due_s)


def test_constant_arrivals_have_equal_gaps():
    assert plan(rate_qps=4, arrivals="constant", duration_s=1).due_s.tolist() == [0.0, 0.25, 0.5, 0.75]


def test_recorded_times_count_from_the_first(tmp_path):
    for name, write in (("a.npy", np.save), ("b.txt", np.savetxt)):
        write(tmp_path / name, np.array([100.0, 100.5, 102.0]))
        assert plan(schedule=tmp_path / name).due_s.tolist() == [0.0, 0.5, 2.0]
    found = plan(schedule=[3.0, 3.0, 4.0])
    assert (found.due_s.tolist(), found.duration_s) == ([0.0, 0.0, 1.0], 1.5)


def test_parts_send_every_request_once():
    whole = plan(rate_qps=10)
    parts = [whole.part(number, 3).due_s for number in range(3)]
    assert np.array_equal(np.sort(np.concatenate(parts)), whole.due_s)
    assert [plan(clients=5).part(number, 2).clients for number in range(2)] == [3, 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "got none"),
        ({"rate_qps": 5, "clients": 2}, "got rate_qps and clients"),
        ({"rate_qps": 0}, "rate_qps must be a positive number of requests per second; got 0"),
        ({"rate_qps": -1}, "got -1"),
        ({"rate_qps": math.nan}, "got nan"),
        ({"rate_qps": math.inf}, "got inf"),
        ({"rate_qps": 5, "duration_s": 0}, "duration_s must be a positive number of seconds"),
        ({"rate_qps": 0.01}, "gives 0 requests"),
        ({"rate_qps": 1e308}, "gives inf requests"),
        ({"rate_qps": 1e9}, "give 1 to 10,000,000"),
        ({"rate_qps": 5, "arrivals": "poison"}, "did you mean 'poisson'"),
        ({"clients": 0}, "clients must be a whole number from 1"),
        ({"clients": 1.5}, "got 1.5"),
        ({"clients": True}, "got True"),
        ({"rate_qps": 5, "seed": -1}, "seed must be a whole number of at least 0; got -1"),
    ],
)
def test_invalid_loads_are_named(given, message):
    with pytest.raises(UsageError, match=message):
        plan(**given)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([], r"at least one due time in seconds, shape \(n,\); got shape \(0,\)"),
        ([[1.0]], "shape"),
        ([0.0, math.nan], "finite seconds; got nan"),
        ([0.0, 2.0, 1.0], "must not descend: request 2 is due at 1 s, after one at 2 s; sort the times"),
        (["a"], "due times in seconds"),
        ("absent.npy", "schedule absent.npy: expected .npy, or text with one number a line: No such file"),
    ],
)
def test_invalid_recorded_schedules_are_named(times, message):
    with pytest.raises(InputError, match=message):
        plan(schedule=times)


def test_file_that_holds_no_numbers_is_named(tmp_path):
    path = tmp_path / "times.txt"
    path.write_text("0.5\nsoon\n")
    with pytest.raises(InputError, match=r"times.txt: expected .npy, or text with one number a line: .*'soon'"):
        plan(schedule=path)
