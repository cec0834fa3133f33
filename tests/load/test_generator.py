"""Requests are sent when they are due, whatever the model does."""

import itertools
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.errors import InputError, ModelServeError, UsageError
from pytest_modelserve.load.generator import LoadSettings, answer_alone, has_structure_of, requests_of, run_load
from pytest_modelserve.load.schedule import plan_schedule

ROWS = np.arange(10, dtype=np.float32).reshape(10, 1)


def send(function, *, processes=1, timeout_s=20.0, max_in_flight=256, check=None, **load):
    """Run a short load on a function."""
    given = {"arrivals": "constant", "duration_s": 0.2}
    schedule = plan_schedule(**{**given, **load})
    settings = LoadSettings(0.0, timeout_s=timeout_s, max_in_flight=max_in_flight, processes=processes)
    return run_load(function, ms.serve(function), requests_of(ROWS, 1), schedule, settings, check=check)


def test_every_request_is_sent_once_with_its_inputs():
    got = []
    run = send(lambda x: got.append(float(x[0, 0])) or x, rate_qps=200, max_in_flight=1)
    assert got == [float(i % 10) for i in range(40)]
    assert run.index.tolist() == list(range(40))
    assert run.answered.all()
    assert (run.sent_s >= run.due_s).all()
    assert (run.ended_s >= run.sent_s).all()


def test_arrivals_do_not_wait_for_completions():
    together = threading.Barrier(30)  # nobody is answered before 30 are in flight

    def model(x):
        together.wait(20)
        return x

    run = send(model, schedule=[0.0] * 30)
    assert run.answered.all()
    assert run.most_in_flight == 30
    assert run.queueing_ms.max() == 0  # what threads that are started take is the generator's own lag


def test_clients_have_one_request_each_in_flight():
    together, calls = threading.Barrier(3), itertools.count()

    def model(x):
        if next(calls) < 3:
            together.wait(20)
        return x

    run = send(model, clients=3)
    assert run.most_in_flight == 3
    assert len(run) >= 3


def test_no_more_requests_are_in_flight_than_may_be():
    run = send(lambda x: time.sleep(0.005) or x, rate_qps=400, max_in_flight=2)
    assert run.most_in_flight == 2
    assert run.queueing_ms.max() > 0
    assert run.answered.all()


def test_failing_requests_are_counted_and_named_and_the_others_answered():
    def model(x):
        if x[0, 0] == 3:
            raise ValueError("no threes\nsecond line")
        if x[0, 0] == 4:
            sys.exit("the model ends its thread")
        return x

    run = send(model, rate_qps=200)
    assert run.failed == 8
    assert {name: (each.count, each.message) for name, each in run.failures.items()} == {
        "ValueError": (4, "no threes"),
        "SystemExit": (4, "the model ends its thread"),
    }


def test_model_that_never_returns_ends_the_load_at_its_time_limit():
    never = threading.Event()

    def model(x):
        if x[0, 0] == 3:
            never.wait(60)
        return x

    run = send(model, rate_qps=200, timeout_s=0.3)
    never.set()
    assert run.open_requests == 4
    assert run.index[np.isnan(run.ended_s)].tolist() == [3, 13, 23, 33]
    assert run.answered.sum() == 36


def test_load_ends_early_where_all_that_may_be_in_flight_hang():
    never = threading.Event()
    run = send(lambda x: never.wait(60) and x, rate_qps=20, duration_s=30, max_in_flight=2, timeout_s=0.3)
    never.set()
    assert 2 <= run.open_requests == len(run) < 60  # those that were due by then; most were never sent
    assert np.isnan(run.sent_s).sum() == len(run) - 2


def test_answers_of_another_form_are_failures():
    answers = iter([{"y": np.zeros((1, 2))}, {"z": np.zeros((1, 2))}, {"y": np.zeros(1)}, {"y": np.zeros((3, 2))}])
    check = has_structure_of({"y": np.ones((1, 2))}, requests_of(ROWS, 1))
    assert [check(i, answer) for i, answer in enumerate(answers)] == [
        None,
        "outputs 'z' instead of 'y'",
        "output 'y' has shape [1], which does not fit the request",
        "output 'y' has shape [3, 2], which does not fit the request",
    ]
    varied = has_structure_of({"y": np.ones((1, 2))}, [ROWS[:1], ROWS])  # one row may be one answer for all
    assert varied(1, {"y": np.ones((1, 2))}) is None
    run = send(lambda x: np.zeros((int(x[0, 0] == 3) + 1, 2)), rate_qps=50, check=check)
    assert {name: each.count for name, each in run.failures.items()} == {
        "a wrong answer": 10  # the name is "output", not "y"
    }


