"""The same answers again: in the same session, in a new one, on other numbers of threads."""

from __future__ import annotations

from typing import Any

import pytest
from numpy.typing import NDArray
from onnx import helper

import pytest_modelserve as ms
from pytest_modelserve.serving.onnx_predictor import OnnxPredictor

r = ms.relations
Array = NDArray[Any]


@pytest.fixture
def random_model(onnx_model: Any) -> ms.Predictor:
    """Adds noise to its input, drawn anew in each session."""
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"]),
        helper.make_node("Add", ["x", "noise"], ["y"]),
    ]
    return ms.serve(onnx_model(nodes, {"x": ("float32", ["n", 10])}, {"y": ("float32", ["n", 10])}), name="noisy")


def test_a_model_without_state_is_the_same_in_a_new_session_and_on_more_threads(
    classifier: ms.Predictor, rows: Array
) -> None:
    for isolate in (False, True):
        relation = r.determinism(new_session=True, threads=(1, 2))
        evidence = ms.measure_relation(classifier, rows, relation, candidates=50, isolate=isolate)
        assert evidence.verdict is ms.Verdict.PASS
        assert evidence.findings == (
            "asked 2 times and in a session opened anew, the model gives the same answers bit for bit, and on 1 and 2 "
            "threads the same within 256 units in the last place of the output's largest magnitude",
        )


def test_a_random_operator_is_told_by_a_new_session(random_model: ms.Predictor, rows: Array) -> None:
    evidence = ms.measure_relation(random_model, rows, r.determinism(new_session=True), save_to=None)
    assert evidence.verdict is ms.Verdict.FAIL


class Threads(OnnxPredictor):
    """Answers by the number of its threads, which no operator of onnxruntime does on purpose."""

    def predict(self, inputs: Any) -> Any:
        return {name: array + 1e-3 * self.threads for name, array in super().predict(inputs).items()}


def test_answers_that_follow_the_number_of_threads_are_told(
    classifier: ms.Predictor, rows: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_modelserve.serving.onnx_predictor.OnnxPredictor", Threads)
    assert classifier.artifact is not None
    model = Threads(classifier.artifact)
    evidence = ms.measure_relation(model, rows, r.determinism(threads=(1, 3)), save_to=None)
    assert evidence.verdict is ms.Verdict.FAIL
    assert "on 3 threads and" in evidence.findings[1]
    loose = r.determinism(threads=(3,), rtol=0, atol=0.01)
    assert ms.measure_relation(model, rows, loose).verdict is ms.Verdict.PASS


def test_sessions_opened_for_a_relation_are_closed_and_the_users_own_is_not(
    classifier: ms.Predictor, rows: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[OnnxPredictor] = []
    monkeypatch.setattr(OnnxPredictor, "close", lambda self: closed.append(self))
    ms.measure_relation(classifier, rows, r.determinism(new_session=True, threads=(2,)), candidates=10)
    assert [predictor.threads for predictor in closed] == [1, 2]
    assert classifier not in closed


def test_a_function_has_no_session_to_open_again(rows: Array) -> None:
    with pytest.raises(ms.UsageError) as error:
        ms.measure_relation(ms.serve(lambda x: x, name="f"), rows, r.determinism(new_session=True))
    assert str(error.value) == (
        "f cannot be reopened because it does not serve a file: export the model and serve the artifact, or test "
        "determinism within one session"
    )


@pytest.mark.parametrize("threads", [(0,), (True,), (1.5,)])
def test_threads_are_counts(threads: Any) -> None:
    with pytest.raises(ms.UsageError, match="threads holds whole numbers of at least 1, not"):
        r.determinism(threads=threads)
