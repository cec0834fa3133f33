"""Losses of rows against scikit-learn's formulas."""

import math

import numpy as np
import pytest

from pytest_modelserve.metrics import row_brier_scores, row_log_losses, row_losses, row_squares


def test_losses_are_absolute_or_squared_errors():
    predictions, targets = np.array([1.0, -2.0, 0.5]), np.array([2.0, 1.0, 0.5])
    assert row_losses(predictions, targets, "absolute").tolist() == [1.0, 3.0, 0.0]
    assert row_losses(predictions, targets, "squared").tolist() == [1.0, 9.0, 0.0]


def test_a_row_of_several_numbers_is_averaged():
    predictions, targets = np.zeros((2, 2, 2)), np.arange(8.0).reshape(2, 2, 2)
    assert row_losses(predictions, targets, "absolute").tolist() == [1.5, 5.5]
    assert row_losses(predictions, targets, "squared").tolist() == [(0 + 1 + 4 + 9) / 4, (16 + 25 + 36 + 49) / 4]


def test_difference_of_large_float32_is_taken_in_float64():
    losses = row_losses(np.array([16_777_216], np.float32), np.array([16_777_217]), "absolute")
    assert losses.tolist() == [1.0]  # float32 cannot hold the target


def test_a_prediction_that_is_no_number_makes_a_loss_that_is_none():
    predictions = np.array([[np.nan, 0.0], [np.inf, 0.0], [1.0, 1.0]])
    losses = row_losses(predictions, np.zeros((3, 2)), "squared")
    assert np.isfinite(losses).tolist() == [False, False, True]


def test_an_error_beyond_the_range_of_floats_is_infinite_and_no_warning():
    assert row_losses(np.array([1e200]), np.array([0.0]), "squared").tolist() == [np.inf]


def test_squares_make_the_coefficient_of_determination():
    rng = np.random.default_rng(0)
    targets, predictions = rng.standard_normal((30, 2)), rng.standard_normal((30, 2))
    errors, spread = row_squares(predictions, targets)
    means = [sum(targets[:, column]) / 30 for column in range(2)]
    assert errors.sum() == pytest.approx(sum((p - t) ** 2 for p, t in zip(predictions.flat, targets.flat, strict=True)))
    assert spread.sum() == pytest.approx(sum((row[c] - means[c]) ** 2 for row in targets for c in range(2)))


def test_squares_around_a_weighted_mean_count_rows_as_often_as_their_weights():
    targets, weights = np.array([1.0, 2, 4]), np.array([1.0, 2, 0])
    _, spread = row_squares(np.zeros(3), targets, weights)
    _, repeated = row_squares(np.zeros(3), np.array([1.0, 2, 2]))
    assert float(weights @ spread) == pytest.approx(repeated.sum())


RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (40, 4))
LABELS = RNG.integers(0, 4, 40)


def softmax(row):
    exponentials = [math.exp(value - max(row)) for value in row]
    return [value / sum(exponentials) for value in exponentials]


PROBABILITIES = np.array([softmax(row) for row in LOGITS])


def test_losses_of_several_classes_are_those_of_the_definition():
    logs = [-math.log(row[label]) for row, label in zip(PROBABILITIES, LABELS, strict=True)]
    briers = [
        sum((p - (k == label)) ** 2 for k, p in enumerate(row))
        for row, label in zip(PROBABILITIES, LABELS, strict=True)
    ]
    for scores, kind in ((PROBABILITIES, "probabilities"), (LOGITS, "logits")):
        assert row_log_losses(scores, LABELS, kind) == pytest.approx(logs)
        assert row_brier_scores(scores, LABELS, kind) == pytest.approx(briers)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_one_column_is_the_probability_of_class_one(shape):
    scores = np.array([0.9, 0.2, 0.5]).reshape(shape)
    assert row_log_losses(scores, [1, 0, 1], "probabilities") == pytest.approx([-math.log(p) for p in (0.9, 0.8, 0.5)])
    assert row_brier_scores(scores, [1, 0, 1], "probabilities") == pytest.approx([0.01, 0.04, 0.25])
    logits = np.log(scores / (1 - scores))
    assert row_brier_scores(logits, [1, 0, 1], "logits") == pytest.approx([0.01, 0.04, 0.25])


def test_two_columns_and_one_have_the_same_brier_score():
    one = np.array([0.9, 0.2, 0.5])
    two = np.stack([1 - one, one], axis=1)
    assert row_brier_scores(two, [1, 0, 0], "probabilities") == pytest.approx(
        row_brier_scores(one, [1, 0, 0], "probabilities")
    )


def test_far_logits_lose_nothing_to_rounding():
    assert row_log_losses(np.array([[0.0, 1000.0]]), [0], "logits") == pytest.approx([1000])
    assert row_log_losses(np.array([-1000.0, 1000.0]), [1, 1], "logits") == pytest.approx([1000, 0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_probability_rounded_to_zero_costs_what_its_dtype_can_tell(dtype):
    loss = row_log_losses(np.array([[1, 0]], dtype), [1], "probabilities")
    assert loss == pytest.approx([-math.log(np.finfo(dtype).eps)])


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_row_with_nan_has_no_loss(kind):
    scores = PROBABILITIES.copy() if kind == "probabilities" else LOGITS.copy()
    scores[3, 1] = np.nan
    for losses in (row_log_losses(scores, LABELS, kind), row_brier_scores(scores, LABELS, kind)):
        assert np.flatnonzero(np.isnan(losses)).tolist() == [3]


@pytest.mark.parametrize("largest", [1.0, 0.95])
def test_sums_may_miss_one_by_the_rounding_of_eight_bits(largest):
    """255 steps up to 1, and up to a calibrated range that clips the highest."""
    steps = np.float32(largest / 255)
    rounded = np.round(PROBABILITIES / steps).clip(0, 255).astype(np.float32) * steps
    assert np.abs(rounded.sum(axis=1) - 1).max() > 0.002
    exact = row_brier_scores(PROBABILITIES, LABELS, "probabilities")
    assert row_brier_scores(rounded, LABELS, "probabilities") == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("row_losses", [row_log_losses, row_brier_scores])
def test_probabilities_that_miss_one_lose_and_gain_nothing_by_it(row_losses):
    exact = row_losses(PROBABILITIES, LABELS, "probabilities")
    assert row_losses(PROBABILITIES * 0.96, LABELS, "probabilities") == pytest.approx(exact)
