"""What a user holds in the robustness gates: estimators, frames, sessions and DataLoaders."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

import pytest_modelserve as ms

RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(RNG.normal(size=(120, 2)), columns=["a", "b"])
LABELS = (FRAME["a"] > 0).astype(int)


@pytest.fixture(scope="module")
def model():
    return LogisticRegression().fit(FRAME, LABELS)


def test_an_estimator_and_its_frame_are_searched_for_counterexamples(model):
    relation = ms.relations.simplex(output="probabilities")
    assert ms.measure_relation(model, FRAME, relation, candidates=50).verdict is ms.Verdict.PASS
    wrong = ms.measure_relation(lambda x: np.stack([x["a"], x["b"]], axis=1), FRAME, ms.relations.simplex())
    assert wrong.verdict is ms.Verdict.FAIL
    with pytest.raises(ms.UsageError, match="axis -1 holds no scores of output 'output'"):
        ms.measure_relation(lambda x: x["a"], FRAME, ms.relations.simplex())


def test_labels_of_an_estimator_are_stable_under_a_transformation_of_its_columns(model):
    def shift(columns):
        return {name: values + 1e-9 for name, values in columns.items()}

    evidence = ms.measure_label_stability(model, FRAME, shift, min_agreement=0.9, output="label")
    assert evidence.verdict is ms.Verdict.PASS


def test_a_corrupted_column_of_a_frame_costs_accuracy(model):
    noise = ms.corruptions.noise(low=-3, high=3)
    options = {"corruptions": [noise], "max_drop": 0.5, "output": "label"}
    assert ms.measure_corruption_accuracy(model, FRAME, LABELS, input_name="b", **options).verdict is ms.Verdict.PASS
    with pytest.raises(ms.UsageError, match=r"corruptions holds the text 'noise': pass ms.corruptions.noise\(...\)"):
        ms.measure_corruption_accuracy(model, FRAME, LABELS, corruptions=["noise"], max_drop=0.1)


def test_label_gates_read_the_labels_of_a_classifier_without_output(model):
    evidence = ms.measure_label_stability(model, FRAME, lambda columns: dict(columns), min_agreement=0.9)
    assert evidence.verdict is ms.Verdict.PASS


def test_the_reference_of_agreement_is_whatever_can_be_served(model):
    for reference in (model, ms.serve(model)):
        same = ms.relations.agreement(reference, output="probabilities")
        evidence = ms.measure_relation(model, FRAME, same, candidates=50)
        assert (evidence.verdict, evidence.reference.name) == (ms.Verdict.PASS, "LogisticRegression")
    with pytest.raises(ms.UsageError, match=r"^this gate calls the model, and ready outputs holds ready outputs"):
        ms.measure_relation(model, FRAME, ms.relations.agreement(np.zeros((120, 2))), candidates=50)


def test_a_relation_compares_one_output_or_several():
    counter = iter(range(1_000_000))
    noisy = ms.serve(lambda x: {"a": x, "b": -x, "noise": x + next(counter)})
    rows = np.ones((3, 2))

    def verdict(output):
        return ms.measure_relation(noisy, rows, ms.relations.determinism(output=output), candidates=20).verdict

    assert verdict("a") is verdict(["a", "b"]) is ms.Verdict.PASS
    assert verdict(None) is verdict(["a", "noise"]) is ms.Verdict.FAIL
    with pytest.raises(ms.UsageError, match="unknown output 'nois': did you mean 'noise'"):
        verdict(["a", "nois"])
