"""The gate on accuracy with few labels, and the rows that it asks to label."""

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring import measure_audited_accuracy
from pytest_modelserve.planning import audit_rows


def served(rows, seed):
    """Probabilities of class 1 and labels drawn from them: 83 % of the predictions are right."""
    rng = np.random.default_rng(seed)
    probability = rng.beta(0.4, 0.4, rows)
    return probability, (rng.random(rows) < probability).astype(int)


def test_stratified_audit_passes_with_a_narrower_interval():
    probability, labels = served(10_000, 0)
    audit = audit_rows(probability, 500)
    assert audit.design == "stratified"
    assert len(set(audit.rows.tolist())) == audit.count == 500
    evidence = measure_audited_accuracy(probability, audit, labels[audit.rows], min_value=0.78)
    assert evidence.verdict is Verdict.PASS
    assert evidence.details["width_ratio"] < 0.92
    accuracy = ((probability > 0.5) == labels).mean()
    assert evidence.interval.low < accuracy < evidence.interval.high


def test_uniform_rows_with_ids_in_any_order_are_joined():
    probability, labels = served(5000, 1)
    ids = np.array([f"order-{number}" for number in range(5000)])
    rows = np.random.default_rng(1).choice(5000, 400, replace=False)
    by_number = measure_audited_accuracy(probability, rows, labels[rows], min_value=0.7)
    by_id = measure_audited_accuracy(probability, ids[rows], labels[rows], ids=ids, min_value=0.7)
    assert by_id.value == by_number.value
    assert by_number.verdict is Verdict.PASS
    assert by_number.details["design"] == "uniform"


def test_change_of_concept_fails_whatever_the_scores_say():
    probability, labels = served(5000, 2)
    wrong = np.where(np.random.default_rng(2).random(5000) < 0.3, 1 - labels, labels)
    audit = audit_rows(probability, 200)
    evidence = measure_audited_accuracy(probability, audit, wrong[audit.rows], min_value=0.8)
    assert evidence.verdict is Verdict.FAIL
    assert evidence.quantities[1].name == "mean score"
    assert evidence.quantities[1].value > 0.8


def test_few_rows_are_inconclusive_with_the_rows_that_decide():
    probability, labels = served(5000, 3)
    audit = audit_rows(probability, 60)
    evidence = measure_audited_accuracy(probability, audit, labels[audit.rows], min_value=0.85)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert "audit" in evidence.advice


def test_labels_without_scores_have_the_exact_bounds():
    probability, labels = served(5000, 4)
    predicted = (probability > 0.5).astype(int)
    audit = audit_rows(predicted, 300)
    assert audit.design == "uniform"
    evidence = measure_audited_accuracy(predicted, audit, labels[audit.rows], min_value=0.7)
    assert evidence.method.name.startswith("Clopper-Pearson")
    assert evidence.value == (predicted == labels)[audit.rows].mean()


def test_scores_do_not_count_with_fewer_than_five_wrong_labels():
    probability = np.linspace(0.5, 1, 1000)
    rows = np.arange(5, 1000, 20)
    labels = np.ones(50, int)
    labels[[3, 7, 12, 20]] = 0
    evidence = measure_audited_accuracy(probability, rows, labels, min_value=0.8)
    assert evidence.method.name == "Clopper-Pearson, labels alone"
    labels[25] = 0
    assert measure_audited_accuracy(probability, rows, labels, min_value=0.8).method.name.startswith("prediction-pow")


def test_weights_correct_for_a_selection_by_the_user():
    probability, labels = served(20_000, 5)
    unsure = np.abs(probability - 0.5) < 0.3
    chance = np.where(unsure, 0.1, 0.02)
    rows = np.flatnonzero(np.random.default_rng(5).random(20_000) < chance)
    evidence = measure_audited_accuracy(probability, rows, labels[rows], min_value=0.7, sample_weight=1 / chance[rows])
    accuracy = ((probability > 0.5) == labels).mean()
    assert evidence.interval.low < accuracy < evidence.interval.high
    assert abs(((probability > 0.5) == labels)[rows].mean() - accuracy) > 0.05


