"""Metrics: values against brute force, intervals against closed forms, NaN outputs and labels that do not fit."""

import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats as scipy_stats

import pytest_modelserve as ms
from pytest_modelserve.stats import delong_covariance

N = 600
RNG = np.random.default_rng(0)
LABELS = (RNG.random(N) < 0.3).astype(int)
CLASSES = RNG.integers(0, 4, N)
BALANCED = np.arange(N) % 2


def noisy(labels, wrong, seed=1):
    """Labels of which a proportion is replaced by another class."""
    rng = np.random.default_rng(seed)
    kinds = len(np.unique(labels))
    return np.where(rng.random(len(labels)) < wrong, (labels + rng.integers(1, kinds, len(labels))) % kinds, labels)


def counts(labels, predictions, kind):
    pairs = [(bool(label == kind), bool(found == kind)) for label, found in zip(labels, predictions, strict=True)]
    return pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True))


def brute(metric, labels, predictions):
    """Precision, recall and F by counting, for class 1 or averaged over the classes of the labels."""
    kinds = sorted(set(labels.tolist())) if metric.endswith("macro") or metric.startswith("balanced") else [1]
    found = []
    for kind in kinds:
        hits, misses, alarms = counts(labels, predictions, kind)
        if metric.startswith("precision"):
            found.append(hits / (hits + alarms) if hits + alarms else 0.0)
        elif metric.startswith(("recall", "balanced")):
            found.append(hits / (hits + misses))
        else:
            square = float(metric.removesuffix("_macro")[1:]) ** 2
            found.append((1 + square) * hits / ((1 + square) * hits + square * misses + alarms))
    return sum(found) / len(found)


BINARY = ["precision", "recall", "f1", "f0.5", "f2", "f1.5"]
MACRO = ["balanced_accuracy", "precision_macro", "recall_macro", "f1_macro", "f2_macro"]


@pytest.mark.parametrize("metric", BINARY + MACRO)
def test_values_are_those_of_the_definition(level, change, metric):
    labels = LABELS if metric in BINARY else CLASSES
    new, old = noisy(labels, 0.2), noisy(labels, 0.1, seed=2)
    alone = level(new, labels, metric=metric, decode="labels", min_value=0.5)
    assert alone.quantities[0].value == pytest.approx(brute(metric, labels, new))
    drop, reference, candidate = change(new, old, labels, metric=metric, decode="labels", max_drop=0.5).quantities
    assert reference.value == pytest.approx(brute(metric, labels, old))
    assert candidate.value == pytest.approx(brute(metric, labels, new))
    assert drop.value == pytest.approx(reference.value - candidate.value)


@pytest.mark.parametrize("metric", [*BINARY[:3], *MACRO[:4]])
def test_drop_has_three_verdicts(change, metric):
    labels = LABELS if metric in BINARY else CLASSES
    old = noisy(labels, 0.05)
    for wrong, max_drop, verdict in ((0.0, 0.1, "PASS"), (0.03, 0.03, "INCONCLUSIVE"), (0.6, 0.03, "FAIL")):
        new = noisy(old, wrong, seed=3)
        assert change(new, old, labels, metric=metric, decode="labels", max_drop=max_drop).verdict == verdict, wrong


@pytest.mark.parametrize("metric", ["balanced_accuracy", "precision", "f1", "precision_macro"])
def test_equal_models_pass_only_with_rows_enough_to_have_seen_a_difference(change, metric):
    model = noisy(BALANCED, 0.1)
    for max_drop, verdict in ((0.02, "PASS"), (0.003, "INCONCLUSIVE")):
        assert change(model, model, BALANCED, metric=metric, decode="labels", max_drop=max_drop).verdict == verdict


def test_precision_and_recall_of_one_model_have_exact_bounds(level):
    new = noisy(LABELS, 0.2)
    hits, misses, alarms = counts(LABELS, new, 1)
    for metric, n in (("precision", hits + alarms), ("recall", hits + misses)):
        evidence = level(new, LABELS, metric=metric, decode="labels", min_value=0.5)
        interval = evidence.quantities[0].interval
        assert evidence.n == n
        assert interval.low == pytest.approx(scipy_stats.beta.ppf(0.05, hits, n - hits + 1))
        assert interval.high == pytest.approx(scipy_stats.beta.ppf(0.999, hits + 1, n - hits))


def test_recall_is_compared_over_the_positive_rows_alone(change):
    new, positive = LABELS.copy(), np.flatnonzero(LABELS)
    new[positive[:5]] = 0
    new[np.flatnonzero(LABELS == 0)[:50]] = 1  # false alarms are none of recall's business
    evidence = change(new, LABELS, LABELS, metric="recall", decode="labels", max_drop=0.2)
    assert (evidence.n, evidence.gate) == (len(positive), "recall parity")
    assert evidence.quantities[0].value == pytest.approx(5 / len(positive))
    assert evidence.details["lost_rows"] == positive[:5].tolist()


