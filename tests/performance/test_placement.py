"""Where the nodes of a model run: given profiles, and real ones on the CPU."""

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.serving.subprocess_predictor import SubprocessPredictor

X = np.ones((4, 64), np.float32)
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
AZURE = "AzureExecutionProvider"
RUN = {"cat": "Session", "name": "model_run", "dur": 1}


def event(node, operator, provider, us, index=0):
    arguments = {"op_name": operator, "provider": provider, "node_index": str(index)}
    return {"cat": "Node", "name": f"{node}_kernel_time", "dur": us, "args": arguments}


@pytest.fixture
def on_cuda(monkeypatch, small_model):
    """A model on a build of onnxruntime that has CUDA; its session has `started` and a profile of these nodes."""
    start = SubprocessPredictor.start

    def started_with_cuda(self):
        start(self)
        self.process.runtime["providers"] = [CUDA, CPU]

    def given(*nodes, started=(CUDA, CPU), runs=20):
        monkeypatch.setattr(SubprocessPredictor, "start", started_with_cuda)
        monkeypatch.setattr(SubprocessPredictor, "profile", lambda *_, **__: (list(started), [*nodes, RUN] * runs))
        return small_model

    return given


def test_fractions_of_nodes_and_of_time_are_judged(on_cuda):
    model = on_cuda(event("fc", "MatMul", CUDA, 90), event("act", "Relu", CUDA, 5), event("top", "TopK", CPU, 5))
    passed = ms.measure_placement(model, X, providers=[CUDA, CPU], min_fraction=0.6, min_time_fraction=0.9)
    assert [each.value for each in passed.quantities] == pytest.approx([2 / 3, 0.95, 0])
    assert (passed.verdict, passed.n, passed.n_unit) == (ms.Verdict.PASS, 3, "nodes")
    failed = ms.measure_placement(model, X, providers=[CUDA], min_fraction=0.7)
    assert failed.verdict is ms.Verdict.FAIL
    assert failed.findings == ("1 of 3 nodes run elsewhere: 1 × TopK on CPUExecutionProvider", "these are top")
    slow = ms.measure_placement(model, X, providers=[CUDA], min_fraction=0.6, min_time_fraction=0.96)
    assert (slow.verdict, slow.decisive.name) == (ms.Verdict.FAIL, "time")


def test_few_runs_do_not_decide_on_the_time(on_cuda):
    model = on_cuda(event("fc", "MatMul", CUDA, 90), runs=2)
    evidence = ms.measure_placement(model, X, providers=[CUDA], min_fraction=1, min_time_fraction=0.9)
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE


def test_nodes_of_a_loop_count_once_and_nodes_without_names_each(on_cuda):
    body = [event("body", "Add", CUDA, 1, index=7)] * 30
    model = on_cuda(*body, event("", "Mul", CUDA, 1, index=1), event("", "Mul", CUDA, 1, index=2))
    assert ms.measure_placement(model, X, providers=[CUDA], min_fraction=1).n == 3


@pytest.mark.parametrize(
    ("provider", "started", "why"),
    [
        ("TensorrtExecutionProvider", [CPU], "has only CUDAExecutionProvider, CPUExecutionProvider"),
        (CUDA, [CPU], "it did not start: check the driver and the libraries"),
        (CUDA, [CUDA, CPU], "it is in the session, and no node of the graph suits it"),
    ],
    ids=["not in the build", "does not start", "suits no node"],
)
def test_requested_provider_without_a_node_fails_at_any_budget(on_cuda, provider, started, why):
    model = on_cuda(event("fc", "MatMul", CPU, 90), started=started)
    evidence = ms.measure_placement(model, X, providers=[provider], min_fraction=0.001)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings[0].startswith(f"{provider} takes no node: ")
    assert why in evidence.findings[0]
    assert evidence.findings[1] == "1 of 1 nodes run elsewhere: 1 × MatMul on CPUExecutionProvider"


def test_real_profile_is_of_the_cpu(small_model):
    evidence = ms.assert_placement(small_model, X, providers=[CPU], min_fraction=1, min_time_fraction=1)
    assert {operator for _, operator, _ in evidence.details["nodes"]} == {"Neg", "MatMul", "Softmax"}
    assert evidence.details["providers"] == {CPU: {"nodes": 1.0, "time": 1.0}}


def test_no_silent_fallback_to_the_cpu(small_model):
    """The wheel has this provider, which is for nodes of one domain alone."""
    with ms.serve(small_model) as served:
        if AZURE not in _available():
            pytest.skip(f"this build of onnxruntime lacks {AZURE}")
        with pytest.raises(ms.GateFailure, match=r"3 of 3 nodes run elsewhere: 1 × Neg on CPUExecutionProvider"):
            ms.assert_placement(served, X, providers=[AZURE], min_fraction=0.5)


def test_real_placement_on_a_gpu(small_model):
    if CUDA not in _available():
        pytest.skip(f"this build of onnxruntime lacks {CUDA}")
    ms.assert_placement(small_model, X, providers=[CUDA], min_fraction=1)


def _available():
    import onnxruntime

    return onnxruntime.get_available_providers()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"providers": []}, "providers is empty: pass at least one execution provider"),
        ({"providers": CPU}, "providers must be a sequence of names"),
        ({"providers": ["CUDAExecutionProvidr"]}, "did you mean 'CUDAExecutionProvider'"),
        ({"providers": [CPU], "min_fraction": 0}, "min_fraction must be above 0 and at most 1"),
        ({"providers": [CPU], "min_time_fraction": 95}, "min_time_fraction must be above 0 and at most 1"),
    ],
)
def test_invalid_arguments_are_refused(options, message, small_model):
    with pytest.raises(ms.UsageError, match=message):
        ms.measure_placement(small_model, X, **{"min_fraction": 0.5, **options})


def test_only_a_model_file_has_a_placement():
    with pytest.raises(ms.UsageError, match="is no model file in onnxruntime"):
        ms.measure_placement(lambda x: x, X, providers=[CPU], min_fraction=0.5)
