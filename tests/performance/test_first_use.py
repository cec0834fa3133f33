"""What a user holds in the performance gates: paths, sessions, functions, lists and frames."""

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch

import pytest_modelserve as ms


def test_a_function_and_a_list_of_rows_are_timed():
    assert ms.measure_latency(lambda x: np.asarray(x).sum(axis=1), [[1.0, 2.0]], max_ms=1000).verdict is ms.Verdict.PASS


def test_a_path_is_opened_once_and_closed(small_model):
    frame = pd.DataFrame(np.ones((4, 64), np.float32))
    assert ms.measure_latency(small_model.path, frame, max_ms=1000).verdict is ms.Verdict.PASS
    session = onnxruntime.InferenceSession(str(small_model.path), providers=["CPUExecutionProvider"])
    assert ms.measure_slowdown(session, small_model, frame, max_ratio=50).verdict is ms.Verdict.PASS


def test_size_takes_paths_and_predictors(small_model):
    with ms.serve(small_model) as predictor:
        assert ms.measure_size(predictor, small_model.path, max_ratio=1.0).verdict is ms.Verdict.PASS
    with pytest.raises(ms.UsageError, match="artifact must be an Artifact, the path of an ONNX file, or a predictor"):
        ms.measure_size(np.ones(3), max_bytes=1)


def test_frames_and_tensors_start_fresh_processes(small_model):
    frame = pd.DataFrame(np.ones((2, 64), np.float32))
    assert ms.measure_cold_start(small_model.path, frame, max_cpu_ms=60_000).verdict is ms.Verdict.PASS
    assert ms.measure_memory(small_model, torch.ones(2, 64), max_mib=10_000).verdict is ms.Verdict.PASS


def test_ready_outputs_cannot_be_timed():
    with pytest.raises(ms.UsageError, match="this gate calls the model, and ready outputs holds ready outputs"):
        ms.measure_latency(np.ones((4, 2)), np.ones((4, 2)), max_ms=1)


def test_tensors_and_frames_of_several_shapes_are_timed(small_model):
    batches = [torch.ones(1, 64), pd.DataFrame(np.ones((4, 64), np.float32)), np.ones((2, 64), np.float32)]
    assert ms.measure_latency(small_model.path, batches, max_ms=1000).verdict is ms.Verdict.PASS


@pytest.mark.parametrize(
    ("gate", "models", "budget"),
    [
        (ms.measure_latency, 1, {"max_ms": 1000}),
        (ms.measure_slowdown, 2, {"max_ratio": 2}),
        (ms.measure_memory, 1, {"max_mib": 1000}),
        (ms.measure_cold_start, 1, {"max_ms": 1000}),
    ],
)
def test_data_loader_is_refused_because_time_and_memory_are_those_of_a_call(small_model, gate, models, budget):
    loader = torch.utils.data.DataLoader(torch.ones(8, 64), batch_size=4)
    with pytest.raises(ms.InputError, match=r"^inputs is a DataLoader: .* such as next\(iter\(loader\)\)\[0\]\[:1\]$"):
        gate(*[small_model] * models, loader, **budget)
