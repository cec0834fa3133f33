"""Rows that belong together, and rows that count more than others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

import pytest_modelserve as ms

N = 800
RNG = np.random.default_rng(0)
ROWS = np.zeros((N, 1), np.float32)
LABELS = np.arange(N) % 2
GROUPS = np.arange(N) // 16
"""50 groups of 16 rows."""
METRICS = ["accuracy", "balanced_accuracy", "recall", "precision", "f1", "f1_macro", "top_1_accuracy"]


def flipped(rows: Any) -> Any:
    answers = LABELS.copy()
    answers[rows] = 1 - answers[rows]
    return answers


def widths(*evidences: ms.Evidence) -> list[float]:
    return [q.interval.high - q.interval.low for q in (e.quantities[0] for e in evidences) if q.interval]


def of(answering: Any, answers: Any, metric: str) -> tuple[Any, Any]:
    if metric.startswith("top"):
        return answering(np.eye(2)[answers]), {}
    return answering(answers), {"output": ms.Output(decode="labels")}


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_err_together_make_the_interval_wider(answering: Any, metric: str) -> None:
    whole_groups = flipped(np.isin(GROUPS, np.arange(0, 50, 10)))
    model, how = of(answering, whole_groups, metric)
    alone, grouped = (
        ms.measure_accuracy(
            model, ROWS, LABELS, metric=metric, min_value=0.5, sampling=ms.Sampling(groups=groups), **how
        )
        for groups in (None, GROUPS)
    )
    assert grouped.quantities[0].value == pytest.approx(alone.quantities[0].value)
    narrow, wide = widths(alone, grouped)
    assert wide > 2 * narrow
    assert grouped.method.name.endswith("over 50 groups")


@pytest.mark.parametrize("metric", METRICS)
def test_in_pairs_too(answering: Any, metric: str) -> None:
    (model, how), (reference, _) = (
        of(answering, flipped(np.isin(GROUPS, range(0, 50, 10))), metric),
        of(answering, LABELS, metric),
    )
    alone, grouped = (
        ms.measure_accuracy_parity(
            model, reference, ROWS, LABELS, metric=metric, max_drop=0.5, sampling=ms.Sampling(groups=groups), **how
        )
        for groups in (None, GROUPS)
    )
    assert grouped.quantities[0].value == pytest.approx(alone.quantities[0].value)
    assert widths(grouped)[0] > 2 * widths(alone)[0]


def test_interval_of_grouped_accuracy_is_that_of_equally_large_groups(answering: Any) -> None:
    answers = flipped(RNG.random(N) < 0.1)
    evidence = ms.measure_accuracy(
        answering(answers),
        ROWS,
        LABELS,
        output=ms.Output(decode="labels"),
        min_value=0.5,
        sampling=ms.Sampling(groups=GROUPS.astype(str)),
    )
    shares = (answers == LABELS).reshape(50, 16).mean(axis=1)
    interval = evidence.quantities[0].interval
    assert interval is not None
    student = shares.mean() - scipy_stats.t.ppf(0.95, 49) * scipy_stats.sem(shares)
    assert interval.low == pytest.approx(student, abs=0.2 * scipy_stats.sem(shares))
    assert interval.low <= student


@pytest.mark.parametrize(
    ("metric", "scores"),
    [
        ("mae", None),
        ("rmse", None),
        ("r2", None),
        ("log_loss", "probabilities"),
        ("brier_score", "probabilities"),
        ("roc_auc", None),
    ],
)
def test_numbers_take_groups_and_weights(answering: Any, metric: str, scores: Any) -> None:
    chance = np.clip(0.3 * LABELS + 0.35 + 0.6 * (RNG.random(N) - 0.5), 0.02, 0.98)
    labels: Any = LABELS if metric in ("log_loss", "brier_score", "roc_auc") else LABELS.astype(float)
    budget = (
        {"max_value": 5.0}
        if metric in ("mae", "rmse", "log_loss", "brier_score")
        else {"min_value": -0.5 if metric == "r2" else 0.1}
    )
    weights = RNG.integers(0, 3, N)
    weighted, repeated = (
        ms.measure_accuracy(
            answering(chance[rows]),
            ROWS[rows],
            labels[rows],
            metric=metric,
            output=ms.Output(scores=scores),
            sampling=ms.Sampling(sample_weight=w),
            **budget,
        )
        for rows, w in ((np.arange(N), weights), (RNG.permutation(np.repeat(np.arange(N), weights)), None))
    )
    assert weighted.quantities[0].value == pytest.approx(repeated.quantities[0].value)
    assert weighted.verdict is ms.Verdict.PASS
    assert widths(weighted)[0] > widths(repeated)[0]  # a row that counts twice is not two rows
    far = np.clip(0.2 + np.repeat(RNG.uniform(-0.15, 0.5, 50), 16) + 0.02 * RNG.standard_normal(N), 0.01, 0.99)
    shifted = np.where(LABELS, 1 - far, far)
    alone, grouped = (
        ms.measure_accuracy(
            answering(shifted),
            ROWS,
            labels,
            metric=metric,
            output=ms.Output(scores=scores),
            sampling=ms.Sampling(groups=groups),
            **budget,
        )
        for groups in (np.arange(N)[::-1], GROUPS)
    )
    assert widths(grouped)[0] > 1.2 * widths(alone)[0]


@pytest.mark.parametrize("metric", METRICS)
def test_whole_weights_give_the_value_of_repeated_rows(answering: Any, metric: str) -> None:
    answers, weights = flipped(RNG.random(N) < 0.2), RNG.integers(0, 4, N)
    repeated = np.repeat(np.arange(N), weights)
    values = []
    for rows, given in ((np.arange(N), weights), (repeated, None)):
        model, how = of(answering, answers[rows], metric)
        values.append(
            ms.measure_accuracy(
                model,
                np.zeros((len(rows), 1), np.float32),
                LABELS[rows],
                metric=metric,
                min_value=0.5,
                sampling=ms.Sampling(sample_weight=given),
                **how,
            )
            .quantities[0]
            .value
        )
    assert values[0] == pytest.approx(values[1])


def test_equal_weights_change_nothing_in_pairs(answering: Any) -> None:
    targets = RNG.standard_normal(N)
    plain, weighted = (
        ms.measure_accuracy_parity(
            answering(targets + 1.1),
            answering(targets + 1),
            ROWS,
            targets,
            metric="rmse",
            max_rise=0.2,
            sampling=ms.Sampling(sample_weight=weights),
        )
        for weights in (None, np.full(N, 2.5))
    )
    for one, other in zip(plain.quantities, weighted.quantities, strict=True):
        assert one.value == pytest.approx(other.value)
    assert widths(plain) == pytest.approx(widths(weighted))


def test_groups_without_a_single_error_allow_for_those_not_seen(answering: Any) -> None:
    evidence = ms.measure_accuracy(
        answering(LABELS),
        ROWS,
        LABELS,
        output=ms.Output(decode="labels"),
        min_value=0.9,
        sampling=ms.Sampling(groups=GROUPS),
    )
    interval = evidence.quantities[0].interval
    assert interval is not None
    assert interval.low == pytest.approx(0.05 ** (1 / 50))
    assert interval.high == 1


def test_rows_that_would_decide_are_told_in_rows_and_not_in_groups(answering: Any) -> None:
    answers = flipped(RNG.random(N) < 0.1)
    evidence = ms.measure_accuracy(
        answering(answers),
        ROWS,
        LABELS,
        output=ms.Output(decode="labels"),
        min_value=0.89,
        sampling=ms.Sampling(groups=GROUPS),
    )
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    needed = evidence.details["rows_needed"]
    assert evidence.advice == f"give about {needed:,} labeled rows, or a smaller min_value"
    more = int(np.ceil(needed / N))
    decided = ms.measure_accuracy(
        answering(np.tile(answers, more)),
        np.zeros((more * N, 1)),
        np.tile(LABELS, more),
        output=ms.Output(decode="labels"),
        min_value=0.89,
        sampling=ms.Sampling(groups=np.arange(more * N) // 16),
    )
    assert decided.verdict is (ms.Verdict.PASS if decided.quantities[0].value > 0.89 else ms.Verdict.FAIL)


def test_one_group_decides_nothing(answering: Any) -> None:
    evidence = ms.measure_accuracy(
        answering(LABELS),
        ROWS,
        LABELS,
        output=ms.Output(decode="labels"),
        min_value=0.9,
        sampling=ms.Sampling(groups=np.zeros(N)),
    )
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert evidence.findings == ("there is one group of 800 rows, and an interval needs at least two",)
    assert evidence.advice == "give more groups"


def test_blocks_are_consecutive_groups(answering: Any) -> None:
    answers = flipped(RNG.random(N) < 0.1)
    blocks, groups = (
        ms.measure_accuracy(
            answering(answers), ROWS, LABELS, metric="f1", output=ms.Output(decode="labels"), min_value=0.5, **how
        )
        for how in ({"sampling": ms.Sampling(block=16)}, {"sampling": ms.Sampling(groups=GROUPS)})
    )
    assert blocks.quantities == groups.quantities
    assert blocks.method.name == "delta method, Student t and Hall over 50 blocks of 16 rows"
    assert groups.method.name == "delta method, Student t and Hall over 50 groups"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"sampling": ms.Sampling(groups=np.zeros(3))},
            "groups have shape (3,); they need one id for each of the 800 rows",
        ),
        (
            {"sampling": ms.Sampling(groups=np.where(np.arange(N) < 2, np.nan, 1.0))},
            "groups hold NaN in 2 of 800 rows: give every row an id",
        ),
        (
            {
                "sampling": ms.Sampling(groups=GROUPS, block=16),
            },
            "block is for consecutive rows and groups for rows that share an id: give one of them (a series for each id "
            "is one group)",
        ),
        (
            {"sampling": ms.Sampling(sample_weight=np.ones(3))},
            "sample_weight has shape (3,) and dtype float64; 800 rows need one number each",
        ),
        (
            {"sampling": ms.Sampling(sample_weight=np.full(N, "a"))},
            "sample_weight has shape (800,) and dtype <U1; 800 rows need one number each",
        ),
        (
            {"sampling": ms.Sampling(sample_weight=-np.ones(N))},
            "sample_weight is finite and at least 0; got -1 in row 0",
        ),
        (
            {"sampling": ms.Sampling(sample_weight=np.full(N, np.nan))},
            "sample_weight is finite and at least 0; got nan in row 0",
        ),
        ({"sampling": ms.Sampling(sample_weight=np.zeros(N))}, "sample_weight is 0 in every row: no row counts"),
        ({"sampling": ms.Sampling(block=0)}, "block must be an integer of at least 1, got 0"),
    ],
)
def test_groups_and_weights_that_do_not_fit_are_refused(answering: Any, arguments: Any, message: str) -> None:
    with pytest.raises(ms.UsageError) as caught:
        ms.measure_accuracy(
            answering(LABELS), ROWS, LABELS, output=ms.Output(decode="labels"), min_value=0.5, **arguments
        )
    assert str(caught.value) == message
