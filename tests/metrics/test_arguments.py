"""Invalid outputs, labels and tolerances are refused with what is wrong and what to do."""

import math
import re
from functools import partial

import numpy as np
import pytest

from pytest_modelserve import metrics
from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics import Decoded

RNG = np.random.default_rng(0)
LOGITS, LABELS, ZEROS = RNG.normal(0, 3, (40, 4)), RNG.integers(0, 4, 40), np.zeros(3)
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
OBJECTS = np.array(["a", None], dtype=object)
decode, absolute = metrics.decode, partial(metrics.row_losses, loss="absolute")
squares, top_k = metrics.row_squares, metrics.top_k_rows


def correct(predictions, labels):
    return metrics.correct_rows(Decoded(np.array(predictions), np.zeros(len(predictions), dtype=bool)), labels)


def compared(candidate):
    return metrics.compare_outputs(candidate, {"y": np.zeros(1)}, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: decode(np.zeros((3, 1)), "argmax"),
            "with at least two classes, not (3, 1); for one score per row use",
        ),
        (lambda: decode(np.array([["a", "b"]]), "argmax"), "decode='argmax' needs numbers, not <U1; for labels use"),
        (lambda: decode(np.zeros((3, 2)), "threshold"), "not (3, 2); for one score per class use decode='argmax'"),
        (lambda: decode(np.zeros(3, int), "threshold"), "needs probabilities, not int64; for labels use"),
        (lambda: decode(np.array([1.0, 0.25]), "labels"), "predictions hold 0.25 in row 1: class labels are whole"),
        (lambda: decode(np.array([math.inf, 0.0]), "labels"), "predictions hold inf in row 0"),
        (
            lambda: decode(ZEROS, lambda scores: scores[:2]),
            "decode= must return one label per row; got shape (2,) for 3 rows",
        ),
        (
            lambda: decode(ZEROS, lambda scores: scores.size),
            "decode= must return a numpy array with one label per row; got int",
        ),
        (
            lambda: decode(np.zeros((3, 2)), lambda scores: scores),
            "predictions must have shape (rows,), one label per row; got (3, 2)",
        ),
        (
            lambda: decode(ZEROS, lambda scores: scores + 1j),
            "predictions must be integers or strings; got dtype complex128",
        ),
        (lambda: decode([1.0, 2.0], "argmax"), "scores must be a numpy array; got list"),
        (lambda: decode(np.array(1.0), "argmax"), "one row for each input"),
        (lambda: correct([], []), "there are no rows: accuracy needs at least one row of each of two classes"),
        (lambda: correct([0, 1, 2], [0, 1]), "there are 2 labels for 3 rows of outputs"),
        (lambda: correct([0, 1], np.zeros(0, int)), "there are 0 labels for 2 rows of outputs"),
        (lambda: correct([0, 1], [0.0, math.nan]), "labels hold NaN in 1 of 2 rows, first in row 1: leave out"),
        (lambda: correct([0, 1], [0.5, 1.0]), "labels hold 0.5 in row 0: class labels are whole numbers"),
        (
            lambda: correct([0, 1], [[0], [1]]),
            "labels must have shape (rows,), one label per row; got (2, 1); use",
        ),
        (lambda: correct([0, 1], np.eye(2)), "for one column per class use labels.argmax(axis=1)"),
        (lambda: correct([0, 1], OBJECTS), "labels hold None (NoneType) in row 1"),
        (lambda: correct([3, 1], ["cat", "dog"]), "strings (first 'cat') and predictions are integers (first 3)"),
        (lambda: correct([7, 1, 7], [7, 7, 7]), "all 3 labels are 7, so a constant model would be perfect"),
        (
            lambda: metrics.positive_label(np.array([3, 5]), None),
            "labels are 3, 5: give the positive class, such as output=ms.Output(pos_label=5)",
        ),
        (
            lambda: metrics.positive_label(np.array(["a", "b"]), 1),
            "pos_label=1 is none of the labels, which are 'a', 'b'",
        ),
        (lambda: metrics.positive_label(np.arange(7), 8), "which are 0, 1, 2, 3, 4 and 2 more"),
        (lambda: metrics.positive_label(np.array([0, 1]), "1"), "pos_label='1' is none of the labels, which are 0, 1"),
        (lambda: top_k(LOGITS, LABELS, 4), "top-4 accuracy needs more than 4 classes, got 4"),
        (lambda: top_k(LOGITS[:, 0], LABELS, 1), "needs scores of shape (rows, classes), not (40,) float64"),
        (
            lambda: top_k(LOGITS[:3], [0, 7, 1], 2),
            "label 7 in row 1 has no column: the model scores the classes 0 to 3",
        ),
        (lambda: top_k(LOGITS[:3], [0, 1], 2), "there are 2 labels for 3 rows of outputs"),
        (lambda: absolute(np.zeros((3, 1)), ZEROS), "each predicted number, targets.reshape(3, 1)"),
        (lambda: absolute(ZEROS, np.zeros(2)), "targets have shape (2,) where the predictions have (3,)"),
        (lambda: absolute(ZEROS, [1.0, math.nan, math.inf]), "NaN or infinities in 2 of 3 rows, first in row 1"),
        (lambda: absolute(ZEROS, ["a", "b", "c"]), "targets must be numbers; got dtype <U1"),
        (lambda: absolute(np.zeros(3, object), ZEROS), "predictions must be numbers; got dtype object"),
        (lambda: absolute(ZEROS, [True, False, True]), "targets must be numbers; got dtype bool"),
        (lambda: absolute(np.zeros((0, 2)), np.zeros((0, 2))), "targets must have at least one row; got shape (0, 2)"),
        (lambda: absolute(np.zeros((2, 0)), np.zeros((2, 0))), "targets must have at least one row; got shape (2, 0)"),
        (lambda: squares(np.arange(3.0), np.ones(3)), "all 3 targets are equal: R² is undefined without variance"),
        (lambda: metrics.compare_outputs({}, {}, rtol=0, atol=0), "the reference has no outputs to compare"),
        (lambda: compared({"y": [1.0]}), "candidate output 'y' is not an array but list"),
        (lambda: compared({"y": np.array([1j])}), "candidate output 'y' has dtype complex128; numbers, booleans and"),
        (lambda: compared({"y": OBJECTS}), "candidate output 'y' holds Python objects (NoneType)"),
        (lambda: metrics.join_comparisons([]), "there are no batches to compare"),
    ],
)
def test_invalid_input_is_named(call, message):
    with pytest.raises(InputError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("losses", [metrics.row_log_losses, metrics.row_brier_scores])
@pytest.mark.parametrize(
    ("scores", "labels", "kind", "message"),
    [
        (
            LOGITS,
            LABELS,
            "probabilities",
            "scores='probabilities', but row 0 holds -0.396315: probabilities lie between",
        ),
        (SOFTMAX * 0.9, LABELS, "probabilities", "scores='probabilities', but row 0 adds up to 0.9"),
        (SOFTMAX, LABELS, "logits", "scores='logits', but all 40 rows lie from 0 to 1 and add up to 1"),
        (np.array([0.01, 0.99, 0.5]), [0, 1, 1], "logits", "but all 3 rows lie from 0 to 1 and cover that range"),
        (LOGITS, LABELS + 1, "logits", "label 4 in row 1 has no column"),
        (LOGITS, LABELS[:-1], "logits", "there are 39 labels for 40 rows of outputs"),
        (LOGITS, ["a"] * 40, "logits", "got strings (first 'a')"),
        (np.array([["a"]]), [0], "logits", "got shape (1, 1) of <U1"),
    ],
)
def test_invalid_scores_are_named(losses, scores, labels, kind, message):
    with pytest.raises(InputError, match=re.escape(message)):
        losses(scores, labels, kind)


@pytest.mark.parametrize(
    "measure", [metrics.signal_to_quantization_noise_db, metrics.row_cosines, metrics.top1_agreement]
)
@pytest.mark.parametrize(
    ("candidate", "reference", "message"),
    [
        (np.ones((2, 3)), np.ones((3, 3)), "candidate has shape (2, 3) and reference (3, 3)"),
        (np.ones((0, 3)), np.ones((0, 3)), "outputs of shape (0, 3) hold no rows"),
        (np.array(1.0), np.array(1.0), "outputs of shape () hold no rows"),
        (np.ones((1, 2)), np.array([[1.0, math.nan]]), "reference holds nan at [0, 1]"),
        (np.array([[math.inf, 1.0]]), np.ones((1, 2)), "candidate holds inf at [0, 0]"),
        (np.array([["a", "b"]]), np.ones((1, 2)), "candidate must hold real numbers; got dtype <U1"),
        ([[1.0, 2.0]], np.ones((1, 2)), "candidate is a numpy array, not list"),
    ],
)
def test_invalid_pair_is_named(measure, candidate, reference, message):
    with pytest.raises(InputError, match=re.escape(message)):
        measure(candidate, reference)


@pytest.mark.parametrize("value", [-1e-9, math.inf, math.nan])
def test_invalid_tolerance_is_named(value):
    with pytest.raises(UsageError, match="atol must be a finite number of at least 0"):
        metrics.check_tolerances(0.0, value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: absolute(ZEROS, ZEROS, loss="square"), "unknown loss 'square': did you mean 'squared'"),
        (lambda: metrics.row_log_losses(LOGITS, LABELS, "logit"), "unknown scores 'logit': did you mean 'logits'"),
    ],
)
def test_unknown_choice_names_the_nearest(call, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        call()
