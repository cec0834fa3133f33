"""Gates on models in processes of their own: timed and measured there."""

import os
import sys

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.performance import memory_growth
from pytest_modelserve.performance.child_calls import ChildCalls, in_like_processes
from pytest_modelserve.performance.fresh_process import fresh_job
from pytest_modelserve.serving.subprocess_predictor import SubprocessPredictor
from tests.interpreters import python_after

X = np.ones((4, 64), np.float32)


@pytest.fixture
def child(small_model):
    with ms.serve(small_model, interpreter=sys.executable) as predictor:
        yield predictor


def test_two_processes_are_compared_by_calls_that_they_time(child, small_model, monkeypatch):
    """The file beside a model in another interpreter gets a process of its own, too: no call is made from here."""
    monkeypatch.setattr(SubprocessPredictor, "predict", None)
    with ms.serve(small_model) as reference:
        monkeypatch.setattr(reference, "predict", None)
        evidence = ms.measure_slowdown(child, reference, X, max_ratio=1000)
        fresh = ms.measure_slowdown(child, reference, X, max_ratio=1.08, clock="cpu")
    assert (evidence.verdict, evidence.n) == (ms.Verdict.PASS, 20)
    assert (str(evidence.subject), str(evidence.reference)) == (str(child.subject), str(reference.subject))
    assert fresh.n_unit == "session pairs"


def test_quantiles_of_two_processes_are_compared(child, small_model):
    assert ms.measure_slowdown(child, small_model, X, max_ratio=1000, quantile=0.9).passed


def test_callable_beside_a_child_stays_in_this_process(child):
    with in_like_processes((child, ms.serve(lambda x: x))) as pair:
        assert pair[0] is child
        assert pair[1].transport == "callable"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin processes")
def test_processes_of_one_thread_share_a_processor_while_they_are_compared(child, small_model):
    """Two processors of a host differ in speed, so that a model would be slower than itself."""

    def processors(pair):
        return [os.sched_getaffinity(each.process.child.pid) for each in pair]

    with ms.serve(small_model, interpreter=sys.executable, threads=2) as wide, in_like_processes((child, wide)) as pair:
        assert processors(pair) == [os.sched_getaffinity(0)] * 2
    with ms.serve(small_model, interpreter=sys.executable) as other:
        with in_like_processes((child, other)) as pair:
            assert processors(pair) == [{max(os.sched_getaffinity(0))}] * 2
        assert processors(pair) == [os.sched_getaffinity(0)] * 2


def test_batches_of_several_shapes_are_timed_in_random_order(child):
    calls = ChildCalls(child, [X, X[:1]])
    times = calls.timed(40, limit_s=60)
    assert len(times) == 40
    counts = [batch["calls"] for batch in calls.details(times.wall_ms)["batches"]]
    assert sum(counts) == 40
    assert min(counts) > 5


def test_calls_that_time_did_not_allow_are_put_back(child):
    calls = ChildCalls(child, [X, X[:1]])
    assert len(calls.timed(40, limit_s=0)) == 0
    assert calls.take(4).tolist() == [0, 1, 0, 1]


def test_leak_is_that_of_the_process_that_serves(child, monkeypatch):
    """Its memory is read, and not that of this process."""
    read = []
    monkeypatch.setattr(memory_growth, "resident_bytes", lambda pid=None: read.append(pid) or 1 << 20)
    assert ms.measure_memory_growth(child, X, max_kib_per_call=1000).passed
    assert set(read) == {child.process.child.pid}


PATCH = """
import onnxruntime
run, kept = onnxruntime.InferenceSession.run, []
def other(self, *arguments):
    {}
    return run(self, *arguments)
onnxruntime.InferenceSession.run = other
"""


def test_runtime_that_keeps_memory_is_found(small_model, tmp_path):
    leaking = python_after(tmp_path / "python", PATCH.format("kept.append(b'x' * (64 << 10))"))
    with ms.serve(small_model, interpreter=leaking) as child:
        assert ms.measure_memory_growth(child, X, max_kib_per_call=16).verdict is ms.Verdict.FAIL


def test_runtime_that_needs_several_times_as_long_is_found(small_model, tmp_path):
    slow = python_after(tmp_path / "python", PATCH.format("[run(self, *arguments) for _ in range(4)]"))
    with ms.serve(small_model, interpreter=slow) as child:
        assert ms.measure_slowdown(child, small_model, X, max_ratio=1.2).verdict is ms.Verdict.FAIL


def test_reload_opens_the_model_anew_in_the_same_process(child):
    evidence = ms.measure_memory_growth(child, X, max_kib_per_call=10_000, reload=True)
    assert evidence.n_unit == "reloads"
    assert child.starts == 1


def test_fresh_processes_are_those_of_the_interpreter_with_the_settings_of_the_predictor(small_model):
    with ms.serve(small_model, interpreter=sys.executable, threads=2) as child:
        subject, job, _ = fresh_job(child, [X], providers=None, threads=None, calls=1)
        assert (subject, job.interpreter, job.threads) == (child.subject, sys.executable, 2)
        assert fresh_job(child, [X], providers=None, threads=1, calls=1)[1].threads == 1
    assert fresh_job(small_model, [X], providers=None, threads=None, calls=1)[1].interpreter is None


def test_costs_of_operators_are_those_of_the_other_runtime(child, small_model):
    with pytest.raises(ms.GateFailure, match=r"costliest operators .*MatMul fc"):
        ms.assert_latency(child, X, max_ms=1e-6)


def test_wrong_inputs_are_named_before_they_are_sent(child):
    with pytest.raises(ms.InputError, match="float64 where the model takes float32"):
        ms.measure_latency(child, X.astype(np.float64), max_ms=1)
