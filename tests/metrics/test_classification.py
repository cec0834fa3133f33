"""Decoding, labels and the rows that count for accuracy, precision, recall and top-k accuracy."""

import numpy as np
import pytest

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics import (
    accuracy,
    class_rows,
    correct_rows,
    decode,
    positive_rows,
    positive_scores,
    roc_curve,
    top_k_rows,
)


def test_argmax_takes_the_first_of_the_highest_columns():
    decoded = decode(np.array([[0.1, 0.9], [2.0, 2.0]], np.float32), "argmax")
    assert (decoded.labels.tolist(), decoded.invalid.tolist()) == ([1, 0], [False, False])


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_threshold_answers_one_from_a_half_on(shape):
    scores = np.array([0.0, np.nextafter(0.5, 0), 0.5, 1.0]).reshape(shape)
    assert decode(scores, "threshold").labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (np.array([3, 1]), [3, 1]),
        (np.array([[3], [1]]), [3, 1]),
        (np.array([True, False]), [1, 0]),
        (np.array([3.0, -1.0], np.float32), [3, -1]),
        (np.array(["cat", "dog"]), ["cat", "dog"]),
        (np.array(["cat", "dog"], dtype=object), ["cat", "dog"]),
    ],
)
def test_labels_are_taken_as_integers_or_strings(answers, expected):
    decoded = decode(answers, "labels")
    assert decoded.labels.tolist() == expected
    assert decoded.labels.dtype.kind in "iU"


def test_a_callable_decodes_in_its_own_way():
    logits = np.array([[-1.0], [0.5]])
    assert decode(logits, lambda scores: (scores[:, 0] > 0).astype(int)).labels.tolist() == [0, 1]


@pytest.mark.parametrize("how", ["argmax", lambda scores: np.zeros(len(scores), int)])
def test_rows_that_hold_nan_are_marked(how):
    scores = np.array([[0.0, np.nan], [0.0, 1.0], [np.nan, np.nan], [np.inf, 0.0]])
    assert decode(scores, how).invalid.tolist() == [True, False, True, False]


@pytest.mark.parametrize(("shape", "how"), [((0, 3), "argmax"), ((0,), "threshold"), ((0, 1), "labels")])
def test_no_rows_decode_to_no_labels(shape, how):
    decoded = decode(np.zeros(shape), how)
    assert decoded.labels.shape == decoded.invalid.shape == (0,)


def test_an_unknown_decoding_names_the_nearest():
    with pytest.raises(UsageError, match=r"unknown decode 'argmx': did you mean 'argmax'\? Known"):
        decode(np.zeros((1, 2)), "argmx")


def answers(*labels):
    return decode(np.array(labels), "labels")


def test_a_row_is_correct_when_its_answer_is_the_label():
    assert correct_rows(answers(1, 2, 3), np.array([1, 3, 3])).tolist() == [True, False, True]
    assert accuracy(answers(1, 2, 3), np.array([1, 3, 3])) == pytest.approx(2 / 3)


def test_a_row_with_nan_is_wrong_whatever_its_label():
    decoded = decode(np.array([[0.0, np.nan], [0.0, 1.0]]), "argmax")
    for label in (0, 1):
        assert correct_rows(decoded, np.array([label, 1 - label])).tolist()[0] is False


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0.0, 1.0], np.float32),
        np.array([False, True]),
        np.array([0, 1], np.uint8),
        np.array([0, 1], np.uint64),
        [0, 1],
    ],
)
def test_labels_of_any_number_type_are_compared_by_value(labels):
    assert accuracy(answers(0, 1), labels) == 1.0


@pytest.mark.parametrize("dtype", ["<U5", object, np.dtypes.StringDType()])
def test_strings_are_compared_however_they_are_stored(dtype):
    assert correct_rows(answers("cat", "do"), np.array(["cat", "dog"], dtype=dtype)).tolist() == [True, False]


