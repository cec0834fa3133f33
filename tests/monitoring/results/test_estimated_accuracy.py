"""The gate on accuracy without labels."""

import numpy as np
import polars
import pytest
from scipy.special import expit, softmax

import pytest_modelserve as ms
from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring import measure_estimated_accuracy


def score(inputs):
    return expit(2.5 * inputs[:, 0] + 2 * inputs[:, 1])


def labeled(rows, seed, *, shift=0.0):
    """Inputs and labels drawn from the probabilities of the model."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(rows, 4))
    inputs[:, 0] += shift
    return inputs, (rng.random(rows) < score(inputs)).astype(int)


BEFORE, LABELS = labeled(4000, 0)


def estimated(inputs, **options):
    return measure_estimated_accuracy(
        score(inputs), score(BEFORE), LABELS, inputs=inputs, calibration_inputs=BEFORE, **options
    )


def test_pass_states_its_assumption_in_the_first_line():
    inputs, labels = labeled(2000, 1, shift=0.7)
    evidence = estimated(inputs, min_value=0.82)
    assert evidence.verdict is Verdict.PASS
    assert str(evidence).splitlines()[0] == (
        "estimated accuracy: at least as accurate as required, if labels given the inputs are distributed as in "
        "calibration"
    )
    assert evidence.interval.low < ((score(inputs) > 0.5) == labels).mean() < evidence.interval.high
    assert any("change of concept) is not detected without labels" in finding for finding in evidence.findings)


def test_rows_that_are_harder_fail():
    inputs, _ = labeled(2000, 2)
    inputs[:, :2] *= 0.3  # near the boundary, where the model is unsure
    evidence = estimated(inputs, min_value=0.85)
    assert evidence.verdict is Verdict.FAIL
    assert "audit some of these rows" in evidence.advice


def test_rows_outside_the_support_of_calibration_are_inconclusive_with_the_rows_that_would_do():
    inputs, _ = labeled(2000, 3, shift=1.5)
    evidence = estimated(inputs, min_value=0.5)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert evidence.details["effective_size"] < 800
    assert evidence.interval.low == 0
    assert "calibration rows like these" in evidence.advice


def test_rows_apart_from_all_calibration_rows_are_inconclusive():
    inputs, _ = labeled(2000, 3)
    inputs[:, 3] += 100
    evidence = estimated(inputs, min_value=0.5)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert evidence.details["imbalance"] > 50
    assert "no weights make up for an input whose mean differs by" in evidence.findings[1]


def test_change_of_concept_is_not_seen_without_labels_and_200_audited_labels_fail():
    passed = failed = 0
    for seed in range(20):
        inputs, _ = labeled(3000, 10 + seed)
        rng = np.random.default_rng(seed)
        labels = (rng.random(3000) < expit(2.5 * inputs[:, 0] - 2 * inputs[:, 1])).astype(int)
        passed += estimated(inputs, min_value=0.8).passed
        audit = ms.planning.audit_rows(score(inputs), 200, seed=seed)
        audited = ms.measure_audited_accuracy(score(inputs), audit, labels[audit.rows], min_value=0.8)
        failed += audited.verdict is Verdict.FAIL
    assert passed == failed == 20


def test_classes_and_logits_are_read_as_confidence():
    rng = np.random.default_rng(4)

    def draw(rows):
        logits = rng.normal(0, 2, (rows, 4))
        labels = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
        return logits, labels

    before, labels = draw(4000)
    now, realized = draw(2000)
    evidence = measure_estimated_accuracy(
        now, before, labels, inputs=now, calibration_inputs=before, min_value=0.5, output=ms.Output(scores="logits")
    )
    assert evidence.verdict is Verdict.PASS
    assert evidence.interval.low < (now.argmax(axis=1) == realized).mean() < evidence.interval.high


def test_errors_of_numbers_are_estimated():
    rng = np.random.default_rng(5)
    before, now = rng.uniform(0, 2, (4000, 1)), rng.uniform(0.5, 2, (2000, 1))
    labels = before[:, 0] + before[:, 0] * rng.normal(size=4000)
    options = {"inputs": now, "calibration_inputs": before, "metric": "mae"}
    evidence = measure_estimated_accuracy(now[:, 0], before[:, 0], labels, max_value=1.1, **options)
    assert evidence.verdict is Verdict.PASS
    assert evidence.value == pytest.approx(1.25 * np.sqrt(2 / np.pi), abs=0.08)
    failed = measure_estimated_accuracy(now[:, 0], before[:, 0], labels, max_value=0.85, **options)
    assert failed.verdict is Verdict.FAIL


def test_frames_with_text_and_missing_values_are_inputs():
    rng = np.random.default_rng(6)

    def frame(inputs, share):
        city = rng.choice(["Bern", "Graz"], len(inputs), p=[share, 1 - share])
        age = np.where(rng.random(len(inputs)) < 0.1, np.nan, inputs[:, 0])
        return polars.DataFrame({"age": age, "other": inputs[:, 1], "city": city})

    inputs, _ = labeled(2000, 7)
    evidence = measure_estimated_accuracy(
        score(inputs),
        score(BEFORE),
        LABELS,
        inputs=frame(inputs, 0.8),
        calibration_inputs=frame(BEFORE, 0.5),
        min_value=0.8,
    )
    assert evidence.verdict is Verdict.PASS
    assert 2000 < evidence.details["effective_size"] < 3500  # 4000 / (0.8²/0.5 + 0.2²/0.5)


def test_model_predicts_both_sets_of_rows():
    inputs, _ = labeled(1000, 8)
    model = ms.serve(score, name="net")
    evidence = measure_estimated_accuracy(model, model, LABELS, inputs=inputs, calibration_inputs=BEFORE, min_value=0.8)
    assert evidence.subject.name == "net"
    assert evidence.value == estimated(inputs, min_value=0.8).value


def test_single_row_single_class_and_inputs_that_do_not_fit_are_refused():
    inputs, _ = labeled(100, 9)
    with pytest.raises(ms.InputError, match=r"outputs has 1 row: an estimate needs at least 30"):
        estimated(inputs[:1], min_value=0.8)
    with pytest.raises(ms.InputError, match=r"all 4000 labels are 1"):
        measure_estimated_accuracy(
            score(inputs), score(BEFORE), np.ones(4000, int), inputs=inputs, calibration_inputs=BEFORE, min_value=0.8
        )
    with pytest.raises(ms.InputError, match=r"'inputs' has shape \(100, 3\) in inputs"):
        measure_estimated_accuracy(
            score(inputs), score(BEFORE), LABELS, inputs=inputs[:, :3], calibration_inputs=BEFORE, min_value=0.8
        )
    with pytest.raises(ms.InputError, match=r"'b' is in one only"):
        measure_estimated_accuracy(
            score(inputs),
            score(BEFORE),
            LABELS,
            inputs={"a": inputs, "b": inputs},
            calibration_inputs={"a": BEFORE},
            min_value=0.8,
        )
    with pytest.raises(ms.InputError, match=r"use scores='logits'"):
        measure_estimated_accuracy(
            9 * score(inputs), score(BEFORE), LABELS, inputs=inputs, calibration_inputs=BEFORE, min_value=0.8
        )
    with pytest.raises(ms.UsageError, match=r"metric='mae' has the budget max_value="):
        estimated(inputs, min_value=0.8, metric="mae")


@pytest.mark.parametrize("spread", [4, 1e300])
def test_rows_that_spread_beyond_the_calibration_rows_are_inconclusive(spread):
    inputs, _ = labeled(2000, 3)
    now = inputs.copy()
    now[:, 3] *= spread
    evidence = measure_estimated_accuracy(
        score(inputs), score(BEFORE), LABELS, inputs=now, calibration_inputs=BEFORE, min_value=0.5
    )
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert evidence.details["outside"] > 0.05
    assert "outside the range of the calibration rows" in evidence.findings[-2]


def test_inputs_that_are_all_missing_are_inconclusive():
    now = np.full((2000, 4), np.nan)
    evidence = measure_estimated_accuracy(
        score(BEFORE[:2000]), score(BEFORE), LABELS, inputs=now, calibration_inputs=BEFORE, min_value=0.5
    )
    assert evidence.verdict is Verdict.INCONCLUSIVE


def test_numbers_and_texts_in_one_input_are_refused():
    with pytest.raises(ms.InputError, match=r"'inputs' holds <U.* in inputs and float64 in calibration_inputs"):
        measure_estimated_accuracy(
            score(BEFORE), score(BEFORE), LABELS, inputs=BEFORE.astype(str), calibration_inputs=BEFORE, min_value=0.5
        )
