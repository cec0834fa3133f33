"""Scores of membership attacks."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import norm

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.privacy.shadow_models import (
    ScoreReading,
    ShadowPlan,
    balanced_masks,
    label_log_odds,
    likelihood_ratios,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(50, 4)) * 5
LABELS = RNG.integers(0, 4, 50)


def test_log_odds_of_logits_are_those_of_their_probabilities():
    expected = log_softmax(LOGITS, axis=1)[np.arange(50), LABELS]
    expected -= np.log1p(-np.exp(expected))
    for outputs in (LOGITS, softmax(LOGITS, axis=1)):
        reading = ScoreReading.of(outputs, None)
        np.testing.assert_allclose(label_log_odds(outputs, LABELS, reading), expected, rtol=1e-6)


def test_one_column_is_class_one_of_two():
    probability = np.array([0.2, 0.9])
    reading = ScoreReading.of(probability, None)
    assert reading.kind == "probabilities"
    np.testing.assert_allclose(label_log_odds(probability, [1, 0], reading), np.log([0.2 / 0.8, 0.1 / 0.9]))
    logits = np.array([[-3.0], [2.5]])
    np.testing.assert_allclose(label_log_odds(logits, [1, 0], ScoreReading.of(logits, None)), [-3.0, -2.5])


def test_rounded_probabilities_have_finite_log_odds():
    rounded = np.array([[1.0, 0.0], [0.99, 0.01]])
    reading = ScoreReading.of(rounded, None)
    np.testing.assert_allclose(label_log_odds(rounded, [0, 1], reading), np.log([1 / 0.005, 0.01 / 0.99]))


def test_the_top_probabilities_alone_are_probabilities():
    top = np.array([[0.6, 0.0, 0.0], [0.0, 0.7, 0.0]])
    assert ScoreReading.of(top, None).kind == "probabilities"


def plain(target, shadows, included, fixed):
    """The published formulas, row by row, by scipy."""
    deviations = [
        np.concatenate([s[m] - s[m].mean() for s, m in zip(shadows.T, k.T, strict=True)]) for k in (included, ~included)
    ]
    ratios = []
    for value, scores, inside in zip(target, shadows.T, included.T, strict=True):
        densities = [
            norm.logpdf(value, scores[rows].mean(), of_all.std() if fixed else scores[rows].std())
            for rows, of_all in zip((inside, ~inside), deviations, strict=True)
        ]
        ratios.append(densities[0] - densities[1])
    return np.array(ratios)


@pytest.mark.parametrize(("prior", "fixed"), [(0.0, False), (np.inf, True)])
def test_likelihood_ratios_are_those_of_the_published_formulas(prior, fixed):
    included = balanced_masks(30, 12, 5, RNG)
    shadows, target = RNG.normal(size=(12, 30)) + 2 * included, RNG.normal(size=30)
    found = likelihood_ratios(target, shadows, included, prior_shadows=prior)
    np.testing.assert_allclose(found, plain(target, shadows, included, fixed))


def test_a_row_without_shadow_models_and_nan_are_refused():
    included = balanced_masks(8, 8, 4, RNG)
    with pytest.raises(UsageError, match="finite"):
        likelihood_ratios(np.full(8, np.nan), np.zeros((8, 8)), included)
    included[:, 3] = False
    with pytest.raises(UsageError, match="at least 2 of 8 shadow models"):
        likelihood_ratios(np.zeros(8), np.zeros((8, 8)), included)


@pytest.mark.parametrize(("rows", "models", "each"), [(1_797, 16, 5), (100, 7, 3), (5, 4, 2)])
def test_masks_are_balanced_by_row_and_by_model(rows, models, each):
    masks = balanced_masks(rows, models, each, np.random.default_rng(1))
    assert (masks.sum(axis=0) == each).all()
    assert np.ptp(masks.sum(axis=1)) <= each


def test_shadow_models_see_as_many_rows_as_the_model_at_most_half():
    assert ShadowPlan.of(1_797, 599, 16, seed=0).models_a_row == 5
    assert ShadowPlan.of(1_797, 1_700, 16, seed=0).models_a_row == 8
    assert ShadowPlan.of(1_797, 10, 16, seed=0).models_a_row == 2
    with pytest.raises(UsageError, match="shadows must be an integer of at least 4"):
        ShadowPlan.of(10, 5, 3, seed=0)


def test_outputs_without_scores_are_refused():
    with pytest.raises(InputError, match="numbers of shape"):
        ScoreReading.of(np.array(["a"]), None)
