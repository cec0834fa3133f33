"""Kullback-Leibler divergences against scipy."""

import math

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics import kl_divergences

RNG = np.random.default_rng(0)
REFERENCE, CANDIDATE = RNG.normal(scale=3, size=(2, 50, 7))


def test_divergences_of_probabilities_are_those_of_scipy():
    r, c = softmax(REFERENCE, axis=1), softmax(CANDIDATE, axis=1)
    np.testing.assert_allclose(kl_divergences(c, r, scores="probabilities"), entropy(r, c, axis=1), rtol=1e-12)


def test_divergences_of_logits_are_those_of_their_softmax():
    expected = entropy(softmax(REFERENCE, axis=1), softmax(CANDIDATE, axis=1), axis=1)
    np.testing.assert_allclose(kl_divergences(CANDIDATE, REFERENCE, scores="logits"), expected, rtol=1e-10)


def test_the_reference_weighs():
    r, c = np.array([[0.9, 0.1]]), np.array([[0.5, 0.5]])
    assert kl_divergences(c, r, scores="probabilities")[0] == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))


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


def test_sequences_have_a_divergence_at_every_position():
    scores = np.zeros((2, 5, 3), np.float32)
    assert kl_divergences(scores, scores, scores="logits").shape == (2, 5)


def test_rounded_probabilities_are_still_a_distribution():
    r = softmax(REFERENCE, axis=1)
    rounded = r.astype(np.float16)
    assert kl_divergences(rounded, r, scores="probabilities").max() < 1e-5


@pytest.mark.parametrize(
    ("candidate", "told"),
    [
        ([[0.5, 0.6]], "its scores go from 0.5 to 0.6 and add up to 1.1"),
        ([[-0.5, 1.5]], "its scores go from -0.5 to 1.5 and add up to 1"),
    ],
)
def test_logits_given_as_probabilities_are_refused(candidate, told):
    with pytest.raises(InputError) as caught:
        kl_divergences(np.array(candidate), np.array([[0.5, 0.5]]), scores="probabilities")
    assert str(caught.value) == (
        f"candidate row [0] is no distribution: {told}; say scores='logits' if that is what they are"
    )


def test_a_divergence_needs_classes_and_a_known_kind_of_score():
    with pytest.raises(InputError, match="a divergence needs scores of shape"):
        kl_divergences(np.ones((3, 1)), np.ones((3, 1)), scores="logits")
    with pytest.raises(UsageError, match="unknown scores 'logit': did you mean 'logits'"):
        kl_divergences(np.ones((3, 2)), np.ones((3, 2)), scores="logit")
