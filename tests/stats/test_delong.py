"""The area under the ROC curve: against pair counting, a published comparison and resampling."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import auc_of, delong_covariance, delta_method_bounds

# Albumin, total protein, K-G score and whether surgery was of no use, of 43 patients with ovarian cancer: DeLong,
# DeLong and Clarke-Pearson (1988), as printed in the SAS/STAT User's Guide, the LOGISTIC procedure, "Comparing Receiver
# Operating Characteristic Curves".
PATIENTS = np.array(
    """
    3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1
    3.7 6.7 6 1   3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0
    4.0 6.6 6 0   3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
    4.3 6.5 4 1   3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1
    2.9 5.7 9 0   2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
    """.split(),  # noqa: SIM905
    float,
).reshape(-1, 4)


def by_pairs(scores, positive, weights=None):
    """The area by counting every pair of a positive and a negative row."""
    counted = np.ones(len(scores)) if weights is None else weights
    won = total = 0.0
    for i in np.flatnonzero(positive):
        for j in np.flatnonzero(~positive):
            pair = counted[i] * counted[j]
            total += pair
            won += pair * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
    return won / total


def test_published_areas_errors_and_comparisons():
    albumin, protein, score = -PATIENTS[:, 0], -PATIENTS[:, 1], PATIENTS[:, 2] - 10
    areas, covariance = delong_covariance(np.array([albumin, score, protein]), PATIENTS[:, 3] == 0)
    assert areas == pytest.approx([0.7366, 0.7258, 0.6478], abs=5e-5)
    assert np.sqrt(np.diag(covariance)) == pytest.approx([0.0927, 0.1028, 0.1000], abs=5e-5)
    for model, difference, error in ((0, 0.0108, 0.0953), (2, -0.0780, 0.1046)):
        contrast = np.zeros(3)
        contrast[[model, 1]] = [1, -1]
        assert contrast @ areas == pytest.approx(difference, abs=5e-5)
        assert np.sqrt(contrast @ covariance @ contrast) == pytest.approx(error, abs=5e-5)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_area_is_the_share_of_pairs_in_the_right_order(ties, weighted):
    rng = np.random.default_rng(0)
    for _ in range(20):
        n = int(rng.integers(4, 40))
        positive = np.arange(n) % 3 == 0
        scores = rng.integers(0, 4, n).astype(float) if ties else rng.standard_normal(n)
        weights = rng.uniform(0, 2, n) if weighted else None
        assert auc_of(scores, positive, weights).value == pytest.approx(by_pairs(scores, positive, weights))


def test_integer_weights_are_rows_repeated():
    rng = np.random.default_rng(1)
    scores, positive, weights = rng.standard_normal(12), np.arange(12) % 2 == 0, rng.integers(1, 4, 12)
    repeated = auc_of(np.repeat(scores, weights), np.repeat(positive, weights))
    assert auc_of(scores, positive, weights.astype(float)).value == pytest.approx(repeated.value)


def test_influence_is_what_a_little_more_weight_on_a_row_does():
    rng = np.random.default_rng(2)
    scores, positive = rng.standard_normal(15), np.arange(15) % 4 == 0
    found = auc_of(scores, positive)
    assert found.influence.sum() == pytest.approx(0, abs=1e-12)
    for row in range(15):
        more = np.ones(15)
        more[row] += 1e-6
        slope = (by_pairs(scores, positive, more) - by_pairs(scores, positive)) / 1e-6
        assert found.influence[row] / 15 == pytest.approx(slope, abs=1e-5)


def test_sum_of_squares_is_delongs_variance_but_for_small_samples():
    rng = np.random.default_rng(3)
    positive = np.arange(4000) % 5 == 0
    scores = rng.standard_normal(4000) + positive
    _, covariance = delong_covariance(scores, positive)
    assert float((auc_of(scores, positive).influence ** 2).sum()) / 4000**2 == pytest.approx(
        float(covariance[0, 0]), rel=2e-3
    )


def test_separated_classes_have_an_interval_all_the_same():
    found = auc_of([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10], np.arange(10) > 6)
    assert (found.value, found.largest) == (1, pytest.approx(10 / 3))
    assert delta_method_bounds(found.values, largest=found.largest, low_level=0.95, high_level=0.95).low < 0.3
    assert auc_of([1.0, 2, 3, 2], np.array([False, True, True, False])).largest == 0


def test_infinite_scores_are_ranked_and_rows_of_any_scale_alike():
    positive = np.array([True, False, True, False])
    assert auc_of([np.inf, -np.inf, 0, 1], positive).value == 0.75
    assert auc_of([1e300, 0, 1e-300, 1e299], positive).value == 0.75


@pytest.mark.parametrize(
    ("scores", "positive", "message"),
    [
        ([1.0, 2], [True, True], "an area under the ROC curve needs rows of both classes"),
        ([1.0, np.nan], [True, False], "scores that are NaN have no rank: leave them out"),
        ([1.0], [True, False], "every score has a class: 1 scores, 2 classes"),
    ],
)
def test_scores_without_an_area_are_refused(scores, positive, message):
    with pytest.raises(UsageError) as caught:
        auc_of(scores, np.array(positive))
    assert str(caught.value) == message


def test_covariance_of_a_single_row_is_refused():
    with pytest.raises(UsageError, match="a covariance needs two rows of each class, not 1 and 3"):
        delong_covariance([1.0, 2, 3, 4], np.arange(4) == 0)


def test_high_end_of_a_drop_misses_about_as_often_as_it_says():
    """600 pairs of correlated normal scores with a true drop of 0.0313, 30 positive rows of 300."""
    rng, missed, failed = np.random.default_rng(0), 0, 0
    truth = scipy_stats.norm.cdf(1.5 / np.sqrt(2)) - scipy_stats.norm.cdf(1.3 / np.sqrt(2))
    positive = np.arange(300) < 30
    for _ in range(600):
        base = rng.standard_normal(300)
        other = 0.9 * base + np.sqrt(1 - 0.81) * rng.standard_normal(300)
        drop = auc_of(base + 1.5 * positive, positive).minus(auc_of(other + 1.3 * positive, positive))
        bounds = delta_method_bounds(drop.values, low_level=0.999, high_level=0.95)
        missed += bounds.high < truth
        failed += bounds.low > truth
    assert 0.025 <= missed / 600 <= 0.085
    assert failed <= 4
