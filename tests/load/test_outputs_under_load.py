"""Answers under load against those to the same requests alone."""

import itertools
import re
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.errors import InputError, ModelServeError, UsageError
from pytest_modelserve.load import outputs_under_load
from pytest_modelserve.load.generator import run_load
from tests.onnx_models import make_model

ROWS = np.arange(40, dtype=np.float32).reshape(20, 2)
ALONE = 40
"""Calls before the load: all 20 requests alone, twice."""


class Server:
    """A model of sums; every 50th request under load gets the answer of one in flight with it, if there are over four.

    It waits up to `patience_s` for these.
    """

    def __init__(self, patience_s=0.0):
        self.patience_s, self.lock, self.number, self.answers = patience_s, threading.Condition(), 0, {}

    def __call__(self, x):
        with self.lock:
            self.number += 1
            number, own = self.number, x.sum(axis=1)
            self.answers[number] = own
            self.lock.notify_all()
            answer = own
            if (
                number > ALONE
                and number % 50 == 0
                and self.lock.wait_for(lambda: len(self.answers) > 4, self.patience_s)
            ):
                answer = self.answers[max(other for other in self.answers if other != number)]
        if number > ALONE:
            time.sleep(0.001)  # others arrive
        with self.lock:
            del self.answers[number]
        return answer


def test_server_that_mixes_requests_in_flight_is_found_and_both_are_named():
    with pytest.raises(ms.GateFailure) as caught:
        ms.assert_outputs_under_load(Server(patience_s=10), ROWS, clients=8, requests=200)
    evidence = caught.value.evidence
    assert evidence.details["wrong_answers"] == 4
    assert evidence.value == 4 / 200
    assert all(
        re.fullmatch(
            r"the answer of request \d+ \(inputs \d+\) was given to request \d+ .*while both were in flight", each
        )
        for each in evidence.findings[:4]
    )
    assert evidence.findings[4] == "4 of 4 wrong answers are those of another request"


def test_same_server_passes_with_few_requests_in_flight():
    evidence = ms.assert_outputs_under_load(Server(), ROWS, clients=4, requests=300)
    assert evidence.value == 0
    assert evidence.details["most_in_flight"] == 4
    assert "wrong ones at a rate above 0.99 % would have shown with probability 95%" in evidence.summary


def test_exchanged_answers_are_told_as_a_pair():
    """Two requests meet; under load they exchange their answers."""
    meeting, answers, count = threading.Barrier(2), {}, itertools.count()

    def model(x):
        if next(count) < ALONE:
            return x
        answers[threading.get_ident()] = x
        meeting.wait(20)
        own, other = threading.get_ident(), next(key for key in answers if key != threading.get_ident())
        found = answers[other]
        meeting.wait(20)
        answers.pop(own)
        meeting.wait(20)
        return found

    evidence = ms.measure_outputs_under_load(model, ROWS, clients=2, requests=20)
    assert evidence.value == 1
    assert evidence.findings[0] == (
        "request 0 (inputs 0) and request 1 (inputs 1) were in flight together and got each other's answers"
    )
    assert evidence.findings[-1] == "20 of 20 wrong answers are those of another request"


def test_stale_answer_is_told_as_one():
    count = itertools.count()

    def model(x):
        time.sleep(0.001)
        return ROWS[7:8] if next(count) == ALONE + 2 else x

    evidence = ms.measure_outputs_under_load(model, ROWS, clients=2, requests=20)
    assert "got the answer to inputs 7, which was not in flight: a stale answer" in evidence.findings[0]


def test_rounding_is_allowed_and_more_is_not():
    count = itertools.count()

    def model(by):
        def answer(x):
            time.sleep(0.001)
            return x * np.float32(1 + by * (next(count) >= ALONE))

        return answer

    evidence = ms.measure_outputs_under_load(model(2e-7), ROWS, requests=40)
    assert (evidence.verdict, evidence.details["wrong_answers"]) == ("PASS", 0)
    assert evidence.details["rounded_answers"] > 20
    count = itertools.count()
    evidence = ms.measure_outputs_under_load(model(0.01), ROWS, requests=40)
    assert evidence.verdict == "FAIL"
    assert "under load and" in evidence.findings[0]
    count = itertools.count()
    assert ms.measure_outputs_under_load(model(0.01), ROWS, requests=40, rtol=0.02, atol=0).passed


def test_answers_of_another_form_are_wrong():
    count = itertools.count()

    def model(x):
        time.sleep(0.001)
        return {"y": x if next(count) < ALONE + 5 else x.astype(np.float64)}

    evidence = ms.measure_outputs_under_load(model, ROWS, requests=60)
    assert any("output 'y' is float64 [1, 2] instead of float32 [1, 2]" in finding for finding in evidence.findings)


