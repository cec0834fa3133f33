"""Influences against numerical derivatives, DeLong's published example, and bounds by simulation."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import (
    Linearized,
    auc_of,
    average_of,
    block_ids,
    block_means,
    delong_covariance,
    delta_method_bounds,
    delta_method_power,
    delta_method_rows_needed,
    mean_bounds,
    mean_of,
    proportion_rows_needed,
    ratio_of,
    root_of,
    rule_of_three_bound,
    unit_values,
)

RNG = np.random.default_rng(0)
A, B, W = RNG.uniform(0, 1, 12), RNG.uniform(1, 2, 12), RNG.uniform(0.5, 2, 12)
LEVELS = {"low_level": 0.999, "high_level": 0.95}
RATES = {"confidence": 0.95, "alpha": 0.001}


@pytest.mark.parametrize(
    ("estimate", "plain"),
    [
        (mean_of, lambda w: float(w @ A / w.sum())),
        (lambda a, w: ratio_of(a, B, w), lambda w: float(w @ A / (w @ B))),
        (lambda a, w: root_of(mean_of(a, w)), lambda w: math.sqrt(w @ A / w.sum())),
        (
            lambda a, w: average_of([ratio_of(a, B, w), mean_of(B, w)]),
            lambda w: (w @ A / (w @ B) + w @ B / w.sum()) / 2,
        ),
        (lambda a, w: ratio_of(a, B, w).minus(mean_of(B, w)), lambda w: w @ A / (w @ B) - w @ B / w.sum()),
    ],
    ids=["mean", "ratio", "root", "average", "difference"],
)
@pytest.mark.parametrize("weights", [np.ones(12), W], ids=["rows", "weights"])
def test_influence_is_what_a_row_counted_more_often_does(estimate, plain, weights):
    found = estimate(A, weights)
    assert found.value == pytest.approx(plain(weights))
    assert found.influence.sum() == pytest.approx(0, abs=1e-12)
    for row in range(12):
        more = weights.copy()
        more[row] *= 1 + 1e-6
        assert found.influence[row] / 12 == pytest.approx((plain(more) - plain(weights)) / 1e-6, abs=1e-6)


def test_rise_of_a_root_mean_scatters_as_the_jackknife_says():
    n, reference = 400, np.random.default_rng(0).standard_normal(400)
    candidate = 1.2 * reference + 0.3 * np.random.default_rng(1).standard_normal(n)
    without = [
        np.sqrt(np.mean(np.delete(candidate, i) ** 2)) - np.sqrt(np.mean(np.delete(reference, i) ** 2))
        for i in range(n)
    ]
    jackknife = np.sqrt((n - 1) * np.var(without))
    rise = root_of(mean_of(candidate**2)).minus(root_of(mean_of(reference**2)))
    assert block_means(rise.values).standard_error == pytest.approx(jackknife, rel=0.02)


def test_root_of_nothing_has_no_pull():
    assert root_of(mean_of(np.zeros(3))).influence.tolist() == [0, 0, 0]


def test_rows_that_hardly_count_are_hardly_rows():
    """Two of four rows count: a kind of row not seen may be as frequent as among two."""
    half = ratio_of(np.zeros(4), np.ones(4), np.array([3.0, 3, 0, 0]), spread=1.0)
    assert ratio_of(np.zeros(2), np.ones(2), spread=1.0).largest == 1
    assert half.largest == pytest.approx(2)


def test_an_average_moves_by_the_largest_of_its_parts():
    parts = [Linearized(0.5, np.zeros(2), largest) for largest in (3.0, 1.0, 5.0)]
    assert average_of(parts).largest == pytest.approx(5 / 3)
    assert average_of(parts, touched=2).largest == pytest.approx(8 / 3)


def test_bounds_are_students_and_halls_where_all_rows_carry_the_estimate():
    values = RNG.standard_normal(400)
    ours, theirs = delta_method_bounds(values, **LEVELS), mean_bounds(values, **LEVELS)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=2e-3)


def test_few_rows_that_carry_the_estimate_have_few_degrees_of_freedom():
    """100 of 10,000 normal pulls: kurtosis 300, some 67 degrees of freedom and not 9,999."""
    values = np.zeros(10_000)
    values[:100] = scipy_stats.norm.ppf((np.arange(100) + 0.5) / 100)
    bounds = delta_method_bounds(values, low_level=0.95, high_level=0.95)
    error = math.sqrt((values**2).sum()) / 10_000
    kurtosis = float((values**4).mean() / (values**2).mean() ** 2)
    t = scipy_stats.t.ppf(0.95, 2 / (2 / 9999 + (kurtosis - 3) / 10_000))
    assert bounds.high == pytest.approx(t * error, rel=1e-3)
    assert t > 1.665


def test_rows_that_are_all_right_may_hide_three_in_n():
    bounds = delta_method_bounds(np.zeros(300), largest=1.0, low_level=0.95, high_level=0.999)
    assert bounds.low == pytest.approx(-(1 - 0.05 ** (1 / 300)))
    assert bounds.high == pytest.approx(1 - 0.001 ** (1 / 300))
    assert rule_of_three_bound(300, 0.95) == pytest.approx(0.00994, abs=1e-5)


def test_power_and_rows_needed_agree_with_the_bounds():
    values = RNG.standard_normal(200)
    values -= values.mean()
    needed = delta_method_rows_needed(values, truth=0.0, limit=0.02, **RATES)
    assert needed is not None
    more = np.tile(values, math.ceil(needed / 200))
    assert delta_method_power(more, truth=0.0, limit=0.02, **RATES).passes == pytest.approx(0.9, abs=0.01)
    assert delta_method_rows_needed(values, truth=0.1, limit=0.1, **RATES) is None
    assert delta_method_power(values[:1], truth=0.0, limit=0.1, **RATES).inconclusive == 1


def test_rows_needed_allow_for_rows_not_seen():
    assert delta_method_rows_needed(np.zeros(50), truth=0.0, limit=0.01, largest=1.0, **RATES) == 299
    assert delta_method_power(np.zeros(298), truth=0.0, limit=0.01, largest=1.0, **RATES).passes == 0
    assert delta_method_power(np.zeros(299), truth=0.0, limit=0.01, largest=1.0, **RATES).passes == 1
    assert delta_method_power(np.zeros(299), truth=0.05, limit=0.01, largest=1.0, **RATES).fails == 1


def test_values_of_units_have_the_cluster_robust_error():
    values, ids = RNG.standard_normal(30), np.repeat(np.arange(6), [1, 9, 5, 5, 2, 8])
    found = unit_values(values, ids)
    sums = np.array([(values[ids == unit] - values.mean()).sum() for unit in range(6)])
    assert found.mean() == pytest.approx(values.mean())
    assert scipy_stats.sem(found) == pytest.approx(math.sqrt(6 / 5 * (sums**2).sum()) / 30)


@pytest.mark.parametrize(("n", "block"), [(7, 3), (8, 3), (20, 1), (5, 9)])
def test_blocks_as_units_are_those_of_block_means(n, block):
    values = RNG.standard_normal(n)
    ids = block_ids(n, block)
    assert len(ids) == n
    if n // block > 1:
        ours = mean_bounds(unit_values(values, ids), **LEVELS)
        theirs = mean_bounds(values, block=block, **LEVELS)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    else:
        assert ids.tolist() == [0] * n


def test_rows_for_a_proportion_decide_on_either_side_of_its_limit():
    assert proportion_rows_needed(1.0, 0.99, **RATES) == 299
    above = proportion_rows_needed(0.95, 0.9, **RATES)
    below = proportion_rows_needed(0.85, 0.9, **RATES)
    assert above is not None
    assert below is not None
    assert 150 < above < 400 < below < 1500
    assert proportion_rows_needed(0.9, 0.9, **RATES) is None
    with pytest.raises(UsageError, match="limit must be above 0 and below 1, got 1"):
        proportion_rows_needed(0.9, 1, **RATES)


def recalls(rng, *, n, rare, wrong, lost):
    """The drop of balanced accuracy with two classes, and its row values: the candidate loses `lost` of either class."""
    is_rare = rng.random(n) < rare
    before = rng.random(n) > wrong
    after = before & (rng.random(n) > lost / (1 - wrong))
    parts = []
    for answers in (before, after):
        hits = answers.astype(float)
        parts.append(average_of([ratio_of(hits * one, one.astype(float), spread=1.0) for one in (is_rare, ~is_rare)]))
    return parts[0].minus(parts[1])


@pytest.mark.parametrize("case", [{"n": 200, "rare": 0.5, "lost": 0.01}, {"n": 500, "rare": 0.1, "lost": 0.03}])
def test_high_end_keeps_its_level_where_the_delta_method_alone_does_not(case):
    rng = np.random.default_rng(0)
    found = [recalls(rng, wrong=0.1, **case) for _ in range(600)]
    ours = [delta_method_bounds(one.values, largest=one.largest, **LEVELS).high < case["lost"] for one in found]
    alone = [mean_bounds(one.values, **LEVELS).high < case["lost"] for one in found]
    assert np.mean(ours) <= 0.06
    assert np.mean(alone) >= 0.09


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
