"""Log loss and Brier score row by row, against plain Python, and scores that are not what they are called."""

import math

import numpy as np
import pytest

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics import row_brier_scores, row_log_losses

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


@pytest.mark.parametrize(
    ("scores", "labels", "kind", "message"),
    [
        (
            LOGITS,
            LABELS,
            "probabilities",
            "scores='probabilities', but row 0 holds -0.396315: a probability lies from 0 to 1; say scores='logits', or "
            "put a Softmax behind the model",
        ),
        (
            PROBABILITIES * 0.9,
            LABELS,
            "probabilities",
            "scores='probabilities', but row 0 adds up to 0.9: the probabilities of a row add up to 1",
        ),
        (
            PROBABILITIES,
            LABELS,
            "logits",
            "scores='logits', but all 40 rows lie from 0 to 1 and add up to 1: these are probabilities, say "
            "scores='probabilities'",
        ),
        (
            np.array([0.01, 0.99, 0.5]),
            [0, 1, 1],
            "logits",
            "scores='logits', but all 3 rows lie from 0 to 1 and reach from end to end: these are probabilities, say "
            "scores='probabilities'",
        ),
        (
            LOGITS,
            LABELS + 1,
            "logits",
            "label 4 in row 1 has no column: the model gives probabilities of the classes 0 to 3",
        ),
        (LOGITS, LABELS[:-1], "logits", "there are 39 labels for 40 rows of outputs"),
        (
            LOGITS,
            np.array(["a"] * 40),
            "logits",
            "labels are strings (first 'a'): the probability of a label is found by its column, give integers from 0 to 3",
        ),
        (
            np.array([["a"]]),
            [0],
            "logits",
            "scores of shape (1, 1) and dtype <U1 are no logits: numbers of shape (rows, classes), or (rows,) for class 1 "
            "of two, are needed",
        ),
    ],
)
def test_scores_and_labels_that_cannot_be_are_refused(scores, labels, kind, message):
    for row_losses in (row_log_losses, row_brier_scores):
        with pytest.raises(InputError) as caught:
            row_losses(scores, labels, kind)
        assert str(caught.value) == message


def test_unknown_kind_names_the_nearest():
    with pytest.raises(UsageError, match="unknown scores 'logit': did you mean 'logits'"):
        row_log_losses(LOGITS, LABELS, "logit")


@pytest.mark.parametrize("largest", [1.0, 0.95])
def test_sums_may_miss_one_by_the_rounding_of_eight_bits(largest):
    """255 steps up to 1, and up to a calibrated range that clips the highest."""
    steps = np.float32(largest / 255)
    rounded = np.round(PROBABILITIES / steps).clip(0, 255).astype(np.float32) * steps
    assert np.abs(rounded.sum(axis=1) - 1).max() > 0.002
    exact = row_brier_scores(PROBABILITIES, LABELS, "probabilities")
    assert row_brier_scores(rounded, LABELS, "probabilities") == pytest.approx(exact, abs=0.02)


def test_sums_may_miss_one_by_the_rounding_of_half_precision():
    rounded = PROBABILITIES.astype(np.float16)
    exact = row_brier_scores(PROBABILITIES, LABELS, "probabilities")
    assert row_brier_scores(rounded, LABELS, "probabilities") == pytest.approx(exact, abs=0.002)


@pytest.mark.parametrize("row_losses", [row_log_losses, row_brier_scores])
def test_probabilities_that_miss_one_lose_and_gain_nothing_by_it(row_losses):
    exact = row_losses(PROBABILITIES, LABELS, "probabilities")
    assert row_losses(PROBABILITIES * 0.96, LABELS, "probabilities") == pytest.approx(exact)
