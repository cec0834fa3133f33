"""Which budget belongs to which metric."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pytest_modelserve as ms

N = 200
TARGETS = np.random.default_rng(0).standard_normal(N)
LABELS = np.arange(N) % 2
ROWS = np.zeros((N, 1), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "mae", "min_value": 0.9}, "metric='mae' is an error: give max_value= instead of min_value="),
        ({"max_value": 0.1}, "metric='accuracy' is a score: give min_value= instead of max_value="),
        (
            {"metric": "rmse", "min_value": 0.9, "max_value": 1.0},
            "metric='rmse' is an error: give max_value= instead of min_value=",
        ),
        ({}, "metric='accuracy' needs a budget: give min_value="),
        ({"metric": "rmse"}, "metric='rmse' needs a budget: give max_value="),
        (
            {"metric": "rsme", "max_value": 1},
            "unknown metric 'rsme': did you mean 'rmse'? Known: 'accuracy', 'balanced_accuracy', 'top_5_accuracy', "
            "'precision', 'recall', 'f1', 'precision_macro', 'recall_macro', 'f1_macro', 'roc_auc', 'log_loss', "
            "'brier_score', 'mae', 'rmse', 'r2', or a callable of labels and predictions",
        ),
        (
            {"metric": "mae", "max_value": float("nan")},
            "max_value must be above 0 and finite in the units of the target, got nan",
        ),
        ({"metric": "mae", "max_value": 0}, "max_value must be above 0 and finite in the units of the target, got 0"),
        (
            {"metric": "mae", "max_value": 1, "output": ms.Output(decode="threshold")},
            "decode is not supported by metric='mae': remove it",
        ),
        (
            {"metric": "mae", "max_value": 1, "sampling": ms.Sampling(block=0)},
            "block must be an integer of at least 1, got 0",
        ),
        (
            {"metric": "mae", "max_value": 1, "confidence": 95},
            "confidence must be above 0.5 and below 1 (for example 0.95), got 95",
        ),
    ],
)
def test_what_a_metric_does_not_take_is_one_clear_error(answering: Any, arguments: Any, message: str) -> None:
    with pytest.raises(ms.UsageError) as caught:
        ms.measure_accuracy(answering(TARGETS), ROWS, TARGETS, **arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "mae", "max_drop": 0.1}, "metric='mae' is an error: give max_rise= instead of max_drop="),
        ({"max_rise": 0.1}, "metric='accuracy' is a score: give max_drop= instead of max_rise="),
        ({"metric": "mae"}, "metric='mae' needs a budget: give max_rise="),
        (
            {"metric": "mae", "max_rise": float("inf")},
            "max_rise must be a finite number in the units of the target, got inf",
        ),
        (
            {"metric": "rmse", "max_rise": 0.0, "output": ms.Output(decode=np.sign)},
            "decode is not supported by metric='rmse': remove it",
        ),
    ],
)
def test_what_a_metric_does_not_take_in_pairs_is_one_clear_error(answering: Any, arguments: Any, message: str) -> None:
    with pytest.raises(ms.UsageError) as caught:
        ms.measure_accuracy_parity(answering(TARGETS), answering(TARGETS), ROWS, TARGETS, **arguments)
    assert str(caught.value) == message


def test_accuracy_is_the_metric_where_none_is_named(voting: Any) -> None:
    named = ms.measure_accuracy(voting(LABELS), ROWS, LABELS, metric="accuracy", min_value=0.9)
    assert named.gate == ms.measure_accuracy(voting(LABELS), ROWS, LABELS, min_value=0.9).gate == "accuracy"