def test_failed_requests_are_no_wrong_answers_and_fail_by_their_own_budget():
    count = itertools.count()

    def model(x):
        time.sleep(0.001)
        if next(count) >= ALONE and x[0, 0] == 4:
            raise OSError("refused")
        return x

    evidence = ms.measure_outputs_under_load(model, ROWS, requests=100)
    assert (evidence.verdict, evidence.value) == ("FAIL", 0.05)
    assert evidence.quantities[0].value == 0
    assert "5 requests failed with OSError: refused" in evidence.findings


def test_open_loop_is_a_load_too():
    evidence = ms.measure_outputs_under_load(lambda x: time.sleep(0.02) or x, ROWS, rate_qps=300, requests=60)
    assert (evidence.verdict, evidence.n) == ("PASS", 60)


def test_requests_that_are_never_together_decide_nothing(monkeypatch):
    def one_by_one(target, predictor, requests, schedule, *args, **settings):
        return run_load(target, predictor, requests, replace(schedule, clients=1), *args, **settings)

    monkeypatch.setattr(outputs_under_load, "run_load", one_by_one)
    evidence = ms.measure_outputs_under_load(lambda x: x, ROWS, requests=30)
    assert evidence.verdict == "INCONCLUSIVE"
    assert evidence.summary.startswith("no two requests were in flight at the same time")


def test_equal_answers_are_counted_and_all_equal_ones_refused():
    rows = np.array([[1.0, 2.0], [2.0, 1.0], [5.0, 5.0]])
    evidence = ms.measure_outputs_under_load(lambda x: time.sleep(0.001) or x.sum(axis=1), rows, requests=20)
    assert "2 of 3 requests have the answer of another one" in evidence.findings[0]
    with pytest.raises(InputError, match="all 20 requests have the same answer"):
        ms.measure_outputs_under_load(lambda x: np.zeros(1), ROWS)


def test_model_that_answers_differently_alone_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="request 0 has another answer when it is sent alone again"):
        ms.measure_outputs_under_load(lambda x: rng.normal(size=2), ROWS)


def test_request_that_fails_alone_is_named():
    def model(x):
        sent.append(x[0, 0])
        if x[0, 0] >= 6:
            raise OSError("refused")
        return x

    sent = []
    with pytest.raises(ModelServeError, match="request 3, sent alone, was not answered: OSError: refused"):
        ms.measure_outputs_under_load(model, ROWS)
    assert sent == [0, 2, 4, 6]  # each of the others might take its time limit, too


def test_text_and_nan_are_compared():
    texts = np.array([["a"], ["b"], ["c"]])
    assert ms.measure_outputs_under_load(lambda x: time.sleep(0.001) or x, texts, requests=20).passed
    rows = np.array([[1.0], [np.nan], [2.0]])
    assert ms.measure_outputs_under_load(lambda x: time.sleep(0.001) or x, rows, requests=20).passed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clients": 1}, "clients must be at least 2"),
        ({"clients": 3, "rate_qps": 5}, "two kinds of load"),
        ({"requests": 0}, "requests must be a whole number of at least 1; got 0"),
        ({"rtol": 0.1}, "rtol and atol require each other"),
        ({"rate_qps": -5}, "rate_qps must be a positive"),
        ({"time_limit_s": 0}, "time_limit_s must be"),
        ({"max_failed": 1}, "max_failed must be a proportion"),
    ],
)
def test_invalid_arguments_are_named(given, message):
    with pytest.raises(UsageError, match=message):
        ms.measure_outputs_under_load(lambda x: x, ROWS, **given)


def test_predictor_of_one_request_at_a_time_is_refused():
    predictor = ms.serve(lambda x: x, name="single")
    predictor.is_thread_safe = False
    with pytest.raises(UsageError, match=r"single takes one request at a time \(callable\), so that no answers can be"):
        ms.measure_outputs_under_load(predictor, ROWS)


def test_onnxruntime_answers_from_several_threads_as_alone(tmp_path):
    onnx = pytest.importorskip("onnx")
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["h"]), onnx.helper.make_node("Softmax", ["h"], ["y"])]
    weights = {"w": np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)}
    onnx.save(
        make_model(nodes, {"x": ("float32", ["n", 2])}, {"y": ("float32", ["n", 64])}, weights), tmp_path / "model.onnx"
    )
    assert ms.measure_outputs_under_load(tmp_path / "model.onnx", ROWS, requests=200).value == 0
