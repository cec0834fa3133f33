"""The calibration gate."""

import numpy as np
import pytest
from scipy.special import softmax

import pytest_modelserve as ms
from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring import measure_calibration


def calibrated(rows, seed, *, classes=4):
    """Logits of calibrated probabilities, and labels drawn from these."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (rows, classes))
    labels = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
    return logits, labels


def test_calibrated_model_passes_and_the_curve_is_in_the_evidence():
    logits, labels = calibrated(4000, 0)
    evidence = measure_calibration(softmax(logits, axis=1), labels, max_error=0.05)
    assert evidence.verdict is Verdict.PASS
    (curve,) = ms.Evidence.from_json(evidence.to_json()).details["reliability"]
    assert curve["label"] == "confidence"
    assert sum(curve["n"]) == 4000
    ends = zip(curve["low"], curve["accuracy"], curve["high"], strict=True)
    assert all(low <= accuracy <= high for low, accuracy, high in ends)
    assert len(curve["confidence"]) == 15


def test_overconfident_model_fails_and_the_text_names_the_bin():
    logits, labels = calibrated(4000, 1)
    evidence = measure_calibration(softmax(2 * logits, axis=1), labels, max_error=0.05)
    assert evidence.verdict is Verdict.FAIL
    assert evidence.value > 0.1
    assert evidence.findings[0].startswith("confidence: mean probability ")
    assert "recalibrate" in evidence.advice


def test_few_rows_are_inconclusive_with_the_rows_that_decide():
    logits, labels = calibrated(200, 2)
    evidence = measure_calibration(softmax(logits, axis=1), labels, max_error=0.05)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert "labeled rows, with which a calibrated model passes 9 times in 10" in evidence.advice


def test_logits_are_read_as_probabilities_of_both_shapes():
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, 3000)
    labels = (rng.random(3000) < 1 / (1 + np.exp(-logits))).astype(int)
    output = ms.Output(scores="logits")
    one = measure_calibration(logits, labels, max_error=0.05, output=output)
    two = measure_calibration(np.column_stack([-logits, logits]) / 2, labels, max_error=0.05, output=output)
    assert one.value == pytest.approx(two.value)
    assert one.details["reliability"][0]["label"] == "class 1"


def test_one_class_that_is_off_is_found_among_classes():
    logits, labels = calibrated(6000, 4)
    probabilities = softmax(logits, axis=1)
    probabilities[:, 2] *= 0.6
    probabilities[:, 3] += 1 - probabilities.sum(axis=1)
    evidence = measure_calibration(probabilities, labels, max_error=0.04, per_class=True)
    assert evidence.verdict is Verdict.FAIL
    assert {q.name for q in evidence.quantities if q.verdict is Verdict.FAIL} == {
        "calibration error class 2",
        "calibration error class 3",
    }


def test_single_class_other_labels_and_scores_that_are_no_probabilities_are_refused():
    logits, labels = calibrated(50, 5)
    probabilities = softmax(logits, axis=1)
    with pytest.raises(ms.InputError, match=r"all 50 labels are 0: calibration needs rows of another class"):
        measure_calibration(probabilities, np.zeros(50, int), max_error=0.05)
    with pytest.raises(ms.InputError, match=r"label 9 in row 3 has no column"):
        measure_calibration(probabilities, np.where(np.arange(50) == 3, 9, labels), max_error=0.05)
    with pytest.raises(ms.InputError, match=r"probabilities lie between 0 and 1; use scores='logits'"):
        measure_calibration(logits, labels, max_error=0.05)
    with pytest.raises(ms.InputError, match=r"outputs hold NaN in 1 of 50 rows, first in row 4"):
        measure_calibration(np.where(np.arange(50)[:, None] == 4, np.nan, probabilities), labels, max_error=0.05)
    with pytest.raises(ms.UsageError, match=r"max_error must lie between 0 and 1"):
        measure_calibration(probabilities, labels, max_error=5)


def test_block_that_leaves_few_blocks_is_refused():
    logits, labels = calibrated(1000, 0)
    with pytest.raises(ms.InputError, match="leaves 2 independent blocks of 1000 rows, and at least 20 are needed"):
        measure_calibration(softmax(logits, axis=1), labels, max_error=0.5, block=500)