def test_top_k_counts_labels_among_the_k_highest(level, change):
    scores, other = RNG.standard_normal((2, N, 6))
    labels = RNG.integers(0, 6, N)
    for k in (2, 4):
        expected = np.mean([label in np.argsort(-row)[:k] for row, label in zip(scores, labels, strict=True)])
        evidence = level(scores, labels, metric=f"top_{k}_accuracy", min_value=0.9)
        assert evidence.quantities[0].value == pytest.approx(expected)
        assert evidence.gate == f"top-{k} accuracy"
    top, plain = (
        change(scores + 0.1 * other, scores, labels, metric=metric, max_drop=0.02)
        for metric in ("top_1_accuracy", "accuracy")
    )
    assert (top.quantities, top.details) == (plain.quantities, plain.details)


@pytest.mark.parametrize("columns", [0, 1, 2])
def test_auc_is_the_proportion_of_ordered_pairs(level, columns):
    score = RNG.standard_normal(N) + 1.5 * LABELS
    outputs = {0: score, 1: score[:, None], 2: np.stack([-score, score], axis=1)}[columns]
    evidence = level(outputs, LABELS, metric="roc_auc", min_value=0.7)
    assert evidence.quantities[0].value == pytest.approx((score[LABELS == 1][:, None] > score[LABELS == 0]).mean())
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.method.name == "DeLong, Student t and Hall"


@pytest.mark.parametrize("dtype", ["<U3", object])
def test_positive_class_may_be_a_string(level, dtype):
    names = np.where(LABELS == 1, "yes", "no").astype(dtype)
    score = RNG.standard_normal(N) + 1.5 * LABELS
    area, turned = (
        level(score, names, metric="roc_auc", min_value=0.01, pos_label=label).quantities[0].value
        for label in ("yes", "no")
    )
    assert area == pytest.approx(1 - turned)
    f1 = level(names, names, metric="f1", decode="labels", pos_label="no", min_value=0.5)
    assert f1.quantities[0].value == 1


def test_many_classes_take_little_memory(level):
    labels = np.arange(4000) % 400
    model = noisy(labels, 0.1)
    tracemalloc.start()
    evidence = level(model, labels, metric="balanced_accuracy", decode="labels", min_value=0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert evidence.quantities[0].value == pytest.approx(0.9, abs=0.02)
    assert peak < 5 * 2**20  # a float for every row and class would be 12 MiB


def test_difference_of_areas_scatters_as_delong_says(change):
    base = RNG.standard_normal(N)
    old, new = base + 1.5 * BALANCED, base + 0.3 * RNG.standard_normal(N) + 1.4 * BALANCED
    evidence = change(new, old, BALANCED, metric="roc_auc", max_drop=0.05)
    assert [curve["label"] for curve in evidence.details["roc"]] == ["reference", "candidate"]
    drop = evidence.quantities[0]
    areas, covariance = delong_covariance(np.array([old, new]), BALANCED == 1)
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert drop.value == pytest.approx(areas[0] - areas[1])
    assert drop.interval.high == pytest.approx(drop.value + scipy_stats.norm.ppf(0.95) * error, abs=0.1 * error)
    assert drop.interval.low == pytest.approx(drop.value - scipy_stats.norm.ppf(0.999) * error, abs=0.3 * error)


@pytest.mark.parametrize("metric", ["log_loss", "brier_score"])
def test_losses_of_probabilities_are_means_over_the_rows(level, change, metric):
    p = 1 / (1 + np.exp(-(RNG.standard_normal(N) + 3 * LABELS - 1.5)))
    rows = -np.log(np.where(LABELS, p, 1 - p)) if metric == "log_loss" else (p - LABELS) ** 2
    for outputs, scores in ((p, "probabilities"), (np.log(p / (1 - p)), "logits")):
        evidence = level(outputs, LABELS, metric=metric, scores=scores, max_value=1.0)
        assert evidence.quantities[0].value == pytest.approx(np.mean(rows))
        assert evidence.verdict is ms.Verdict.PASS
        assert evidence.details["worst_rows"][0] == int(np.argmax(rows))
    worse = np.clip(p + np.where(LABELS, -0.2, 0.2), 0.01, 0.99)
    rise = change(worse, p, LABELS, metric=metric, scores="probabilities", max_rise=0.001)
    assert rise.verdict is ms.Verdict.FAIL


def test_coefficient_of_determination(level, change):
    targets = RNG.uniform(0, 10, N)
    old, new = targets + RNG.standard_normal(N), targets + 2 * RNG.standard_normal(N)
    values = [1 - ((targets - p) ** 2).sum() / ((targets - targets.mean()) ** 2).sum() for p in (old, new)]
    alone = level(old, targets, metric="r2", min_value=0.8)
    assert alone.quantities[0].value == pytest.approx(values[0])
    assert alone.verdict is ms.Verdict.PASS
    pair = change(new, old, targets, metric="r2", max_drop=0.05)
    assert pair.quantities[0].value == pytest.approx(values[0] - values[1])
    assert pair.verdict is ms.Verdict.FAIL


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "top_2_accuracy"])
def test_nan_rows_count_as_wrong_where_right_rows_are_counted(level, metric):
    scores = np.eye(4)[CLASSES]
    scores[:60] = np.nan
    evidence = level(scores, CLASSES, metric=metric, min_value=0.8)
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.quantities[0].value == pytest.approx(0.9, abs=0.02)
    assert evidence.findings[0].endswith("counted as wrong")


