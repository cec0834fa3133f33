"""Scores other than accuracy: values against brute force, three verdicts, texts and bad input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import pytest_modelserve as ms

N = 600
RNG = np.random.default_rng(0)
ROWS = np.zeros((N, 1), np.float32)
LABELS = (RNG.random(N) < 0.3).astype(int)
CLASSES = RNG.integers(0, 4, N)


def noisy(labels: Any, wrong: float, seed: int = 1) -> Any:
    """Labels of which a share is replaced by another class."""
    rng = np.random.default_rng(seed)
    kinds = len(np.unique(labels))
    return np.where(rng.random(len(labels)) < wrong, (labels + rng.integers(1, kinds, len(labels))) % kinds, labels)


def counts(labels: Any, answers: Any, kind: Any) -> tuple[int, int, int]:
    hits = misses = alarms = 0
    for label, answer in zip(labels, answers, strict=True):
        hits += bool(label == kind and answer == kind)
        misses += bool(label == kind and answer != kind)
        alarms += bool(label != kind and answer == kind)
    return hits, misses, alarms


def brute(metric: str, labels: Any, answers: Any) -> float:
    """Precision, recall and F by counting, for class 1 or averaged over the classes of the labels."""
    kinds = sorted(set(labels.tolist())) if metric.endswith("macro") or metric.startswith("balanced") else [1]
    found = []
    for kind in kinds:
        hits, misses, alarms = counts(labels, answers, kind)
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
def test_values_are_those_of_the_definition(answering: Any, metric: str) -> None:
    labels = LABELS if metric in BINARY else CLASSES
    new, old = noisy(labels, 0.2), noisy(labels, 0.1, seed=2)
    alone = ms.measure_accuracy(
        answering(new), ROWS, labels, metric=metric, output=ms.Output(decode="labels"), min_value=0.5
    )
    assert alone.quantities[0].value == pytest.approx(brute(metric, labels, new))
    pair = ms.measure_accuracy_parity(
        answering(new), answering(old), ROWS, labels, metric=metric, output=ms.Output(decode="labels"), max_drop=0.5
    )
    drop, reference, candidate = pair.quantities
    assert reference.value == pytest.approx(brute(metric, labels, old))
    assert candidate.value == pytest.approx(brute(metric, labels, new))
    assert drop.value == pytest.approx(reference.value - candidate.value)
    assert pair.alpha == 0.001


@pytest.mark.parametrize("metric", [*BINARY[:3], *MACRO[:4]])
def test_drop_has_three_verdicts(answering: Any, metric: str) -> None:
    labels = LABELS if metric in BINARY else CLASSES
    old = noisy(labels, 0.05)
    for wrong, max_drop, verdict in ((0.0, 0.1, "PASS"), (0.03, 0.03, "INCONCLUSIVE"), (0.6, 0.03, "FAIL")):
        new = noisy(old, wrong, seed=3)
        evidence = ms.measure_accuracy_parity(
            answering(new),
            answering(old),
            ROWS,
            labels,
            metric=metric,
            output=ms.Output(decode="labels"),
            max_drop=max_drop,
        )
        assert evidence.verdict == verdict, (metric, wrong)


@pytest.mark.parametrize("metric", ["balanced_accuracy", "precision", "f1", "precision_macro"])
def test_equal_models_pass_only_with_rows_enough_to_have_seen_a_difference(answering: Any, metric: str) -> None:
    labels = np.arange(N) % 2
    model = answering(noisy(labels, 0.1))

    def verdict(max_drop: float) -> ms.Verdict:
        return ms.measure_accuracy_parity(
            model, model, ROWS, labels, metric=metric, output=ms.Output(decode="labels"), max_drop=max_drop
        ).verdict

    assert verdict(0.02) is ms.Verdict.PASS
    assert verdict(0.003) is ms.Verdict.INCONCLUSIVE


def test_precision_and_recall_of_one_model_have_exact_bounds(answering: Any) -> None:
    from scipy import stats as scipy_stats

    new = noisy(LABELS, 0.2)
    hits, misses, alarms = counts(LABELS, new, 1)
    for metric, n in (("precision", hits + alarms), ("recall", hits + misses)):
        evidence = ms.measure_accuracy(
            answering(new), ROWS, LABELS, metric=metric, output=ms.Output(decode="labels"), min_value=0.5
        )
        interval = evidence.quantities[0].interval
        assert evidence.n == n
        assert interval is not None
        assert interval.low == pytest.approx(scipy_stats.beta.ppf(0.05, hits, n - hits + 1))
        assert interval.high == pytest.approx(scipy_stats.beta.ppf(0.999, hits + 1, n - hits))


def test_recall_is_compared_over_the_positive_rows_alone(answering: Any) -> None:
    new = LABELS.copy()
    positive = np.flatnonzero(LABELS)
    new[positive[:5]] = 0
    new[np.flatnonzero(LABELS == 0)[:50]] = 1  # false alarms are none of recall's business
    evidence = ms.measure_accuracy_parity(
        answering(new),
        answering(LABELS),
        ROWS,
        LABELS,
        metric="recall",
        output=ms.Output(decode="labels"),
        max_drop=0.2,
    )
    assert evidence.n == len(positive)
    assert evidence.gate == "recall parity"
    assert evidence.quantities[0].value == pytest.approx(5 / len(positive))
    assert evidence.details["lost_rows"] == positive[:5].tolist()


def test_top_k_counts_labels_among_the_k_highest(answering: Any) -> None:
    scores = RNG.standard_normal((N, 6))
    labels = RNG.integers(0, 6, N)
    for k in (2, 3, 4):
        expected = np.mean([label in np.argsort(-row)[:k] for row, label in zip(scores, labels, strict=True)])
        evidence = ms.measure_accuracy(answering(scores), ROWS, labels, metric=f"top_{k}_accuracy", min_value=0.9)
        assert evidence.quantities[0].value == pytest.approx(expected)
        assert evidence.gate == f"top-{k} accuracy"


def test_top_1_is_accuracy_in_every_figure(answering: Any) -> None:
    scores, other = RNG.standard_normal((2, N, 6))
    labels = scores.argmax(axis=1)
    labels[:60] = (labels[:60] + 1) % 6
    top, plain = (
        ms.measure_accuracy_parity(
            answering(scores + 0.1 * other), answering(scores), ROWS, labels, metric=metric, max_drop=0.02
        )
        for metric in ("top_1_accuracy", "accuracy")
    )
    assert top.quantities == plain.quantities
    assert top.details == plain.details


@pytest.mark.parametrize("columns", [0, 1, 2])
def test_area_under_the_curve_is_the_share_of_ordered_pairs(answering: Any, columns: int) -> None:
    score = RNG.standard_normal(N) + 1.5 * LABELS
    positive, negative = score[LABELS == 1], score[LABELS == 0]
    expected = (positive[:, None] > negative).mean()
    outputs = {0: score, 1: score[:, None], 2: np.stack([-score, score], axis=1)}[columns]
    evidence = ms.measure_accuracy(answering(outputs), ROWS, LABELS, metric="roc_auc", min_value=0.7)
    assert evidence.quantities[0].value == pytest.approx(expected)
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.method.name == "DeLong, Student t and Hall"


@pytest.mark.parametrize("dtype", ["<U3", object])
def test_positive_class_may_be_a_string(answering: Any, dtype: Any) -> None:
    names = np.where(LABELS == 1, "yes", "no").astype(dtype)
    score = RNG.standard_normal(N) + 1.5 * LABELS
    area, turned = (
        ms.measure_accuracy(
            answering(score), ROWS, names, metric="roc_auc", min_value=0.01, output=ms.Output(pos_label=label)
        )
        for label in ("yes", "no")
    )
    assert area.quantities[0].value == pytest.approx(1 - turned.quantities[0].value)
    f1 = ms.measure_accuracy(
        answering(names),
        ROWS,
        names,
        metric="f1",
        output=ms.Output(decode="labels", pos_label="no"),
        min_value=0.5,
    )
    assert f1.quantities[0].value == 1


def test_thousand_classes_take_little_memory(answering: Any) -> None:
    import tracemalloc

    rows = 4_000
    labels = np.arange(rows) % 400
    model = answering(noisy(labels, 0.1))
    tracemalloc.start()
    evidence = ms.measure_accuracy(
        model, np.zeros((rows, 1)), labels, metric="balanced_accuracy", output=ms.Output(decode="labels"), min_value=0.5
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert evidence.quantities[0].value == pytest.approx(0.9, abs=0.02)
    assert peak < 5 * 2**20  # a float for every row and class would be 12 MiB


def test_difference_of_areas_scatters_as_delong_says(answering: Any) -> None:
    from scipy import stats as scipy_stats

    from pytest_modelserve.stats import delong_covariance

    labels = np.arange(N) % 2
    base = RNG.standard_normal(N)
    old, new = base + 1.5 * labels, base + 0.3 * RNG.standard_normal(N) + 1.4 * labels
    evidence = ms.measure_accuracy_parity(answering(new), answering(old), ROWS, labels, metric="roc_auc", max_drop=0.05)
    areas, covariance = delong_covariance(np.array([old, new]), labels == 1)
    drop, interval = areas[0] - areas[1], evidence.quantities[0].interval
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert evidence.quantities[0].value == pytest.approx(drop)
    assert interval is not None
    assert interval.high == pytest.approx(drop + scipy_stats.norm.ppf(0.95) * error, abs=0.1 * error)
    assert interval.low == pytest.approx(drop - scipy_stats.norm.ppf(0.999) * error, abs=0.3 * error)


def test_models_that_rank_alike_have_no_drop_of_the_area(answering: Any) -> None:
    score = RNG.standard_normal(N) + LABELS
    evidence = ms.measure_accuracy_parity(
        answering(3 * score + 1), answering(score), ROWS, LABELS, metric="roc_auc", max_drop=0.0
    )
    assert evidence.verdict is ms.Verdict.PASS


@pytest.mark.parametrize("metric", ["log_loss", "brier_score"])
def test_losses_of_probabilities_are_means_over_the_rows(answering: Any, metric: str) -> None:
    chance = 1 / (1 + np.exp(-(RNG.standard_normal(N) + 3 * LABELS - 1.5)))
    rows = (
        [-math.log(p if label else 1 - p) for p, label in zip(chance, LABELS, strict=True)]
        if metric == "log_loss"
        else [(p - label) ** 2 for p, label in zip(chance, LABELS, strict=True)]
    )
    for outputs, scores in ((chance, "probabilities"), (np.log(chance / (1 - chance)), "logits")):
        evidence = ms.measure_accuracy(
            answering(outputs), ROWS, LABELS, metric=metric, output=ms.Output(scores=scores), max_value=1.0
        )
        assert evidence.quantities[0].value == pytest.approx(np.mean(rows))
        assert evidence.verdict is ms.Verdict.PASS
        assert evidence.details["worst_rows"][0] == int(np.argmax(rows))
    worse = np.clip(chance + np.where(LABELS, -0.2, 0.2), 0.01, 0.99)
    rise = ms.measure_accuracy_parity(
        answering(worse),
        answering(chance),
        ROWS,
        LABELS,
        metric=metric,
        output=ms.Output(scores="probabilities"),
        max_rise=0.001,
    )
    assert rise.verdict is ms.Verdict.FAIL


def test_coefficient_of_determination(answering: Any) -> None:
    targets = RNG.uniform(0, 10, N)
    old, new = targets + RNG.standard_normal(N), targets + 2 * RNG.standard_normal(N)
    values = [1 - ((targets - p) ** 2).sum() / ((targets - targets.mean()) ** 2).sum() for p in (old, new)]
    alone = ms.measure_accuracy(answering(old), ROWS, targets, metric="r2", min_value=0.8)
    assert alone.quantities[0].value == pytest.approx(values[0])
    assert alone.verdict is ms.Verdict.PASS
    pair = ms.measure_accuracy_parity(answering(new), answering(old), ROWS, targets, metric="r2", max_drop=0.05)
    assert pair.quantities[0].value == pytest.approx(values[0] - values[1])
    assert pair.verdict is ms.Verdict.FAIL


def test_failure_text_of_an_area_in_full(answering: Any) -> None:
    score = np.linspace(0, 1, N) + np.arange(N) % 2
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_accuracy_parity(
            answering(np.roll(score, 3), "int8"),
            answering(score, "fp32"),
            ROWS,
            np.arange(N) % 2,
            metric="roc_auc",
            max_drop=0.01,
            slices={"half": np.arange(N) // 300},
        )
    assert (
        str(failure.value)
        == """\