def test_planned_number_of_rows_passes_nine_times_in_ten():
    passed = 0
    for seed in range(60):
        probability, labels = served(5000, 100 + seed)
        audit = audit_rows(probability, min_value=0.78, value=0.8277, seed=seed)
        passed += measure_audited_accuracy(probability, audit, labels[audit.rows], min_value=0.78).passed
    assert 45 <= passed <= 60
    assert audit.count < ms.stats.proportion_rows_needed(0.8277, 0.78, confidence=0.95, alpha=0.001)


def test_equal_seeds_draw_equal_rows_and_others_do_not():
    probability, _ = served(1000, 6)
    first, again, other = (audit_rows(probability, 100, seed=seed).rows for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()


def test_score_that_says_little_is_sampled_uniformly():
    scores = np.random.default_rng(7).uniform(0.8, 0.82, 2000)
    assert audit_rows(scores, 200).design == "uniform"
    promising, _ = served(2000, 7)
    assert audit_rows(promising, 200, correlation=0.5).design == "stratified"
    assert audit_rows(promising, 200, correlation=0.1).design == "uniform"


def test_unknown_and_repeated_rows_and_other_bad_input_are_refused():
    probability, labels = served(100, 8)
    rows = np.arange(50)
    ids = np.array([f"a{number}" for number in range(100)])
    with pytest.raises(ms.InputError, match=r"holds row 100, and the outputs have rows 0 to 99 \(1 unknown\)"):
        measure_audited_accuracy(probability, [3, 100], labels[:2], min_value=0.8)
    with pytest.raises(ms.InputError, match=r"holds 'b7', which is none of the ids \(1 of 2 are unknown\)"):
        measure_audited_accuracy(probability, ["a1", "b7"], labels[:2], ids=ids, min_value=0.8)
    with pytest.raises(ms.InputError, match=r"ids hold 99 repeated ids"):
        measure_audited_accuracy(probability, ["a1"], labels[:1], ids=["a1"] * 100, min_value=0.8)
    with pytest.raises(ms.InputError, match=r"holds 3 2 times"):
        measure_audited_accuracy(probability, [3, 3], labels[:2], min_value=0.8)
    with pytest.raises(ms.InputError, match=r"there are 49 labels for 50 audited rows"):
        measure_audited_accuracy(probability, rows, labels[:49], min_value=0.8)
    with pytest.raises(ms.InputError, match=r"all 50 labels are 1"):
        measure_audited_accuracy(probability, rows, np.ones(50, int), min_value=0.8)
    with pytest.raises(ms.InputError, match=r"use scores='logits'"):
        measure_audited_accuracy(8 * probability, rows, labels[:50], min_value=0.8)
    with pytest.raises(ms.InputError, match=r"at least 3 rows, got 2"):
        measure_audited_accuracy(probability, [0, 1], [0, 1], min_value=0.8)
    with pytest.raises(ms.InputError, match=r"fewer than 2 audited rows in \d of 5 strata of the score"):
        measure_audited_accuracy(np.sort(probability), [0, 1, 2], [0, 1, 0], min_value=0.8, design="stratified")
    with pytest.raises(ms.UsageError, match=r"unknown design 'random'"):
        measure_audited_accuracy(probability, rows, labels[:50], min_value=0.8, design="random")
    with pytest.raises(ms.UsageError, match=r"audit_rows needs count="):
        audit_rows(probability)
    with pytest.raises(ms.UsageError, match=r"count must be from 3 to the 100 rows"):
        audit_rows(probability, 101)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (np.arange(100) < 50, {}, "audited_rows is a mask: pass the row numbers"),
        (np.arange(50), {"design": np.ones(100)}, "unknown design"),
    ],
)
def test_masks_and_arrays_of_designs_are_refused(rows, options, message):
    probability, labels = served(100, 0)
    with pytest.raises(ms.UsageError, match=message):
        measure_audited_accuracy(probability, rows, labels[:50], min_value=0.5, **options)