def test_predictor_that_is_not_thread_safe_gets_one_request_at_a_time():
    class OneAtATime(ms.Predictor):
        transport = "callable"
        is_thread_safe = False
        busy = False

        def describe(self):
            return "one at a time"

        def predict(self, inputs):
            assert not self.busy
            self.busy = True
            time.sleep(0.002)
            self.busy = False
            return {"y": inputs}

    predictor = OneAtATime(ms.serve(np.negative).subject)
    for load in ({"rate_qps": 200.0}, {"clients": 4}):
        schedule = plan_schedule(duration_s=0.2, **load)
        run = run_load(predictor, predictor, requests_of(ROWS, 1), schedule, LoadSettings(0.0))
        assert run.answered.all()
        assert run.most_in_flight == 1


def test_state_of_the_process_is_as_before_also_after_loads_in_two_threads():
    before = sys.getswitchinterval()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda seconds: send(np.negative, rate_qps=100, duration_s=seconds), (0.2, 0.4)))
    assert sys.getswitchinterval() == before


def test_processes_share_the_requests():
    run = send(np.negative, rate_qps=100, duration_s=0.4, processes=2)
    assert run.index.tolist() == list(range(40))
    assert run.answered.all()
    assert run.schedule.due_s.size == 40


@pytest.fixture
def raising_sigint():
    """Raise KeyboardInterrupt at SIGINT: a shell starts a background job with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_ends_the_processes_before_the_end_of_the_load(raising_sigint):
    began = time.monotonic()
    # A real signal: one simulated by interrupt_main would not end the wait of the main thread.
    ctrl_c = threading.Timer(1.0, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    ctrl_c.start()
    with pytest.raises(KeyboardInterrupt):
        send(np.negative, rate_qps=10, duration_s=120, processes=2)
    assert time.monotonic() - began < 60


def test_model_that_cannot_be_opened_in_another_process_is_named():
    with pytest.raises(
        UsageError, match="processes=2 open the model in processes of their own, and this one cannot be"
    ):
        send(lambda x: x, rate_qps=100, processes=2)
    predictor = ms.serve(np.negative)
    schedule = plan_schedule(rate_qps=9, duration_s=1)
    with pytest.raises(UsageError, match="is an open predictor; pass the path of a file, an endpoint"):
        run_load(predictor, predictor, [ROWS], schedule, LoadSettings(0.0, processes=2))
    with pytest.raises(UsageError, match="processes=3 need at least as many clients; got clients=2"):
        send(np.negative, clients=2, processes=3)


def test_first_request_that_is_not_answered_ends_the_gate():
    never = threading.Event()
    with pytest.raises(ModelServeError, match=r"hang did not answer a request, sent alone, within timeout_s=0.1"):
        answer_alone(ms.serve(lambda x: never.wait(60), name="hang"), ROWS, 0.1)
    never.set()

    def broken(x):
        raise OSError("refused")

    with pytest.raises(OSError, match="refused") as caught:
        answer_alone(ms.serve(broken), ROWS, 5)
    assert caught.value.__notes__ == ["raised by a request that was sent alone, before the load"]


def test_requests_are_rows_or_batches():
    assert [request.tolist() for request in requests_of(ROWS, 4)] == [
        [[0], [1], [2], [3]],
        [[4], [5], [6], [7]],
    ]
    assert len(requests_of({"a": ROWS, "b": ROWS}, 1)) == 10
    assert requests_of(ROWS, None)[0].shape == (10, 1)
    assert [len(request) for request in requests_of([ROWS, ROWS[:3]], 1)] == [10, 3]


@pytest.mark.parametrize(
    ("inputs", "rows", "error", "message"),
    [
        (ROWS[:0], 1, InputError, "the input is empty"),
        (ROWS, 11, InputError, "inputs have 10 rows, and rows_per_request=11"),
        (ROWS, 0, UsageError, "rows_per_request must be a whole number of at least 1; got 0"),
        (ROWS, 1.5, UsageError, "rows_per_request must be a whole number of at least 1; got 1.5"),
        ([], 1, InputError, "inputs hold no batch"),
    ],
)
def test_inputs_without_requests_are_named(inputs, rows, error, message):
    with pytest.raises(error, match=message):
        requests_of(inputs, rows)


@pytest.mark.parametrize(
    "settings",
    [
        {"warm_up_s": -1},
        {"warm_up_s": 0, "timeout_s": 0},
        {"warm_up_s": 0, "timeout_s": 1e20},
        {"warm_up_s": 0, "max_in_flight": 0},
        {"warm_up_s": 0, "processes": 1.5},
    ],
)
def test_invalid_settings_are_named(settings):
    with pytest.raises(UsageError, match=f"{[*settings][-1]} must be"):
        LoadSettings(**settings)
