"""Latency from the time a request was due, and its parts."""

import math

import numpy as np
import pytest

from pytest_modelserve.load.load_run import Failure, joined


def test_latency_is_the_sum_of_queueing_issue_lag_and_service(load):
    run = load([20, 20, 5], rate=100, queue=True, lag_ms=1)
    assert run.queueing_ms == pytest.approx([0, 11, 22])
    assert run.issue_lag_ms == pytest.approx([1, 1, 1])
    assert run.service_ms == pytest.approx([20, 20, 5])
    assert run.latency_ms == pytest.approx(run.queueing_ms + run.issue_lag_ms + run.service_ms)


def test_stall_of_a_second_in_a_minute_shows_in_latency_from_due_time_and_not_in_service_time(load):
    service = np.full(6_000, 5.0)
    service[3_000] = 1_000.0
    run = load(service, rate=100, queue=True)
    assert np.quantile(run.service_ms, 0.99) == pytest.approx(5)
    assert np.quantile(run.latency_ms, 0.99) > 500


def test_failed_and_open_requests_are_infinitely_slow(load, open_at_the_end):
    run = open_at_the_end(load([1, 1, 1, 1], failed=[1]))
    assert run.latency_ms[1] == run.latency_ms[3] == run.service_ms[3] == math.inf
    assert (run.failed, run.open_requests) == (2, 1)
    assert run.failure_findings() == (
        "1 requests failed with OSError: refused",
        "1 requests were still open when the load ended",
    )


def test_goodput_counts_what_was_answered_in_time(load):
    assert load([1, 30, 1, 1], rate=100, failed=[2]).goodput(max_ms=10) == pytest.approx(50)


def test_warm_up_is_apart(load):
    run = load([9, 9, 1, 1], rate=10, warm_up_s=0.2)
    assert (len(run.warm_up), len(run.counted)) == (2, 2)
    assert run.counted.latency_ms == pytest.approx([1, 1])
    assert run.counted.seconds == pytest.approx(0.2)


def test_requests_in_flight_are_counted_at_the_same_time(load):
    assert load([15, 15, 15, 15], rate=100).most_in_flight == 2
    assert load([10, 10, 10], rate=100).most_in_flight == 1  # one ends as the next begins
    assert load([1000] * 7, rate=100).most_in_flight == 7


def test_timeline_has_the_quantile_of_each_slice(load):
    service = np.full(200, 1.0)
    service[100:] = 7.0
    line = load(service, rate=100).timeline(0.95)
    assert line["median_ms"] == line["quantile_ms"] == [1.0] * 5 + [7.0] * 5
    assert line["slice_s"] == pytest.approx(0.199)
    assert load(service, rate=100, failed=range(100)).timeline(0.5)["median_ms"][:5] == [None] * 5


def test_runs_of_several_processes_are_one(load):
    first, second = load([1, 2], failed=[0]), load([3, 4], failed=[0, 1])
    both = joined([first, second], first.schedule)
    assert both.index.tolist() == [0, 1, 2, 3]
    assert both.service_ms[2:] == pytest.approx([2, math.inf])
    assert both.failures == {"OSError": Failure(3, "refused")}
    assert both.in_flight_limit == 512