AUC parity: the candidate loses more AUC than its budget

  drop       1.00   (reference 1.00 → candidate 0)
  interval   [0.977, 1.00]  low at 99.9 %, high at 95 %, DeLong, Student t and Hall, n = 600 rows
  budget     at most 0.0100
  verdict    FAIL: the whole interval lies above the budget

  worst slice half=1: 1
  candidate  int8
  reference  fp32
  next       look at the lost rows, keep the layers at fault in full precision, or retrain"""
    )


def test_inconclusive_text_of_an_f_score_in_full(answering: Any) -> None:
    with pytest.raises(ms.GateInconclusive) as failure:
        ms.assert_accuracy(
            answering(noisy(LABELS, 0.05), "model"),
            ROWS,
            LABELS,
            metric="f1",
            output=ms.Output(decode="labels"),
            min_value=0.91,
        )
    evidence = failure.value.evidence
    assert (
        str(failure.value)
        == f"""\
F1: not enough rows to decide whether F1 reaches min_value

  F1         0.922
  interval   [0.893, 0.971]  low at 95 %, high at 99.9 %, delta method, Student t and Hall, n = 600 rows
  budget     at least 0.910
  verdict    INCONCLUSIVE: the interval contains the limit of the budget

  candidate  model
  next       give about {evidence.details["rows_needed"]:,} labeled rows, or a smaller min_value"""
    )


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "top_2_accuracy"])
def test_rows_with_nan_count_as_wrong_where_answers_are_counted(answering: Any, metric: str) -> None:
    scores = np.eye(4)[CLASSES]
    scores[:60] = np.nan
    evidence = ms.measure_accuracy(answering(scores), ROWS, CLASSES, metric=metric, min_value=0.99)
    assert evidence.quantities[0].value == pytest.approx(0.9, abs=0.02)
    assert evidence.findings[0].endswith("(0 rows of the inputs hold NaN): counted as wrong")


@pytest.mark.parametrize(
    ("metric", "extra"),
    [
        ("roc_auc", {"max_drop": 0.5}),
        ("f1", {"max_drop": 0.5}),
        ("precision_macro", {"max_drop": 0.5}),
        ("r2", {"max_drop": 0.5}),
        ("log_loss", {"max_rise": 0.5, "output": ms.Output(scores="logits")}),
    ],
)
def test_rows_with_nan_are_a_failure_of_their_own_elsewhere(answering: Any, metric: str, extra: Any) -> None:
    good = np.stack([-1.0 * LABELS, 1.0 * LABELS], axis=1) * 5
    labels: Any = LABELS
    if metric == "r2":
        labels = good.copy()
    bad = good.copy()
    bad[7] = np.nan
    evidence = ms.measure_accuracy_parity(answering(bad), answering(good), ROWS, labels, metric=metric, **extra)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.summary == "some outputs are NaN or infinite"
    with pytest.raises(ms.InputError, match=r"cannot judge; clean the inputs or mend the reference$"):
        ms.measure_accuracy_parity(answering(good), answering(bad), ROWS, labels, metric=metric, **extra)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"metric": "log_loss", "max_value": 1},
            "metric='log_loss' reads probabilities: give output=ms.Output(scores='logits') or "
            "output=ms.Output(scores='probabilities')",
        ),
        (
            {"metric": "roc_auc", "min_value": 0.5, "output": ms.Output(scores="logits")},
            "scores is not supported by metric='roc_auc': remove it",
        ),
        (
            {"metric": "roc_auc", "min_value": 0.5, "output": ms.Output(decode="argmax")},
            "decode is not supported by metric='roc_auc': remove it",
        ),
        (
            {"min_value": 0.5, "output": ms.Output(pos_label=1)},
            "pos_label is not supported by metric='accuracy': remove it",
        ),
        (
            {"metric": "f1_macro", "min_value": 0.5, "output": ms.Output(pos_label=1)},
            "pos_label is not supported by metric='f1_macro': remove it",
        ),
        ({"metric": "roc_auc", "min_value": 1.5}, "min_value must be above 0 and below 1, got 1.5"),
        ({"metric": "r2", "min_value": 1}, "min_value must be below 1, got 1"),
        (
            {"metric": "log_loss", "max_value": -1, "output": ms.Output(scores="logits")},
            "max_value must be above 0 and finite, got -1",
        ),
        (
            {"metric": "roc_auc", "max_value": 0.5},
            "metric='roc_auc' is a score: give min_value= instead of max_value=",
        ),
    ],
)
def test_arguments_that_mean_nothing_are_one_clear_error(answering: Any, arguments: Any, message: str) -> None:
    with pytest.raises(ms.UsageError) as caught:
        ms.measure_accuracy(answering(np.eye(2)[LABELS]), ROWS, LABELS, **arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("metric", ["f0", "f", "top_0_accuracy", "top_k_accuracy", "auc", "F1", "f1_micro", 3, None])
def test_unknown_metrics_are_named(answering: Any, metric: Any) -> None:
    with pytest.raises(ms.UsageError, match=rf"^unknown metric {metric!r}: .*or a callable of labels and predictions$"):
        ms.measure_accuracy(answering(np.eye(2)[LABELS]), ROWS, LABELS, metric=metric, min_value=0.5)


@pytest.mark.parametrize(
    ("metric", "labels", "message"),
    [
        ("roc_auc", np.zeros(N, int), "all 600 labels are 0: on one class alone"),
        ("roc_auc", CLASSES, "labels have 4 classes: the area under the ROC curve takes two"),
        ("roc_auc", LABELS + 3, "labels are 3, 4: say which class is the positive one by pos_label="),
        ("roc_auc", LABELS[:-1], "there are 599 labels for 600 rows of outputs"),
        ("balanced_accuracy", np.zeros(N, int), "all 600 labels are 0"),
        ("top_2_accuracy", LABELS, "among the 2 highest of 2 classes every label is found"),
    ],
)
def test_labels_that_cannot_judge_are_refused(answering: Any, metric: str, labels: Any, message: str) -> None:
    with pytest.raises(ms.InputError, match=message):
        ms.measure_accuracy(answering(np.eye(2)[LABELS]), ROWS, labels, metric=metric, min_value=0.5)


@pytest.mark.parametrize("weights", [None, np.ones(N)])
@pytest.mark.parametrize(("metric", "verdict"), [("recall", "PASS"), ("precision", "FAIL")])
def test_rows_with_nan_are_misses_and_no_answers_of_the_positive_class(
    answering: Any, metric: str, verdict: str, weights: Any
) -> None:
    scores = np.eye(2)[LABELS]
    scores[np.flatnonzero(LABELS)[:9]] = np.nan
    evidence = ms.measure_accuracy(
        answering(scores), ROWS, LABELS, metric=metric, min_value=0.8, sampling=ms.Sampling(sample_weight=weights)
    )
    assert evidence.verdict == verdict
    assert evidence.quantities[0].value == (pytest.approx(1 - 9 / LABELS.sum()) if metric == "recall" else 9)


def test_precision_of_a_class_that_is_never_predicted_is_uncertain_all_the_same(answering: Any) -> None:
    """0, with the bound of as many predictions as the class has rows: with weights, where no exact bound is taken."""
    evidence = ms.measure_accuracy(
        answering(np.zeros(N, int)),
        ROWS,
        LABELS,
        metric="precision",
        output=ms.Output(decode="labels"),
        sampling=ms.Sampling(sample_weight=np.ones(N)),
        min_value=0.5,
    )
    interval = evidence.quantities[0].interval
    assert interval is not None
    assert evidence.quantities[0].value == 0
    assert interval.high == pytest.approx(N / LABELS.sum() * (1 - 0.001 ** (1 / N)))


def test_one_wrong_answer_touches_two_classes_but_one_recall(answering: Any) -> None:
    """All right: the end is as far as a kind of row that has not been seen, among 300 rows a class, reaches."""
    labels = np.arange(N) % 2
    for metric, touched in (("balanced_accuracy", 1), ("precision_macro", 2)):
        evidence = ms.measure_accuracy(
            answering(labels), ROWS, labels, metric=metric, output=ms.Output(decode="labels"), min_value=0.9
        )
        interval = evidence.quantities[0].interval
        assert interval is not None
        assert interval.low == pytest.approx(1 - touched * (1 - 0.05 ** (1 / N)))


def test_model_that_never_answers_the_positive_class_has_no_precision(answering: Any) -> None:
    with pytest.raises(
        ms.InputError, match="the model predicts the positive class in no row: precision is the proportion"
    ):
        ms.measure_accuracy(
            answering(np.zeros(N, int)),
            ROWS,
            LABELS,
            metric="precision",
            output=ms.Output(decode="labels"),
            min_value=0.5,
        )
    evidence = ms.measure_accuracy_parity(
        answering(np.zeros(N, int)),
        answering(LABELS),
        ROWS,
        LABELS,
        metric="precision",
        output=ms.Output(decode="labels"),
        max_drop=0.1,
    )
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.quantities[0].value == 1
