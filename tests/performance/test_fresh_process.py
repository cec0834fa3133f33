"""Fresh processes: how many decide, and the errors of those that fail."""

import math
import os
import signal

import numpy as np
import onnx
import pytest
from onnx import helper

import pytest_modelserve as ms
from pytest_modelserve.performance import fresh_process
from pytest_modelserve.performance.fresh_process import (
    FreshStart,
    fresh_job,
    interim_starts,
    median_interval,
    start_in_fresh_process,
    start_until_decided,
)

X = np.ones((4, 64), np.float32)
START = FreshStart(5.0, 4.0, 1.0, 1.0, 100 << 20, 110 << 20)


def job(model, **options):
    return fresh_job(model, [X], **{"providers": ("CPUExecutionProvider",), "threads": 1, "calls": 2, **options})[1:]


def test_fresh_process_is_measured_from_its_imports_on_and_inherits_no_memory(small_model):
    ballast = np.ones(64 << 20, np.uint8)
    start = start_in_fresh_process(*job(small_model), time_limit_s=60)
    assert start.baseline_bytes > 20 << 20
    assert 0 < start.added_bytes < 40 << 20
    assert min(start.session_ms, start.first_call_ms, start.session_cpu_ms) > 0
    assert ballast.all()


def test_inputs_count_and_are_held_once(small_model):
    served, _ = job(small_model)
    small, large = (
        start_in_fresh_process(served, [{"x": np.ones((rows, 64), np.float32)}], time_limit_s=60).added_bytes
        for rows in (1, 1 << 17)  # 32 MiB
    )
    held = (large - small) / (32 << 20)
    assert 2 < held < 6  # the input, the answer, and what lies between them


def test_largest_of_several_batches_decides_the_peak(small_model):
    served, _ = job(small_model)
    small, large = np.ones((1, 64), np.float32), np.ones((1 << 16, 64), np.float32)  # 16 MiB
    alone, both = (
        start_in_fresh_process(served, [{"x": batch} for batch in batches], time_limit_s=60).added_bytes
        for batches in ([small], [small, large])
    )
    assert both - alone > 32 << 20  # the input and the output


def test_process_that_dies_is_named(small_model, monkeypatch):
    monkeypatch.setattr(fresh_process, "resident_bytes", lambda pid: os.kill(pid, signal.SIGKILL) or 0)
    with pytest.raises(
        ms.ModelServeError, match=r"a fresh process that serves .*small.onnx failed: .* was killed by SIGKILL"
    ):
        start_in_fresh_process(*job(small_model), time_limit_s=60)


def test_process_that_hangs_is_killed(small_model):
    with pytest.raises(ms.ModelServeError, match=r"took longer than 0.01 s and was killed: raise time_limit_s"):
        start_in_fresh_process(*job(small_model), time_limit_s=0.01)


def test_analyses_follow_the_fewest_starts_that_can_decide():
    assert interim_starts(confidence=0.95, alpha=0.001) == (6, 10)
    assert 2.0**-6 <= 0.025 < 2.0**-5
    assert 2.0**-10 <= 0.001 < 2.0**-9


@pytest.mark.parametrize(
    ("verdicts", "starts"),
    [([ms.Verdict.PASS], 6), ([ms.Verdict.INCONCLUSIVE, ms.Verdict.FAIL], 10), ([ms.Verdict.INCONCLUSIVE] * 2, 10)],
)
def test_starts_end_with_the_first_analysis_that_decides(verdicts, starts):
    each = iter(verdicts)
    found = start_until_decided(lambda: START, lambda _: next(each), confidence=0.95, alpha=0.001)
    assert len(found) == starts


def test_median_of_starts_holds_both_error_rates():
    """Starts whose median is exactly the budget: how often both analyses together give PASS and FAIL, by simulation of
    4,000 gates (standard error of the first proportion 0.3 points)."""
    rng = np.random.default_rng(0)
    passed = failed = 0
    for _ in range(4000):
        values = rng.normal(100, 10, 10)
        for n in (6, 10):
            _, interval = median_interval(list(values[:n]), confidence=0.95, alpha=0.001)
            if interval.high <= 100 or interval.low > 100:
                passed += interval.high <= 100
                failed += interval.low > 100
                break
    assert passed / 4000 <= 0.05
    assert failed <= 12  # 4 are expected at most


def test_first_analysis_cannot_fail():
    value, interval = median_interval([5.0] * 6, confidence=0.95, alpha=0.001)
    assert (value, interval.low, interval.high) == (5.0, 0.0, 5.0)
    assert median_interval([5.0] * 10, confidence=0.95, alpha=0.001)[1].low == 5.0
    assert median_interval([5.0] * 3, confidence=0.95, alpha=0.001)[1].high == math.inf


def test_only_a_file_can_be_served_in_a_fresh_process():
    with pytest.raises(ms.UsageError, match=r"artifact must be an Artifact, the path .*; got CallablePredictor"):
        job(ms.serve(lambda x: x))


def test_model_with_an_input_that_is_no_tensor_is_refused(tmp_path):
    tensor = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, ["n"])
    x = helper.make_value_info("x", helper.make_sequence_type_proto(tensor))
    y = helper.make_tensor_value_info("y", onnx.TensorProto.INT64, [])
    graph = helper.make_graph([helper.make_node("SequenceLength", ["x"], ["y"])], "g", [x], [y])
    path = tmp_path / "sequence.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    inputs = {"x.length": np.array(1), "x[0]": np.ones(3, np.float32)}
    with pytest.raises(ms.UsageError, match="input 'x' is not a tensor: only tensors can be sent to a fresh process"):
        ms.measure_memory(path, inputs, max_mib=100)


def test_inputs_are_checked_before_anything_starts(small_model):
    with pytest.raises(ms.InputError, match="float64 where the model takes float32"):
        fresh_job(small_model, [X.astype(np.float64)], providers=("CPUExecutionProvider",), threads=1, calls=1)
    with pytest.raises(ms.InputError, match="is empty"):
        fresh_job(small_model, [X[:0]], providers=("CPUExecutionProvider",), threads=1, calls=1)
