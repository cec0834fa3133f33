"""decode: each way of reading scores, rows with NaN, and everything that it refuses."""

import numpy as np
import pytest

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics import decode


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


@pytest.mark.parametrize("how", ["threshold", "labels"])
def test_a_single_nan_score_marks_its_row(how):
    decoded = decode(np.array([1.0, np.nan]), how)
    assert (decoded.labels[0], decoded.invalid.tolist()) == (1, [False, True])


@pytest.mark.parametrize(("shape", "how"), [((0, 3), "argmax"), ((0,), "threshold"), ((0, 1), "labels")])
def test_no_rows_decode_to_no_labels(shape, how):
    decoded = decode(np.zeros(shape), how)
    assert decoded.labels.shape == decoded.invalid.shape == (0,)


@pytest.mark.parametrize(
    ("scores", "how", "message"),
    [
        ([[0.0, 1.0]], "argmax", "scores to decode are a numpy array, not list"),
        (np.array(0.5), "threshold", "scores to decode have one row an input: a single number has none"),
        (
            np.zeros((3, 1)),
            "argmax",
            "decode='argmax' needs scores of shape (rows, classes) with at least two classes, not (3, 1); "
            "for one score a row use decode='threshold', for labels decode='labels'",
        ),
        (
            np.array([["a", "b"]]),
            "argmax",
            "decode='argmax' needs numbers, not <U1; for labels use decode='labels'",
        ),
        (
            np.zeros((3, 2)),
            "threshold",
            "decode='threshold' needs one value a row, shape (rows,) or (rows, 1), not (3, 2); "
            "for one score a class use decode='argmax'",
        ),
        (
            np.zeros(3, np.int64),
            "threshold",
            "decode='threshold' needs probabilities, not int64; for labels use decode='labels'",
        ),
        (
            np.array([1.0, 0.25]),
            "labels",
            "answers hold 0.25 in row 1: class labels are whole numbers or strings",
        ),
        (
            np.array([np.inf, 0.0]),
            "labels",
            "answers hold inf in row 0: class labels are whole numbers or strings",
        ),
        (np.zeros(3), lambda scores: scores[:2], "decode= returned shape (2,) for 3 rows: one label a row is needed"),
        (np.zeros(3), lambda scores: scores.size, "decode= returned int: a numpy array of one label a row is needed"),
        (
            np.zeros((3, 2)),
            lambda scores: scores,
            "answers have shape (3, 2): one label a row is needed, shape (rows,); for one column a class use "
            "labels.argmax(axis=1)",
        ),
        (
            np.zeros(3),
            lambda scores: scores + 1j,
            "answers have dtype complex128: class labels are integers or strings",
        ),
    ],
)
def test_what_does_not_fit_is_refused(scores, how, message):
    with pytest.raises(InputError) as caught:
        decode(scores, how)
    assert str(caught.value) == message


def test_an_unknown_decoding_names_the_nearest():
    with pytest.raises(UsageError) as caught:
        decode(np.zeros((1, 2)), "argmx")
    assert str(caught.value) == (
        "unknown decode 'argmx': did you mean 'argmax'? Known: 'argmax', 'threshold', 'labels', or a callable"
    )
