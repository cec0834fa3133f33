"""correct_rows and accuracy: what counts as right, and labels that cannot be used."""

import numpy as np
import pytest

from pytest_modelserve.errors import InputError
from pytest_modelserve.metrics import accuracy, correct_rows, decode


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


@pytest.mark.parametrize(
    ("decoded", "labels", "message"),
    [
        (answers(), np.array([]), "there are no rows: accuracy needs at least one row of each of two classes"),
        (answers(0, 1, 2), np.array([0, 1]), "there are 2 labels for 3 rows of outputs"),
        (answers(0, 1), np.array([], dtype=int), "there are 0 labels for 2 rows of outputs"),
        (
            answers(0, 1),
            np.array([0.0, np.nan]),
            "labels hold NaN in 1 of 2 rows, first in row 1: leave out the rows that have no label",
        ),
        (answers(0, 1), np.array([0.5, 1.0]), "labels hold 0.5 in row 0: class labels are whole numbers or strings"),
        (
            answers(0, 1),
            np.array([[0], [1]]),
            "labels have shape (2, 1): one label a row is needed, shape (rows,); use labels.ravel()",
        ),
        (
            answers(0, 1),
            np.eye(2),
            "labels have shape (2, 2): one label a row is needed, shape (rows,); for one column a class use "
            "labels.argmax(axis=1)",
        ),
        (
            answers(0, 1),
            np.array(["a", None], dtype=object),
            "labels hold None (NoneType) in row 1: class labels are all integers or all strings",
        ),
        (
            answers(3, 1),
            np.array(["cat", "dog"]),
            "labels are strings (first 'cat') and the model's answers are integers (first 3): give labels as the "
            "model answers them, or a callable as decode= that answers as the labels do",
        ),
        (
            answers(7, 1, 7),
            np.array([7, 7, 7]),
            "all 3 labels are 7: on one class alone a model that always gives that answer is perfect; add rows of "
            "another class",
        ),
    ],
    ids=["empty", "length", "no-labels", "nan", "fraction", "column", "one-hot", "objects", "kinds", "one-class"],
)
def test_labels_that_cannot_be_used_are_refused(decoded, labels, message):
    with pytest.raises(InputError) as caught:
        correct_rows(decoded, labels)
    assert str(caught.value) == message
