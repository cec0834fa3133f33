"""Verdicts on given loads; few tests send requests, and none of them depends on the host's speed."""

import math
import threading
import time

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.errors import UsageError
from pytest_modelserve.load import latency_under_load
from pytest_modelserve.load.latency_under_load import LoadDesign, LoadResult

ROWS = np.arange(20, dtype=np.float32).reshape(10, 2)
MODEL = ms.serve(np.negative)
RNG = np.random.default_rng(0)
SERVICE = 5 + RNG.exponential(1.0, 2_000)


class Endpoint(ms.Predictor):
    transport = "endpoint"

    def describe(self):
        return "elsewhere"

    def predict(self, inputs):
        return {"y": inputs}


def judge(run, max_ms=20.0, predictor=MODEL, **settings):
    design = LoadDesign(0.95, max_ms, 0.95, 0.001)
    return LoadResult.of(run, design, predictor).evidence(
        predictor, max_failed=settings.get("max_failed", 0.0), duration_s=1.0
    )


@pytest.mark.parametrize(("max_ms", "verdict"), [(20, "PASS"), (7, "FAIL"), (8.0, "INCONCLUSIVE")])
def test_verdict_is_that_of_the_interval(load, max_ms, verdict):
    evidence = judge(load(SERVICE), max_ms)
    assert evidence.verdict == verdict
    assert evidence.value == pytest.approx(np.quantile(SERVICE, 0.95, method="inverted_cdf"))


def test_parts_of_latency_and_goodput_are_in_the_evidence(load):
    evidence = judge(load(SERVICE, rate=100, queue=True, lag_ms=0.1), 20)
    values = {quantity.name: quantity.value for quantity in evidence.quantities}
    assert values["service p95"] < values["p95"]
    assert values["issue lag p95"] == pytest.approx(0.1, rel=0.01)
    assert values["goodput per s"] == pytest.approx(100, rel=0.1)
    assert evidence.details["generator_cpu_share"] == 0.1


def test_late_generator_leaves_the_verdict_open_and_says_why(load):
    evidence = judge(load(SERVICE, lag_ms=2), 20)
    assert evidence.verdict == "INCONCLUSIVE"
    assert evidence.summary == (
        "the generator itself was late: p95 of its issue lag is 2 ms, more than 5 % of the budget of 20 ms"
    )
    assert evidence.interval.high == math.inf
    assert evidence.advice == (
        "give this host no other work, or send from another process: serve the model as an endpoint"
    )
    assert "processes=" in judge(load(SERVICE, lag_ms=2), 20, Endpoint(MODEL.subject)).advice


def test_late_generator_does_not_save_a_model_whose_service_time_is_beyond_the_budget(load):
    assert judge(load(10 * SERVICE, lag_ms=2), 20).verdict == "FAIL"
    assert judge(load(SERVICE, lag_ms=30), 20).verdict == "INCONCLUSIVE"  # late by more than the budget itself


def test_generator_without_cpu_to_spare_decides_nothing_about_an_endpoint(load):
    endpoint = Endpoint(MODEL.subject)
    evidence = judge(load(SERVICE, cpu_share=0.97), 20, endpoint)
    assert (evidence.verdict, evidence.summary) == (
        "INCONCLUSIVE",
        "the generator used 97 % of a core, so that its own work is in the figures",
    )
    assert judge(load(SERVICE, cpu_share=0.97), 20).verdict == "PASS"  # the model itself computes in this process


def test_failed_requests_fail_the_gate_and_slow_the_quantile(load):
    run = load(SERVICE, failed=range(0, 2_000, 40))
    evidence = judge(run, 20)
    assert evidence.verdict == "FAIL"
    assert evidence.summary == "requests at 100 requests/s were not answered"
    assert "50 requests failed with OSError: refused" in evidence.findings
    assert judge(run, 20, max_failed=0.03).verdict == "PASS"
    assert judge(load(SERVICE, failed=range(0, 2_000, 10)), 20, max_failed=0.2).value == math.inf