@pytest.mark.parametrize(
    ("metric", "arguments"),
    [
        ("roc_auc", {"max_drop": 0.5}),
        ("f1", {"max_drop": 0.5}),
        ("precision_macro", {"max_drop": 0.5}),
        ("r2", {"max_drop": 0.5}),
        ("log_loss", {"max_rise": 0.5, "scores": "logits"}),
    ],
)
def test_nan_rows_are_a_failure_of_their_own_elsewhere(change, metric, arguments):
    one_column = metric in ("roc_auc", "r2")
    good = RNG.standard_normal(N) if one_column else RNG.standard_normal((N, 2)) + 3 * np.eye(2)[LABELS]
    labels = good.copy() if metric == "r2" else LABELS
    bad = good.copy()
    bad[7] = np.nan
    evidence = change(bad, good, labels, metric=metric, **arguments)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.summary == "some outputs are NaN or infinite"
    assert (evidence.quantities[0].value, evidence.alpha) == (1, 0)
    with pytest.raises(ms.InputError, match="valid outputs in every row"):
        change(good, bad, labels, metric=metric, **arguments)


@pytest.mark.parametrize("weights", [None, np.ones(N)])
@pytest.mark.parametrize(("metric", "verdict"), [("recall", "PASS"), ("precision", "FAIL")])
def test_nan_rows_are_misses_and_no_predictions_of_the_positive_class(level, metric, verdict, weights):
    scores = np.eye(2)[LABELS]
    scores[np.flatnonzero(LABELS)[:9]] = np.nan
    evidence = level(scores, LABELS, metric=metric, min_value=0.8, sample_weight=weights)
    assert evidence.verdict == verdict
    assert evidence.quantities[0].value == (pytest.approx(1 - 9 / LABELS.sum()) if metric == "recall" else 9)


def test_class_that_is_never_predicted_has_no_precision_or_an_uncertain_one(level, change):
    """Weighted it is 0, with the bound of as many predictions as the class has rows; a drop to it fails."""
    never, how = np.zeros(N, int), {"metric": "precision", "decode": "labels"}
    with pytest.raises(ms.InputError, match="the model predicts the positive class in no row"):
        level(never, LABELS, min_value=0.5, **how)
    weighted = level(never, LABELS, min_value=0.5, sample_weight=np.ones(N), **how).quantities[0]
    assert weighted.value == 0
    assert weighted.interval.high == pytest.approx(N / LABELS.sum() * (1 - 0.001 ** (1 / N)))
    drop = change(never, LABELS, LABELS, max_drop=0.1, **how)
    assert (drop.verdict, drop.quantities[0].value) == (ms.Verdict.FAIL, 1)


def test_one_wrong_prediction_touches_two_classes_but_one_recall(level):
    """All right: the end is as far as a kind of row that has not been seen, among 300 rows a class, reaches."""
    for metric, touched in (("balanced_accuracy", 1), ("precision_macro", 2)):
        found = level(BALANCED, BALANCED, metric=metric, decode="labels", min_value=0.9).quantities[0]
        assert found.interval.low == pytest.approx(1 - touched * (1 - 0.05 ** (1 / N)))


@pytest.mark.parametrize("metric", ["f0", "f", "top_0_accuracy", "top_k_accuracy", "F1", "f1_micro", 3, None])
def test_unknown_metrics_are_named(level, metric):
    with pytest.raises(ms.UsageError, match=rf"^unknown metric {metric!r}: .*or a callable of labels and predictions$"):
        level(np.eye(2)[LABELS], LABELS, metric=metric, min_value=0.5)


@pytest.mark.parametrize(
    ("metric", "labels", "message"),
    [
        ("roc_auc", np.zeros(N, int), "all 600 labels are 0"),
        ("roc_auc", CLASSES, "labels have 4 classes: the area under the ROC curve takes two"),
        ("roc_auc", LABELS + 3, r"labels are 3, 4: give the positive class, such as output=ms.Output\(pos_label=4\)"),
        ("roc_auc", LABELS[:-1], "there are 599 labels for 600 rows of outputs"),
        ("balanced_accuracy", np.zeros(N, int), "all 600 labels are 0"),
        ("top_2_accuracy", LABELS, "top-2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(level, metric, labels, message):
    with pytest.raises(ms.InputError, match=message):
        level(np.eye(2)[LABELS], labels, metric=metric, min_value=0.5)
