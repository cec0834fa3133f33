"""Determinism in sessions and on threads, and the axes along which sets are permuted."""

import numpy as np
import pytest
from onnx import helper

import pytest_modelserve as ms
from pytest_modelserve.serving.onnx_predictor import OnnxPredictor

r = ms.relations


def test_a_model_without_state_is_deterministic_in_a_new_session_and_on_more_threads(classifier, rows):
    relation = r.determinism(new_session=True, threads=(1, 2))
    evidence = ms.measure_relation(classifier, rows, relation, candidates=50)
    isolated = ms.measure_relation(classifier, rows, r.determinism(threads=(2,)), candidates=50, isolate=True)
    assert isolated.verdict is ms.Verdict.PASS
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.findings == (
        "called 2 times and in a new session, the model gives the same outputs bit for bit, and on 1 and 2 threads the "
        "same within 256 units in the last place of the output's largest magnitude",
    )


def test_a_random_operator_is_found_by_a_new_session(onnx_model, rows):
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["noise"]), helper.make_node("Add", ["x", "noise"], ["y"])]
    model = ms.serve(onnx_model(nodes, {"x": ("float32", ["n", 10])}, {"y": ("float32", ["n", 10])}))
    evidence = ms.measure_relation(model, rows, r.determinism(new_session=True), save_to=None)
    assert evidence.verdict is ms.Verdict.FAIL


class Threads(OnnxPredictor):
    """Outputs that depend on the number of threads, which no operator of onnxruntime does on purpose."""

    def predict(self, inputs):
        return {name: array + 1e-3 * self.threads for name, array in super().predict(inputs).items()}


def test_outputs_that_depend_on_the_number_of_threads_are_found(classifier, rows, monkeypatch):
    monkeypatch.setattr("pytest_modelserve.serving.onnx_predictor.OnnxPredictor", Threads)
    assert classifier.artifact is not None
    model = Threads(classifier.artifact)
    evidence = ms.measure_relation(model, rows, r.determinism(threads=(1, 3)), save_to=None)
    assert evidence.verdict is ms.Verdict.FAIL
    assert "on 3 threads and" in evidence.findings[1]
    loose = r.determinism(threads=(3,), rtol=0, atol=0.01)
    assert ms.measure_relation(model, rows, loose).verdict is ms.Verdict.PASS


def test_sessions_opened_for_a_relation_are_closed_and_the_users_own_is_not(classifier, rows, monkeypatch):
    closed = []
    monkeypatch.setattr(OnnxPredictor, "close", lambda self: closed.append(self))
    ms.measure_relation(classifier, rows, r.determinism(new_session=True, threads=(2,)), candidates=10)
    assert [predictor.threads for predictor in closed] == [1, 2]
    assert classifier not in closed


def test_a_function_cannot_be_opened_in_a_new_session(rows):
    with pytest.raises(ms.UsageError, match="f cannot be reopened because it does not serve a file"):
        ms.measure_relation(ms.serve(lambda x: x, name="f"), rows, r.determinism(new_session=True))


def test_inputs_that_share_a_named_axis_are_permuted_together(onnx_model):
    """A masked sum: elements without their mask in the same order have another sum."""
    nodes = [
        helper.make_node("Mul", ["x", "mask"], ["m"]), helper.make_node("ReduceSum", ["m", "one"], ["y"]),
        helper.make_node("ReduceSum", ["bias", "one"], ["b"]), helper.make_node("Add", ["y", "b"], ["z"]),
    ]  # fmt: skip
    inputs = {"x": ("float32", ["n", "items"]), "mask": ("float32", ["n", "items"]), "bias": ("float32", ["n", 3])}
    model = ms.serve(onnx_model(nodes, inputs, {"z": ("float32", ["n", 1])}, one=np.array([1])))
    rng = np.random.default_rng(0)
    feed = {name: rng.standard_normal((8, 3 if name == "bias" else 6)).astype(np.float32) for name in inputs}
    assert ms.measure_relation(model, feed, r.set_permutation("items"), save_to=None).verdict is ms.Verdict.PASS
    alone = ms.measure_relation(model, feed, r.set_permutation(1, inputs="x"), save_to=None)
    assert alone.verdict is ms.Verdict.FAIL
    with pytest.raises(ms.UsageError, match="axis 'words' is in no input"):
        ms.measure_relation(model, feed, r.set_permutation("words"))
    with pytest.raises(ms.InputError, match=r"different numbers of elements, \{'x': 6, 'mask': 6, 'bias': 3\}"):
        ms.measure_relation(model, feed, r.set_permutation(1))
    with pytest.raises(ms.InputError, match="rows must have at least 2 elements to permute, got 1"):
        ms.measure_relation(ms.serve(lambda x: x), np.ones((3, 1)), r.set_permutation())


def test_equivariant_outputs_follow_the_axis_that_the_signature_names(onnx_model):
    nodes = [helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 1])]
    shapes = {"x": ("float32", ["n", "items", 4])}, {"y": ("float32", ["n", 4, "items"])}
    model = ms.serve(onnx_model(nodes, *shapes))
    x = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32)
    for relation in (r.set_permutation("items", equivariant=True), r.set_permutation(equivariant=True, output_axis=2)):
        assert ms.measure_relation(model, x, relation, candidates=100).verdict is ms.Verdict.PASS
    with pytest.raises(ms.UsageError, match=r"output_axis= is needed: output 'y' .* has length 4 along axis 1 for 3"):
        ms.measure_relation(model, x, r.set_permutation(1, equivariant=True))
