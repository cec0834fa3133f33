"""Rows of a class: what precision, recall and their averages are made of."""

import numpy as np
import pytest

from pytest_modelserve.errors import InputError
from pytest_modelserve.metrics import class_rows, decode, positive_label, positive_rows


def answers(*labels):
    return decode(np.array(labels), "labels")


def test_rows_of_the_positive_class_by_label_and_by_answer():
    rows = positive_rows(answers(1, 1, 0, 0), [1, 0, 1, 0], None)
    assert rows.label == 1
    assert (rows.actual.tolist(), rows.predicted.tolist()) == ([True, False, True, False], [True, True, False, False])
    assert rows.hits.tolist() == [True, False, False, False]


def test_positive_class_can_be_any_label():
    assert positive_rows(answers("cat", "dog"), ["cat", "dog"], "cat").actual.tolist() == [True, False]
    assert positive_rows(answers(3, 5, 7), [3, 5, 7], 5).predicted.tolist() == [False, True, False]


def test_classes_are_those_of_the_labels():
    rows = class_rows(answers(2, 0, 9), [2, 0, 2])
    assert [one.label for one in rows] == [0, 2]
    assert rows[1].actual.tolist() == [True, False, True]
    assert rows[1].predicted.tolist() == [True, False, False]


def test_row_with_nan_is_answered_as_no_class():
    decoded = decode(np.array([[np.nan, 0.0], [0.0, 1.0]]), "argmax")
    assert [one.predicted.tolist() for one in class_rows(decoded, [0, 1])] == [[False, False], [False, True]]


@pytest.mark.parametrize(
    ("truth", "given", "message"),
    [
        (
            np.array([3, 5]),
            None,
            "labels are 3, 5: say which class is the positive one by pos_label=, or take the average over the classes "
            "('precision_macro', 'recall_macro', 'f1_macro')",
        ),
        (np.array(["a", "b"]), 1, "pos_label=1 is none of the labels, which are 'a', 'b'"),
        (np.arange(7), 8, "pos_label=8 is none of the labels, which are 0, 1, 2, 3, 4 and 2 more"),
        (np.array([0, 1]), "1", "pos_label='1' is none of the labels, which are 0, 1"),
    ],
)
def test_positive_class_that_is_none_is_refused(truth, given, message):
    with pytest.raises(InputError) as caught:
        positive_label(truth, given)
    assert str(caught.value) == message
