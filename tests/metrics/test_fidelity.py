"""Noise ratio, row cosines and top-1 agreement against their formulas, scipy and hand-made rows."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import cosine

from pytest_modelserve.errors import InputError
from pytest_modelserve.metrics import row_cosines, signal_to_quantization_noise_db, top1_agreement, top1_matches


def test_a_tenth_of_the_amplitude_as_noise_is_twenty_decibels():
    reference = np.array([[1.0, -1.0], [2.0, -2.0]])
    assert signal_to_quantization_noise_db(reference * 1.1, reference) == pytest.approx(20.0, abs=1e-9)


def test_noise_ratio_follows_its_formula_over_many_chunks():
    rng = np.random.default_rng(4)
    reference = rng.normal(size=(1000, 200)).astype(np.float32)
    candidate = (reference + rng.normal(scale=0.01, size=reference.shape)).astype(np.float32)
    r, c = reference.astype(np.float64), candidate.astype(np.float64)
    expected = 10 * np.log10(np.sum(r**2) / np.sum((c - r) ** 2))
    assert signal_to_quantization_noise_db(candidate, reference) == pytest.approx(expected, rel=1e-12)
    assert signal_to_quantization_noise_db(candidate.T, reference.T) == pytest.approx(expected, rel=1e-12)


def test_uniform_rounding_has_the_textbook_noise_ratio():
    # Rounding a uniform signal to 2**b levels leaves 6.02 b dB (Bennett 1948): error variance is step**2 / 12.
    signal = np.random.default_rng(5).uniform(-1, 1, size=200_000)
    step = 2 / 2**8
    rounded = np.round(signal / step) * step
    assert signal_to_quantization_noise_db(rounded, signal) == pytest.approx(20 * math.log10(2**8), abs=0.05)


def test_equal_outputs_have_no_noise_even_where_both_are_zero():
    assert signal_to_quantization_noise_db(np.ones(3), np.ones(3)) == math.inf
    assert signal_to_quantization_noise_db(np.zeros(3), np.zeros(3)) == math.inf


def test_noise_without_a_signal_is_minus_infinity():
    assert signal_to_quantization_noise_db(np.ones(3), np.zeros(3)) == -math.inf


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_noise_ratio_does_not_depend_on_scale(scale):
    assert signal_to_quantization_noise_db(np.array([1.1]) * scale, np.array([1.0]) * scale) == pytest.approx(20.0)


def test_integers_are_measured_without_wrapping():
    reference, candidate = np.array([250], np.uint8), np.array([255], np.uint8)
    assert signal_to_quantization_noise_db(candidate, reference) == pytest.approx(20 * math.log10(50))


def test_cosines_are_those_of_scipy_for_rows_of_any_rank():
    rng = np.random.default_rng(6)
    reference, candidate = rng.normal(size=(2, 20, 3, 4)).astype(np.float32)
    expected = [
        1 - cosine(c.ravel().astype(np.float64), r.ravel().astype(np.float64))
        for c, r in zip(candidate, reference, strict=True)
    ]
    np.testing.assert_allclose(row_cosines(candidate, reference), expected, rtol=1e-12)


def test_a_row_of_zeros_matches_only_another():
    candidate = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    reference = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert row_cosines(candidate, reference).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("scale", [5e-324, 1e-200, 1e200])
def test_cosines_do_not_depend_on_scale(scale):
    rows = np.array([[1.0, 0.0], [1.0, 1.0]]) * scale
    turned = np.array([[0.0, 1.0], [1.0, 1.0]]) * scale
    np.testing.assert_allclose(row_cosines(turned, rows), [0.0, 1.0], atol=1e-15)


def test_a_turned_sign_is_a_cosine_of_minus_one():
    assert row_cosines(np.array([1.0, -2.0]), np.array([3.0, 4.0])).tolist() == [1.0, -1.0]


def test_top_answers_are_compared_row_by_row():
    reference = np.array([[1.0, 2.0], [3.0, 0.0], [0.5, 0.6]])
    candidate = np.array([[0.0, 9.0], [1.0, 2.0], [0.1, 0.2]])
    assert top1_matches(candidate, reference).tolist() == [True, False, True]
    assert top1_agreement(candidate, reference) == pytest.approx(2 / 3)


def test_of_equal_scores_the_first_class_is_on_top():
    assert top1_agreement(np.array([[1.0, 1.0]]), np.array([[1.0, 0.0]])) == 1.0
    assert top1_agreement(np.array([[1.0, 1.0]]), np.array([[0.0, 1.0]])) == 0.0


def test_sequences_have_a_top_answer_at_every_position():
    scores = np.zeros((2, 5, 3))
    assert top1_matches(scores, scores).shape == (2, 5)


MEASURES = [signal_to_quantization_noise_db, row_cosines, top1_agreement]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("candidate", "reference", "message"),
    [
        (
            np.ones((2, 3)),
            np.ones((3, 3)),
            "candidate has shape (2, 3) and reference (3, 3): both need the same",
        ),
        (np.ones((0, 3)), np.ones((0, 3)), "outputs of shape (0, 3) hold no rows: nothing can be measured"),
        (np.array(1.0), np.array(1.0), "outputs of shape () hold no rows: nothing can be measured"),
        (
            np.ones((1, 2)),
            np.array([[1.0, np.nan]]),
            "reference holds nan at [0, 1]: fidelity is measured on finite numbers",
        ),
        (
            np.array([[np.inf, 1.0]]),
            np.ones((1, 2)),
            "candidate holds inf at [0, 0]: fidelity is measured on finite numbers",
        ),
        (
            np.array([["a", "b"]]),
            np.ones((1, 2)),
            "candidate has dtype <U1: fidelity is measured on real numbers",
        ),
        ([[1.0, 2.0]], np.ones((1, 2)), "candidate is a numpy array, not list"),
    ],
    ids=["shape", "empty", "scalar", "nan", "inf", "text", "list"],
)
def test_what_cannot_be_measured_is_refused(measure, candidate, reference, message):
    with pytest.raises(InputError) as caught:
        measure(candidate, reference)
    assert str(caught.value) == message


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_one_class_has_no_top_answer(shape):
    with pytest.raises(InputError) as caught:
        top1_matches(np.ones(shape), np.ones(shape))
    assert str(caught.value) == (
        f"the top class needs scores of shape (rows, classes) with at least two classes, not {shape}"
    )
