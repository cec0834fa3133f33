"""Signal quality: noise ratios, cosine similarity, top-1 agreement, divergences and margins."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import cosine
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics import (
    agreement_by_margin,
    decision_margins,
    kl_divergences,
    row_cosines,
    signal_to_quantization_noise_db,
    top1_agreement,
    top1_matches,
)


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


def test_equal_outputs_have_no_noise_even_where_both_are_zero():
    assert signal_to_quantization_noise_db(np.ones(3), np.ones(3)) == math.inf
    assert signal_to_quantization_noise_db(np.zeros(3), np.zeros(3)) == math.inf


def test_noise_without_a_signal_is_minus_infinity():
    assert signal_to_quantization_noise_db(np.ones(3), np.zeros(3)) == -math.inf


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_noise_ratio_does_not_depend_on_scale(scale):
    assert signal_to_quantization_noise_db(np.array([1.1]) * scale, np.array([1.0]) * scale) == pytest.approx(20.0)


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


def test_top_classes_are_compared_row_by_row():
    reference = np.array([[1.0, 2.0], [3.0, 0.0], [0.5, 0.6]])
    candidate = np.array([[0.0, 9.0], [1.0, 2.0], [0.1, 0.2]])
    assert top1_matches(candidate, reference).tolist() == [True, False, True]
    assert top1_agreement(candidate, reference) == pytest.approx(2 / 3)


def test_of_equal_scores_the_first_class_is_on_top():
    assert top1_agreement(np.array([[1.0, 1.0]]), np.array([[1.0, 0.0]])) == 1.0
    assert top1_agreement(np.array([[1.0, 1.0]]), np.array([[0.0, 1.0]])) == 0.0


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_one_class_has_no_top_class(shape):
    with pytest.raises(InputError, match=r"the top class needs scores of shape \(rows, classes\) with at least two"):
        top1_matches(np.ones(shape), np.ones(shape))


RNG = np.random.default_rng(0)
REFERENCE, CANDIDATE = RNG.normal(scale=3, size=(2, 50, 7))


def test_divergences_of_probabilities_are_those_of_scipy():
    r, c = softmax(REFERENCE, axis=1), softmax(CANDIDATE, axis=1)
    np.testing.assert_allclose(kl_divergences(c, r, scores="probabilities"), entropy(r, c, axis=1), rtol=1e-12)


def test_divergences_of_logits_are_those_of_their_softmax():
    expected = entropy(softmax(REFERENCE, axis=1), softmax(CANDIDATE, axis=1), axis=1)
    np.testing.assert_allclose(kl_divergences(CANDIDATE, REFERENCE, scores="logits"), expected, rtol=1e-10)


def test_logits_far_from_zero_neither_overflow_nor_vanish():
    r, c = np.array([[1000.0, 0.0]]), np.array([[0.0, 1000.0]])
    assert kl_divergences(c, r, scores="logits")[0] == pytest.approx(1000)
    expected = (np.exp(log_softmax(r)) * (log_softmax(r) - log_softmax(c))).sum()
    assert kl_divergences(c, r, scores="logits")[0] == pytest.approx(expected)


def test_a_class_that_only_the_candidate_rules_out_is_infinitely_far():
    sure, unsure = np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])
    assert kl_divergences(sure, unsure, scores="probabilities").tolist() == [math.inf]
    assert kl_divergences(unsure, sure, scores="probabilities")[0] == pytest.approx(math.log(2))


def test_equal_rows_diverge_by_nothing_and_nothing_is_negative():
    assert kl_divergences(REFERENCE, REFERENCE, scores="logits").tolist() == [0.0] * 50
    nudged = REFERENCE + RNG.normal(scale=1e-15, size=REFERENCE.shape)
    assert (kl_divergences(nudged, REFERENCE, scores="logits") >= 0).all()


def test_rounded_probabilities_are_still_a_distribution():
    r = softmax(REFERENCE, axis=1)
    rounded = r.astype(np.float16)
    assert kl_divergences(rounded, r, scores="probabilities").max() < 1e-5


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ([[0.5, 0.6]], "its scores go from 0.5 to 0.6 and add up to 1.1"),
        ([[-0.5, 1.5]], "its scores go from -0.5 to 1.5 and add up to 1"),
    ],
)
def test_logits_given_as_probabilities_are_refused(candidate, message):
    with pytest.raises(InputError) as caught:
        kl_divergences(np.array(candidate), np.array([[0.5, 0.5]]), scores="probabilities")
    assert str(caught.value) == (
        f"candidate row [0] is no distribution: {message}; say scores='logits' if that is what they are"
    )


def test_a_divergence_needs_classes_and_a_known_kind_of_score():
    with pytest.raises(InputError, match="a divergence needs scores of shape"):
        kl_divergences(np.ones((3, 1)), np.ones((3, 1)), scores="logits")
    with pytest.raises(UsageError, match="unknown scores 'logit': did you mean 'logits'"):
        kl_divergences(np.ones((3, 2)), np.ones((3, 2)), scores="logit")


MARGINS = np.array([[0.9, 0.1], [0.55, 0.45], [0.2, 0.8], [0.5, 0.5]])


def test_a_margin_is_the_best_score_less_the_second():
    scores = np.random.default_rng(0).normal(size=(6, 4, 9)).astype(np.float32)
    ordered = np.sort(scores.astype(np.float64), axis=-1)
    np.testing.assert_array_equal(decision_margins(scores), ordered[..., -1] - ordered[..., -2])


def test_integers_do_not_wrap():
    assert decision_margins(np.array([[-128, 127]], np.int8)).tolist() == [255]


def test_only_rows_that_the_reference_decided_count():
    flipped = MARGINS[:, ::-1].copy()
    flipped[2] = MARGINS[2]  # rows 0 and 1 have another top class; row 3 keeps its first
    found = agreement_by_margin(flipped, MARGINS, min_margin=0.2)
    assert (found.rows, found.decided, found.agreeing, found.flipped) == (4, 2, 1, 2)
    assert found.agreement == 0.5
    assert found.largest_flipped == pytest.approx(0.8)


def test_a_margin_equal_to_the_threshold_is_not_decided():
    scores = np.array([[1.0, 0.5], [2.0, 0.5]])
    assert agreement_by_margin(scores, scores, min_margin=0.5).decided == 1
    assert agreement_by_margin(scores, scores, min_margin=0.0).decided == 2


def test_the_largest_flipped_margin_is_where_differences_end():
    candidate = MARGINS.copy()
    candidate[1] = [0.4, 0.6]
    found = agreement_by_margin(candidate, MARGINS, min_margin=0)
    assert found.agreement == 2 / 3
    beyond = agreement_by_margin(candidate, MARGINS, min_margin=found.largest_flipped)
    assert beyond.agreement == 1
    assert agreement_by_margin(MARGINS, MARGINS, min_margin=0).largest_flipped is None


def test_a_threshold_that_no_row_reaches_is_refused():
    with pytest.raises(InputError, match="no row is decided by more than min_margin 3"):
        agreement_by_margin(MARGINS, MARGINS, min_margin=3)
    with pytest.raises(UsageError, match="min_margin must be a finite number of at least 0, got -1"):
        agreement_by_margin(MARGINS, MARGINS, min_margin=-1)
    with pytest.raises(InputError, match="at least two classes"):
        decision_margins(np.ones((3, 1)))
