"""Missing values, rejection of malformed inputs, and a table of rows with known labels."""

import numpy as np
import pytest
from onnx import helper

import pytest_modelserve as ms

r = ms.relations
TABLE = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.5]], np.float32)


def measured(relation, model=lambda x: x, rows=TABLE, **options):
    return ms.measure_relation(ms.serve(model, name="scores"), rows, relation, save_to=None, **options)


def test_missing_text_is_the_given_marker_and_integers_need_one():
    names = np.array([["a", "b"], ["b", "a"]], object)
    relation = r.missing_values(0, marker="")
    finite = measured(relation, lambda x: (x[:, 0] == "").astype(np.float32) + 0, names)
    broken = measured(relation, lambda x: np.array([1 / len(text) if text else np.nan for text in x[:, 0]]), names)
    assert (finite.verdict, broken.verdict) == (ms.Verdict.PASS, ms.Verdict.FAIL)
    with pytest.raises(ms.UsageError, match="marker= is missing: input 'input' is int64, which has no NaN"):
        measured(r.missing_values(0), rows=np.ones((2, 2), np.int64))


def test_onnxruntime_rejects_whatever_does_not_fit(classifier, rows):
    evidence = ms.measure_relation(classifier, rows, r.clean_rejection(ms.InputError))
    assert (evidence.verdict, evidence.n) == (ms.Verdict.PASS, 20)
    assert ms.measure_relation(classifier, rows, r.clean_rejection(), isolate=True).verdict is ms.Verdict.PASS


def test_malformed_inputs_without_rows_are_rejected(onnx_model):
    nodes = [helper.make_node("Mul", ["x", "scale"], ["y"])]
    model = ms.serve(onnx_model(nodes, {"x": ("float32", ["n"]), "scale": ("float32", [])}, {"y": ("float32", ["n"])}))
    inputs = {"x": np.ones(3, np.float32), "scale": np.array(2, np.float32)}
    assert ms.measure_relation(model, inputs, r.clean_rejection()).verdict is ms.Verdict.PASS


def test_a_function_that_accepts_anything_or_crashes_fails_with_the_fault():
    def strict(x, error=ValueError):
        if x.dtype != np.float32 or x.ndim != 2:
            raise error("float32 of two axes")
        return x

    def crashing(x):
        return strict(x, ZeroDivisionError)

    assert measured(r.clean_rejection(), strict).verdict is ms.Verdict.PASS
    accepting = measured(r.clean_rejection())
    assert accepting.verdict is ms.Verdict.FAIL
    assert accepting.findings[1] == "input 'input': dtype: the model returned an output"
    found = measured(r.clean_rejection(), crashing).findings[1]
    assert found.startswith("input 'input': dtype: ZeroDivisionError: float32 of two axes")
    allowed = r.clean_rejection(ZeroDivisionError)
    assert measured(allowed, crashing).verdict is ms.Verdict.PASS
    assert allowed.definition == "malformed inputs raise ZeroDivisionError"


def jittered(rows, rng):
    return {"input": (rows["input"] + rng.uniform(-0.04, 0.04, rows["input"].shape)).astype(np.float32)}


def test_a_table_with_the_expected_labels_passes_without_a_search():
    evidence = measured(r.minimum_functionality([0, 1, 0]))
    assert (evidence.verdict, evidence.n) == (ms.Verdict.PASS, 3)
    assert measured(r.minimum_functionality(np.array([0, 1, 0]), perturb=jittered)).verdict is ms.Verdict.PASS
    with pytest.raises(ms.UsageError, match="candidates is not supported by minimum functionality"):
        measured(r.minimum_functionality([0, 1, 0]), candidates=10)


@pytest.mark.parametrize(
    ("options", "model", "sentence"),
    [
        ({"labels": [0, 1, 1]}, lambda x: x, "the label is 0 and 1 is expected"),
        ({"labels": [0, 1, 0]}, lambda x: np.where(x > 0.85, np.nan, x), "the label is None and 0 is expected"),
        (
            {"labels": [0, 1, 0], "perturb": lambda rows: {"input": rows["input"] + np.float32([0, 0.2])}},
            lambda x: x,
            "the label is 1 for perturbed copy 1 and 0 is expected",
        ),
        ({"labels": [1, 1, 1], "perturb": jittered}, lambda x: x, "the label is 0 and 1 is expected"),
    ],
)
def test_a_row_or_copy_with_another_label_is_described(options, model, sentence):
    evidence = measured(r.minimum_functionality(**options), model)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings[1] == sentence


def test_labels_may_be_text():
    named = r.minimum_functionality(["a", "b", "a"], decode=lambda scores: np.array(["a", "b"])[scores.argmax(axis=1)])
    assert measured(named).verdict is ms.Verdict.PASS


@pytest.mark.parametrize(
    ("relation", "message"),
    [
        (r.minimum_functionality([0, 1]), "labels must be one for each of 3 rows of the table, got 2"),
        (r.minimum_functionality([0, 1, 1]), "the table has one row twice, once as 0 and once as 1"),
        (
            r.minimum_functionality([0, 1, 0], perturb=lambda rows: {"input": rows["input"] * 1.0 + np.ones(2)}),
            "transform must return input 'input' as float32, got float64: convert back",
        ),
    ],
)
def test_a_table_or_copies_that_do_not_fit_are_an_input_error(relation, message):
    assert measured(r.minimum_functionality([0, 0]), rows=TABLE[[0, 0]]).verdict is ms.Verdict.PASS
    with pytest.raises(ms.InputError) as error:
        measured(relation, rows=TABLE[[0, 1, 0]])
    assert str(error.value) == message
