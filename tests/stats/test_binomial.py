from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import binomial_bounds


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


@pytest.mark.parametrize("n", [1, 7, 40])
def test_no_true_share_is_missed_more_often_than_the_levels_allow(n):
    bounds = [binomial_bounds(k, n, low_level=0.99, high_level=0.9) for k in range(n + 1)]
    lows, highs = np.array([b.low for b in bounds]), np.array([b.high for b in bounds])
    for share in np.linspace(0, 1, 301):
        chance = binom.pmf(np.arange(n + 1), n, share)
        assert chance[lows > share].sum() <= 0.01 + 1e-12
        assert chance[highs < share].sum() <= 0.1 + 1e-12


def test_simulated_misses_of_either_end_are_those_of_the_binomial():
    n, share, repeats = 200, 0.93, 4000
    drawn = np.random.default_rng(20).binomial(n, share, size=repeats)
    bounds = [binomial_bounds(k, n, low_level=0.95, high_level=0.95) for k in range(n + 1)]
    chance = binom.pmf(np.arange(n + 1), n, share)
    for missed in (np.array([b.low > share for b in bounds]), np.array([b.high < share for b in bounds])):
        assert 0.02 < chance[missed].sum() <= 0.05
        assert missed[drawn].mean() == pytest.approx(chance[missed].sum(), abs=4 * (0.05 * 0.95 / repeats) ** 0.5)


def test_interval_widens_when_n_shrinks():
    widths = [b.high - b.low for b in (binomial_bounds(n // 2, n, low_level=0.95, high_level=0.95) for n in (10, 40))]
    assert widths[0] > widths[1]


def test_numpy_counts_give_builtin_floats():
    bounds = binomial_bounds(np.int64(3), np.int32(7), low_level=0.95, high_level=0.95)
    assert [type(value) for value in (bounds.estimate, bounds.low, bounds.high)] == [float] * 3


@pytest.mark.parametrize(
    ("successes", "n", "message"),
    [
        (0, 0, "n is a count, an integer of at least 1, not 0"),
        (-1, 5, "successes is a count, an integer of at least 0, not -1"),
        (6, 5, "successes are among the n trials: 6 of 5 cannot be"),
        (0.9, 5, "successes is a count, an integer of at least 0, not 0.9"),
    ],
)
def test_impossible_counts_are_refused(successes, n, message):
    with pytest.raises(UsageError) as caught:
        binomial_bounds(successes, n, low_level=0.95, high_level=0.95)
    assert str(caught.value) == message


def test_a_level_of_zero_error_is_refused():
    with pytest.raises(UsageError, match=r"^high_level is a probability above 0.5 and below 1"):
        binomial_bounds(1, 5, low_level=0.95, high_level=1.0)
