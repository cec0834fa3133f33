"""Binomial bounds, exact tests of one and two proportions, and their sample sizes, against scipy and enumeration."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import gammaincinv
from scipy.stats import betabinom, binom, binomtest, fisher_exact, hypergeom

from pytest_modelserve.stats import binomial_bounds
from pytest_modelserve.stats.proportions import (
    fisher_p_value,
    outside_range_p_value,
    rate_increase_bound,
    rows_for_rate_increase,
    unseen_p_value,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(13, 16, 0.5435, 0.9595), (10, 10, 0.6915, 1.0), (0, 10, 0.0, 0.3085)],
    ids=["Ligaarden 2010", "all", "none"],
)
def test_published_clopper_pearson_intervals(successes, n, low, high):
    # Fagerland, Lydersen and Laake (2017), Statistical Analysis of Contingency Tables, chapter 2; two-sided 95 %.
    bounds = binomial_bounds(successes, n, low_level=0.975, high_level=0.975)
    assert (bounds.low, bounds.high) == pytest.approx((low, high), abs=5e-5)
    assert bounds.estimate == successes / n


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (3, 10), (50, 59), (590, 597), (70_000, 100_000)])
def test_each_end_is_the_one_sided_exact_bound_of_scipy(successes, n):
    bounds = binomial_bounds(successes, n, low_level=0.999, high_level=0.95)
    low = binomtest(successes, n, alternative="greater").proportion_ci(0.999, method="exact").low
    high = binomtest(successes, n, alternative="less").proportion_ci(0.95, method="exact").high
    assert (bounds.low, bounds.high) == pytest.approx((low, high), rel=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(1000, 1 << 40), (999, 1 << 39), (1000, 338_822_672), (999, 83_555_491)])
def test_ends_of_a_very_small_proportion_are_those_of_a_poisson_rate(successes, n):
    bounds = binomial_bounds(successes, n, low_level=0.999, high_level=0.95)  # scipy's inverse is wrong for these
    low, high = gammaincinv(successes, 0.001) / n, gammaincinv(successes + 1, 0.95) / n
    assert (bounds.low, bounds.high) == pytest.approx((low, high), rel=successes / n + 1e-9)


@pytest.mark.parametrize("n", [1, 7, 40])
def test_no_true_share_is_missed_more_often_than_the_levels_allow(n):
    bounds = [binomial_bounds(k, n, low_level=0.99, high_level=0.9) for k in range(n + 1)]
    lows, highs = np.array([b.low for b in bounds]), np.array([b.high for b in bounds])
    for proportion in np.linspace(0, 1, 301):
        probability = binom.pmf(np.arange(n + 1), n, proportion)
        assert probability[lows > proportion].sum() <= 0.01 + 1e-12
        assert probability[highs < proportion].sum() <= 0.1 + 1e-12


def test_simulated_misses_of_either_end_are_those_of_the_binomial():
    n, proportion, repeats = 200, 0.93, 4000
    drawn = np.random.default_rng(20).binomial(n, proportion, size=repeats)
    bounds = [binomial_bounds(k, n, low_level=0.95, high_level=0.95) for k in range(n + 1)]
    probability = binom.pmf(np.arange(n + 1), n, proportion)
    for missed in (np.array([b.low > proportion for b in bounds]), np.array([b.high < proportion for b in bounds])):
        assert 0.02 < probability[missed].sum() <= 0.05
        assert missed[drawn].mean() == pytest.approx(probability[missed].sum(), abs=4 * (0.05 * 0.95 / repeats) ** 0.5)


@pytest.mark.parametrize(
    ("successes", "n", "reference_successes", "reference_n"),
    [(7, 20, 3, 50), (1, 1, 0, 100), (10, 10, 10, 10), (3, 40, 60, 900), (50, 100, 0, 10_000), (0, 5, 3, 5)],
)
def test_fisher_is_the_one_sided_test_of_scipy(successes, n, reference_successes, reference_n):
    table = [[successes, n - successes], [reference_successes, reference_n - reference_successes]]
    expected = fisher_exact(table, alternative="greater").pvalue
    ours = fisher_p_value(successes, n, reference_successes, reference_n)
    assert ours == pytest.approx(expected, rel=1e-8)


def test_fisher_holds_for_millions_of_rows():
    ours = fisher_p_value(5400, 200_000, 260_000, 10_000_000)
    assert ours == pytest.approx(hypergeom.sf(5399, 10_200_000, 265_400, 200_000), rel=1e-5)
    assert fisher_p_value(400_000, 1_000_000, 3_000_000, 10_000_000) == 0.0


def test_fisher_rejects_equal_shares_no_more_often_than_it_says():
    n, reference_n = 40, 70
    p_values = np.array([[fisher_p_value(k, n, j, reference_n) for j in range(71)] for k in range(41)])
    for proportion in (0.01, 0.1, 0.5, 0.93):
        weights = np.outer(binom.pmf(range(41), n, proportion), binom.pmf(range(71), reference_n, proportion))
        for alpha in (0.05, 0.001):
            assert weights[p_values <= alpha].sum() <= alpha


@pytest.mark.parametrize(("outside", "n", "reference_n"), [(1, 100, 50), (5, 100, 50), (3, 3, 2), (40, 2000, 10_000)])
def test_outside_range_is_the_beta_binomial_tail(outside, n, reference_n):
    expected = betabinom.pmf(np.arange(outside, n + 1), n, 2, reference_n - 1).sum()  # its sf loses the far tail
    assert outside_range_p_value(outside, n, reference_n) == pytest.approx(expected, rel=1e-8, abs=0)


def test_outside_range_of_simulated_samples_has_the_stated_probability():
    rng, repeats = np.random.default_rng(6), 4000
    then, now = np.sort(rng.standard_cauchy((repeats, 40)), axis=1), rng.standard_cauchy((repeats, 60))
    outside = ((now < then[:, :1]) | (now > then[:, -1:])).sum(axis=1)
    for count in (1, 3, 6):
        probability = outside_range_p_value(count, 60, 40)
        assert np.mean(outside >= count) == pytest.approx(
            probability, abs=4 * np.sqrt(probability * (1 - probability) / repeats)
        )


@pytest.mark.parametrize(
    ("n", "reference_n", "proportion", "excess"),
    [(200, 2000, 0.02, 0.02), (400, 400, 0.1, 0.05), (100, 100, 0.3, 0.1), (80, 2000, 0.0, 0.05), (30, 30, 0.5, 0.2)],
)
def test_excess_bound_misses_the_truth_in_at_most_five_per_cent_of_samples(n, reference_n, proportion, excess):
    now, then = (
        binom.pmf(np.arange(n + 1), n, proportion + excess),
        binom.pmf(np.arange(reference_n + 1), reference_n, proportion),
    )
    missed = 0.0
    for successes in np.flatnonzero(now > 1e-6):
        for reference in np.flatnonzero(then > 1e-4):
            if rate_increase_bound(int(successes), n, int(reference), reference_n, level=0.95) < excess:
                missed += now[successes] * then[reference]
    assert 0.01 < missed <= 0.05


def test_excess_over_a_reference_without_a_success_is_bounded_as_a_share_by_itself():
    expected = binomtest(3, 40, alternative="less").proportion_ci(0.95).high
    assert rate_increase_bound(3, 40, 0, 500, level=0.95) == pytest.approx(expected)
    assert rate_increase_bound(40, 40, 0, 500, level=0.95) == 1


def test_nothing_outside_is_no_evidence():
    assert outside_range_p_value(0, 5, 2) == 1
    assert fisher_p_value(0, 5, 0, 5) == 1


def exact(then, now):
    """The proportion of all ways to deal the rows out that leave at least as many rows unseen."""
    totals, drawn = np.add(then, now), sum(now)
    rows = np.repeat(np.arange(len(totals)), totals)
    seen = int(np.asarray(now)[np.asarray(then) == 0].sum())
    deals = [
        np.bincount(rows[list(deal)], minlength=len(totals)) for deal in itertools.combinations(range(len(rows)), drawn)
    ]
    return np.mean([deal[deal == totals].sum() >= seen for deal in deals])


@pytest.mark.parametrize(
    ("then", "now"),
    [([5, 3, 0], [2, 2, 2]), ([9, 0], [1, 3]), ([4, 1, 1, 0, 0], [2, 1, 0, 1, 3]), ([6, 2, 0, 0, 0], [3, 0, 1, 1, 1])],
)
def test_bound_is_never_below_the_exact_p_value(then, now):
    probability = exact(then, now)
    assert probability <= unseen_p_value(then, now) + 1e-12
    assert unseen_p_value(then, now) <= 20 * probability


def test_one_new_category_has_its_exact_p_value():
    # All five rows of it among the 2,000 of 12,000: hypergeometric, 1.28e-4.
    rows = np.arange(5)
    expected = np.prod((2000 - rows) / (12_000 - rows))
    assert unseen_p_value([10_000, 0], [1995, 5]) == pytest.approx(expected, rel=0.01)


def test_categories_that_come_in_clumps_are_not_taken_for_evidence_as_fisher_would():
    rng, arguments = np.random.default_rng(7), 1 / np.arange(1, 91) ** 0.7
    arguments /= arguments.sum()
    ours, fishers = [], []
    for _ in range(400):
        then, now = rng.multinomial(300, arguments), rng.multinomial(3000, arguments)
        ours.append(unseen_p_value(then, now))
        fishers.append(fisher_p_value(int(now[then == 0].sum()), 3000, int((then == 1).sum()), 300))
    assert np.mean(np.array(ours) <= 0.05) <= 0.05
    assert np.mean(np.array(fishers) <= 0.01) > 0.03


def test_no_unseen_row_is_no_evidence_and_many_are_certain():
    assert unseen_p_value([5, 5], [5, 5]) == 1
    assert unseen_p_value([10_000, 0], [500, 500]) < 1e-25


@pytest.mark.parametrize("limit", [0.5, 0.05, 0.01, 0.0003])
def test_without_a_faulty_row_it_is_the_closed_form(limit):
    rows = rows_for_rate_increase(rate=0, limit=limit, confidence=0.95, power=0.9)
    assert rows == math.ceil(math.log(0.05) / math.log1p(-limit))


@pytest.mark.parametrize(("proportion", "limit"), [(0.001, 0.01), (0.02, 0.03), (0.3, 0.35)])
def test_about_the_power_asked_for_is_met(proportion, limit):
    rows = rows_for_rate_increase(rate=proportion, limit=limit, confidence=0.95, power=0.9)
    bounds = [binomtest(k, rows, alternative="less").proportion_ci(0.95).high for k in range(int(rows * limit) + 2)]
    passes = sum(binom.pmf(k, rows, proportion) for k, bound in enumerate(bounds) if bound <= limit)
    assert 0.87 <= passes <= 0.97


def test_a_share_at_its_limit_needs_no_number_of_rows():
    assert rows_for_rate_increase(rate=0.05, limit=0.05, confidence=0.95, power=0.9) is None
    assert rows_for_rate_increase(rate=0.05, limit=0.0500000001, confidence=0.95, power=0.9) is None


def test_an_uncertain_reference_takes_more_rows_and_too_uncertain_a_one_all_of_them():
    arguments = {"rate": 0.02, "base": 0.02, "limit": 0.01, "confidence": 0.95, "power": 0.9}
    certain, uncertain = rows_for_rate_increase(**arguments), rows_for_rate_increase(**arguments, below=0.004)
    assert certain < uncertain < 3 * certain
    assert rows_for_rate_increase(**arguments, below=0.01) is None
