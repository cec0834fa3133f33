"""Top-k and the number that a ROC curve is drawn over."""

import numpy as np
import pytest

from pytest_modelserve.errors import InputError
from pytest_modelserve.metrics import positive_scores, top_k_rows

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


def test_unsigned_scores_are_ordered_by_value():
    hits, _ = top_k_rows(np.array([[0, 255, 3], [9, 1, 0]], np.uint8), [1, 0], 1)
    assert hits.tolist() == [True, True]


def test_row_with_nan_is_wrong():
    scores = SCORES.copy()
    scores[4, 2] = np.nan
    hits, invalid = top_k_rows(scores, LABELS, 6)
    assert (hits[4], np.flatnonzero(invalid).tolist()) == (False, [4])


@pytest.mark.parametrize(
    ("scores", "labels", "k", "message"),
    [
        (SCORES, LABELS, 7, "among the 7 highest of 7 classes every label is found: top-7 says nothing here"),
        (SCORES[:, 0], LABELS, 1, "top-1 accuracy needs scores of shape (rows, classes), not (60,) float64"),
        (SCORES[:3], [0, 7, 1], 2, "label 7 in row 1 has no column: the model scores the classes 0 to 6"),
        (SCORES[:3], [0, 1], 2, "there are 2 labels for 3 rows of outputs"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores, labels, k, message):
    with pytest.raises(InputError) as caught:
        top_k_rows(scores, labels, k)
    assert str(caught.value) == message


def test_two_columns_are_ordered_as_the_probability_of_class_one():
    logits = SCORES[:, :2]
    probability = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    assert np.argsort(positive_scores(logits)).tolist() == np.argsort(probability).tolist()
    assert positive_scores(SCORES[:, :1]).tolist() == SCORES[:, 0].tolist()


def test_scores_of_more_classes_have_no_curve():
    with pytest.raises(InputError) as caught:
        positive_scores(SCORES)
    assert str(caught.value) == (
        "an area under the ROC curve needs one score a row or one for each of two classes, not shape (60, 7) of float64; "
        "of more classes pick one in the model, or give a callable as metric="
    )
