"""A crash or a timeout of the serving process is a counterexample, and does not end the test run."""

import os
import time
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import onnx
import pytest
from ml_dtypes import bfloat16
from onnx import helper, numpy_helper

import pytest_modelserve as ms
from pytest_modelserve.serving.predictor import ProcessCrashError
from pytest_modelserve.serving.subprocess_predictor import SubprocessPredictor

r = ms.relations
SMALLEST = np.iinfo(np.int64).min


@pytest.fixture
def divider(onnx_model):
    """Feature 2 divided by feature 7, on which onnxruntime crashes for the smallest integer and -1."""
    nodes = [
        helper.make_node("Gather", ["x", "i"], ["a"], axis=1),
        helper.make_node("Gather", ["x", "j"], ["b"], axis=1),
        helper.make_node("Div", ["a", "b"], ["y"]),
    ]
    shapes = {"x": ("int64", ["n", 10])}, {"y": ("int64", ["n", 1])}
    return ms.serve(onnx_model(nodes, *shapes, i=np.array([2]), j=np.array([7])), name="divider")


@pytest.fixture
def whole():
    """Twenty rows of ten features from 1 to 8."""
    return np.random.default_rng(0).integers(1, 9, (20, 10))


@pytest.fixture
def looping(tmp_path):
    """A loop with as many iterations as the largest feature."""
    tensor, kinds = helper.make_tensor_value_info, onnx.TensorProto
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["go"]), helper.make_node("Add", ["v", "one"], ["w"])],
        "body",
        [tensor("k", kinds.INT64, []), tensor("c", kinds.BOOL, []), tensor("v", kinds.INT64, [])],
        [tensor("go", kinds.BOOL, []), tensor("w", kinds.INT64, [])],
        [numpy_helper.from_array(np.array(1), "one")],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Loop", ["most", "", "most"], ["end"], body=body),
        helper.make_node("Add", ["x", "end"], ["y"]),
    ]
    shape = ["n", 4]
    graph = helper.make_graph(nodes, "g", [tensor("x", kinds.INT64, shape)], [tensor("y", kinds.INT64, shape)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "loop.onnx")
    return ms.serve(tmp_path / "loop.onnx", name="loop")


@pytest.fixture(autouse=True)
def no_child_is_left():
    resource_tracker.ensure_running()  # multiprocessing's own, which lives as long as this process
    before = children()
    yield
    assert children() <= before


def children():
    """Return the child processes of this one, from the kernel's list."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_a_row_that_crashes_is_found_minimized_and_reported(divider, whole):
    whole[3, 2], whole[4, 7] = SMALLEST, -1
    with pytest.raises(ms.GateFailure) as error:
        ms.assert_relation(divider, whole[3:5], r.finite_outputs(), save_to=None, domain="like")
    sha256 = error.value.evidence.subject.sha256
    assert sha256 is not None
    message = str(error.value).replace(sha256[:12], "0" * 12)
    assert (
        message
        == """\
relation: the model crashes

  finite outputs: violations 1
  method     search without a confidence level, 5 fixed and 0 generated rows, seed 0, n = 5 candidates
  budget     at most 0
  verdict    FAIL: the value lies above the budget

  finite inputs have outputs without NaN and infinities
  the process that serves divider was killed by SIGFPE
  1 of 10 features differs from base row 0 (5 before minimization)
    x[7]   3 → -1
  @example({'x': np.array([[7, 2, -9223372036854775808, 7, 1, 5, 1, -1, 4, 4]], dtype='int64')})
  candidate  divider  sha256 000000000000…
  next       reject such inputs before the model, or replace the operator that crashes"""
    )


def test_a_base_row_that_crashes_is_reported_before_the_relation_is_evaluated(divider, whole):
    whole[1, [2, 7]] = SMALLEST, -1
    evidence = ms.measure_relation(divider, whole[:2], r.batch_invariance(), save_to=None)
    assert evidence.findings[1] == "the process that serves divider was killed by SIGFPE"
    assert evidence.findings[2] == "base row 1 violates it unchanged"


def test_only_a_model_that_may_crash_is_isolated_by_default(divider, looping, whole, monkeypatch):
    started = []
    start = SubprocessPredictor.__init__

    def counted(self, predictor, **options):
        started.append(predictor.subject.name)
        start(self, predictor, **options)

    monkeypatch.setattr(SubprocessPredictor, "__init__", counted)
    for model, inputs in ((divider, whole), (looping, whole[:, :4])):
        assert ms.measure_relation(model, inputs, r.finite_outputs(), candidates=20).verdict is ms.Verdict.PASS
    assert started == ["divider"]
    ms.measure_relation(divider, whole, r.finite_outputs(), candidates=20, isolate=False)
    assert started == ["divider"]
    ms.measure_relation(looping, whole[:, :4], r.finite_outputs(), candidates=20, time_limit_s=30)
    assert started == ["divider", "loop"]


def test_without_isolation_rows_that_would_crash_are_rejected(divider, whole):
    evidence = ms.measure_relation(divider, whole, r.finite_outputs(), domain=("like", "special"), isolate=False)
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.details["rejected"] > 0


def test_isolated_relations_have_the_same_findings(classifier, rows):
    wrong = r.relation("sure", lambda p, c, b: p.predict(c)["p"].max(axis=1) > 0.999)
    for relation in (r.batch_invariance(), wrong, r.agreement(classifier)):
        options = {"candidates": 100, "save_to": None}
        here = ms.measure_relation(classifier, rows, relation, **options)
        there = ms.measure_relation(classifier, rows, relation, isolate=True, **options)
        assert there.findings == here.findings
        assert there.details == here.details


def test_a_model_that_does_not_return_is_reported_with_the_row(looping):
    rows = np.random.default_rng(0).integers(0, 9, (8, 4))
    rows[5, 1] = 2**62
    started = time.monotonic()
    evidence = ms.measure_relation(looping, rows, r.finite_outputs(), time_limit_s=0.3, save_to=None)
    assert time.monotonic() - started < 300
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings[1].startswith("the process that serves loop did not return within ")
    assert "base row 5 violates it unchanged" in evidence.findings[2]
    assert evidence.advice == "bound the model's loops, or raise time_limit_s if it is only slow"


def test_the_time_limit_grows_with_the_number_of_rows(classifier, rows):
    with SubprocessPredictor(classifier, time_limit_s=60) as model:
        many = np.tile(rows, (5000, 1))
        model.predict(rows[:1])
        model._fastest_row_s = 0.1
        model.time_limit_s = 1e-9
        assert len(model.predict(many)["p"]) == 100_000


def test_a_process_is_restarted_after_a_crash(divider, whole):
    with SubprocessPredictor(divider, time_limit_s=30) as model:
        expected = divider.predict(whole)["y"]
        whole[0, [2, 7]] = SMALLEST, -1
        for _ in range(2):
            np.testing.assert_array_equal(model.predict(whole[1:])["y"], expected[1:])
            with pytest.raises(ProcessCrashError, match=r"^the process that serves divider was killed by SIGFPE$"):
                model.predict(whole)
        assert model.starts == 2
        with pytest.raises(ms.InputError, match="axis 1 is 9 instead of 10"):
            model.predict(whole[:, :9])
        assert model.describe().endswith("1 thread, in a process of its own")
    with pytest.raises(ms.UsageError, match="the predictor of divider is closed"):
        model.predict(whole)


def test_text_and_bfloat16_are_passed_unchanged(onnx_model):
    text = [helper.make_node("Identity", ["x"], ["y"])], {"x": ("str", ["n"])}, {"y": ("str", ["n"])}
    cast = [helper.make_node("Cast", ["x"], ["y"], to=16)], {"x": ("float32", ["n"])}, {"y": (bfloat16, ["n"])}
    for graph, x in ((text, np.array(["längst", ""], object)), (cast, np.array([1.5, -0.0], np.float32))):
        model = ms.serve(onnx_model(*graph))
        with SubprocessPredictor(model, time_limit_s=30) as isolated:
            here, there = model.predict(x)["y"], isolated.predict(x)["y"]
        assert there.dtype == here.dtype
        assert there.tolist() == here.tolist()


def test_a_changed_file_is_not_served(divider, whole):
    assert divider.artifact is not None
    model = onnx.load(divider.artifact.path)
    model.doc_string = "another one"
    onnx.save(model, divider.artifact.path)
    with pytest.raises(
        ms.ModelServeError, match=r"divider could not be opened in a process of its own: the model .* changed"
    ):
        ms.measure_relation(divider, whole, r.finite_outputs(), isolate=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isolate": True}, "f cannot run in a child process because it does not serve a file: export the model and serve the artifact, "),
        ({"time_limit_s": 3}, "f cannot run in a child process because it does not serve a file: "),
        ({"time_limit_s": 0}, "time_limit_s must be a finite number of seconds above 0, got 0"),
        ({"time_limit_s": 3, "isolate": False}, "time_limit_s requires a child process: remove isolate=False"),
    ],
)  # fmt: skip
def test_invalid_isolation_arguments_are_rejected(options, message, rows):
    with pytest.raises(ms.UsageError) as error:
        ms.measure_relation(ms.serve(lambda x: x, name="f"), rows, r.finite_outputs(), **options)
    assert str(error.value).startswith(message)
