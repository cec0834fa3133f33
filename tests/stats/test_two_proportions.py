from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import betabinom, binom, binomtest, fisher_exact, hypergeom

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.proportions import fisher_p_value, outside_range_p_value, rate_increase_bound


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
    chances = np.array([[fisher_p_value(k, n, j, reference_n) for j in range(71)] for k in range(41)])
    for share in (0.01, 0.1, 0.5, 0.93):
        weights = np.outer(binom.pmf(range(41), n, share), binom.pmf(range(71), reference_n, share))
        for alpha in (0.05, 0.001):
            assert weights[chances <= alpha].sum() <= alpha


@pytest.mark.parametrize(("outside", "n", "reference_n"), [(1, 100, 50), (5, 100, 50), (3, 3, 2), (40, 2000, 10_000)])
def test_outside_range_is_the_beta_binomial_tail(outside, n, reference_n):
    expected = betabinom.pmf(np.arange(outside, n + 1), n, 2, reference_n - 1).sum()  # its sf loses the far tail
    assert outside_range_p_value(outside, n, reference_n) == pytest.approx(expected, rel=1e-8, abs=0)


def test_outside_range_of_simulated_samples_is_as_likely_as_told():
    rng, repeats = np.random.default_rng(6), 4000
    then, now = np.sort(rng.standard_cauchy((repeats, 40)), axis=1), rng.standard_cauchy((repeats, 60))
    outside = ((now < then[:, :1]) | (now > then[:, -1:])).sum(axis=1)
    for count in (1, 3, 6):
        chance = outside_range_p_value(count, 60, 40)
        assert np.mean(outside >= count) == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / repeats))


@pytest.mark.parametrize(
    ("n", "reference_n", "share", "excess"),
    [(200, 2000, 0.02, 0.02), (400, 400, 0.1, 0.05), (100, 100, 0.3, 0.1), (80, 2000, 0.0, 0.05), (30, 30, 0.5, 0.2)],
)
def test_excess_bound_misses_the_truth_in_at_most_five_per_cent_of_samples(n, reference_n, share, excess):
    now, then = (
        binom.pmf(np.arange(n + 1), n, share + excess),
        binom.pmf(np.arange(reference_n + 1), reference_n, share),
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fisher_p_value(6, 5, 0, 5), "successes are among the rows: 6 of 5 cannot be"),
        (lambda: fisher_p_value(0, 0, 0, 5), "n is a count, an integer of at least 1, not 0"),
        (lambda: fisher_p_value(1, 5, 0.2, 5), "reference_successes is a count, an integer of at least 0, not 0.2"),
        (lambda: outside_range_p_value(6, 5, 9), "values outside are among the 5 values: 6 cannot be"),
        (lambda: outside_range_p_value(1, 5, 1), "reference_n is a count, an integer of at least 2, not 1"),
    ],
)
def test_impossible_counts_are_refused(call, message):
    with pytest.raises(UsageError) as caught:
        call()
    assert str(caught.value) == message