def test_stall_of_a_second_in_a_minute_shows_in_p95_at_load_08(load):
    service = np.full(6_000, 8.0)
    service[3_000] = 1_000.0
    run = load(service, rate=100, queue=True)
    assert LoadResult.of(run, LoadDesign(0.95, 50, 0.95, 0.001), MODEL).estimate > 400
    assert np.quantile(run.service_ms, 0.95) == pytest.approx(8)


def test_warm_up_is_reported_and_not_judged(load):
    service = SERVICE.copy()
    service[:100] = 500.0
    evidence = judge(load(service, warm_up_s=1.0))
    assert (evidence.verdict, evidence.n) == ("PASS", 1_900)
    assert "left out as warm-up: 100 requests, p95 500 ms" in evidence.findings
    assert evidence.details["warm_up"]["requests"] == 100


def test_closed_loop_says_that_clients_wait_with_the_server(load):
    assert any(finding.startswith("closed loop") for finding in judge(load(SERVICE, clients=4)).findings)


def test_real_load_is_described_and_its_file_written(tmp_path):
    evidence = ms.measure_latency_under_load(
        np.negative, ROWS, rate_qps=300, max_ms=60_000, quantile=0.5, duration_s=0.5, result_file=tmp_path / "a.json"
    )
    assert evidence.verdict != "FAIL"
    assert 120 < evidence.n < 150
    assert (tmp_path / "a.json").exists()
    assert evidence.details["load"] == "300 requests/s, Poisson arrivals"


def test_slow_model_fails_however_late_the_generator_is():
    with pytest.raises(
        ms.GateFailure, match="latency under load p95: p95 at 200 requests/s, Poisson arrivals is above"
    ):
        ms.assert_latency_under_load(lambda x: time.sleep(0.03) or x, ROWS, rate_qps=200, max_ms=1, duration_s=0.5)


def test_model_that_hangs_fails_within_its_time_limit():
    never, calls = threading.Event(), []

    def model(x):
        calls.append(1)
        if len(calls) > 60:
            never.wait(60)
        return x

    evidence = ms.measure_latency_under_load(model, ROWS, rate_qps=200, max_ms=1e6, duration_s=0.5, timeout_s=0.3)
    never.set()
    assert evidence.verdict == "FAIL"
    assert any("requests were still open when the load ended" in finding for finding in evidence.findings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of rate_qps=, clients= and schedule="),
        ({"rate_qps": 0}, "rate_qps must be a positive"),
        (
            {"rate_qps": 20, "quantile": 0.99, "duration_s": 2},
            r"p99 needs at least 368 independent requests after the warm-up; this load has \d+, and 40 in all: give duration_s=24 or more",
        ),
        ({"rate_qps": 200, "quantile": 1.0}, "quantile must be between 0 and 1"),
        ({"rate_qps": 200, "max_ms": -1}, "max_ms must be a positive number"),
        ({"rate_qps": 200, "max_failed": 1.5}, "max_failed must be a proportion"),
        ({"rate_qps": 200, "warm_up_s": 10}, "warm_up_s must be from 0 to below the 10 s"),
        ({"rate_qps": 200, "max_in_flight": 0}, "max_in_flight must be"),
        ({"rate_qps": 200, "result_file": "."}, "result_file='.' cannot be written: it is a folder"),
        ({"rate_qps": 200, "result_file": "/dev/null/a"}, "result_file='/dev/null/a' cannot be written: "),
    ],
)
def test_invalid_arguments_are_named_before_a_request_is_sent(given, message):
    def model(x):
        raise AssertionError("sent")

    with pytest.raises(UsageError, match=message):
        ms.measure_latency_under_load(model, ROWS, **{"max_ms": 5, **given})


def test_needed_duration_is_enough():
    design = LoadDesign(0.99, 5, 0.95, 0.001)
    schedule = latency_under_load.plan_schedule(rate_qps=20, duration_s=24)
    design.check_enough(schedule, 2.4)


def test_load_without_counted_requests_is_an_error(load):
    with pytest.raises(UsageError, match=r"no request was sent after the warm-up.*; 1 requests failed with OSError"):
        judge(load([1.0], warm_up_s=5.0, failed=[0]))