def class_predictions(*labels):
    return decode(np.array(labels), "labels")


def test_rows_of_the_positive_class_by_label_and_by_answer():
    rows = positive_rows(class_predictions(1, 1, 0, 0), [1, 0, 1, 0], None)
    assert rows.label == 1
    assert (rows.actual.tolist(), rows.predicted.tolist()) == ([True, False, True, False], [True, True, False, False])
    assert rows.hits.tolist() == [True, False, False, False]


def test_positive_class_can_be_any_label():
    assert positive_rows(class_predictions("cat", "dog"), ["cat", "dog"], "cat").actual.tolist() == [True, False]
    assert positive_rows(class_predictions(3, 5, 7), [3, 5, 7], 5).predicted.tolist() == [False, True, False]


def test_classes_are_those_of_the_labels():
    rows = class_rows(class_predictions(2, 0, 9), [2, 0, 2])
    assert [one.label for one in rows] == [0, 2]
    assert rows[1].actual.tolist() == [True, False, True]
    assert rows[1].predicted.tolist() == [True, False, False]


def test_row_with_nan_is_answered_as_no_class():
    decoded = decode(np.array([[np.nan, 0.0], [0.0, 1.0]]), "argmax")
    assert [one.predicted.tolist() for one in class_rows(decoded, [0, 1])] == [[False, False], [False, True]]


SCORES = np.random.default_rng(0).standard_normal((60, 7))
LABELS = np.random.default_rng(1).integers(0, 7, 60)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_label_is_among_the_k_highest_scores(k):
    expected = [sorted(row, reverse=True)[k - 1] <= row[label] for row, label in zip(SCORES, LABELS, strict=True)]
    hits, invalid = top_k_rows(SCORES, LABELS, k)
    assert hits.tolist() == expected
    assert not invalid.any()


def test_of_equal_scores_the_first_columns_are_the_highest():
    hits, _ = top_k_rows(np.ones((3, 3)), [0, 1, 2], 2)
    assert hits.tolist() == [True, True, False]


def test_row_with_nan_is_wrong():
    scores = SCORES.copy()
    scores[4, 2] = np.nan
    hits, invalid = top_k_rows(scores, LABELS, 6)
    assert (hits[4], np.flatnonzero(invalid).tolist()) == (False, [4])


def test_two_columns_are_ordered_as_the_probability_of_class_one():
    logits = SCORES[:, :2]
    probability = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    assert np.argsort(positive_scores(logits)).tolist() == np.argsort(probability).tolist()
    assert positive_scores(SCORES[:, :1]).tolist() == SCORES[:, 0].tolist()


def test_scores_of_more_classes_have_no_curve():
    with pytest.raises(InputError, match="roc_auc needs one score per row, or one for each of two"):
        positive_scores(SCORES)


def test_roc_curve_is_that_of_every_threshold():
    scores = np.array([0.9, 0.8, 0.8, 0.4, 0.3])
    positive = np.array([True, True, False, False, True])
    false, true = roc_curve(scores, positive)
    assert false.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert true == pytest.approx([0.0, 1 / 3, 2 / 3, 2 / 3, 1.0])
    weighted = roc_curve(scores, positive, np.array([2.0, 1, 1, 1, 1]))
    assert weighted[1] == pytest.approx([0.0, 0.5, 0.75, 0.75, 1.0])


def test_thinned_roc_curve_has_the_area_of_the_whole_one():
    rng = np.random.default_rng(0)
    positive = rng.random(5000) < 0.3
    scores = positive + rng.normal(size=5000)
    whole, thinned = roc_curve(scores, positive, points=10**6), roc_curve(scores, positive)
    assert thinned[0].size <= 33
    assert np.trapezoid(thinned[1], thinned[0]) == pytest.approx(np.trapezoid(whole[1], whole[0]), abs=0.003)
    assert [thinned[0][0], thinned[1][0], thinned[0][-1], thinned[1][-1]] == [0, 0, 1, 1]
