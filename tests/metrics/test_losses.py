"""row_losses: how far predictions lie from targets, and targets that cannot be used."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics import row_losses, row_squares


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


def test_unsigned_targets_do_not_wrap_around():
    assert row_losses(np.array([3], np.uint8), np.array([5], np.uint8), "absolute").tolist() == [2.0]


def test_a_prediction_that_is_no_number_makes_a_loss_that_is_none():
    predictions = np.array([[np.nan, 0.0], [np.inf, 0.0], [1.0, 1.0]])
    losses = row_losses(predictions, np.zeros((3, 2)), "squared")
    assert np.isfinite(losses).tolist() == [False, False, True]


def test_an_error_beyond_the_range_of_floats_is_infinite_and_no_warning():
    assert row_losses(np.array([1e200]), np.array([0.0]), "squared").tolist() == [np.inf]


@pytest.mark.parametrize(
    ("predictions", "targets", "message"),
    [
        (
            np.zeros((3, 1)),
            np.zeros(3),
            "targets have shape (3,) where the predictions have (3, 1): give one target for each number that is "
            "predicted, targets.reshape(3, 1)",
        ),
        (
            np.zeros(3),
            np.zeros(2),
            "targets have shape (2,) where the predictions have (3,): give one target for each number that is "
            "predicted",
        ),
        (
            np.zeros(3),
            np.array([1.0, np.nan, np.inf]),
            "targets hold NaN or infinities in 2 of 3 rows, first in row 1: leave out the rows that have no target",
        ),
        (np.zeros(3), np.array(["a", "b", "c"]), "targets have dtype <U1: an error is taken of numbers"),
        (np.zeros(3, object), np.zeros(3), "predictions have dtype object: an error is taken of numbers"),
        (np.zeros(3), np.array([True, False, True]), "targets have dtype bool: an error is taken of numbers"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "targets have shape (0, 2): there is no row to judge by"),
        (np.zeros((2, 0)), np.zeros((2, 0)), "targets have shape (2, 0): there is no row to judge by"),
    ],
    ids=["column", "length", "nan", "text", "objects", "booleans", "empty", "no numbers"],
)
def test_targets_that_cannot_be_used_are_refused(predictions, targets, message):
    with pytest.raises(InputError) as caught:
        row_losses(predictions, targets, "absolute")
    assert str(caught.value) == message


def test_unknown_loss_is_named_with_the_nearest():
    with pytest.raises(UsageError, match="unknown loss 'square': did you mean 'squared'"):
        row_losses(np.zeros(1), np.zeros(1), "square")


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


def test_targets_that_are_all_equal_leave_nothing_to_explain():
    with pytest.raises(InputError, match=r"^all 3 targets are equal: R² is the share of their variance"):
        row_squares(np.arange(3.0), np.ones(3))
