from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ks_2samp

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.two_sample_tests import (
    distance_bound,
    distribution_distance,
    effective_rows,
    effective_rows_for_distance,
    kolmogorov_p_value,
    passable_distance,
    rows_for_distance,
)


def counted(values, edges):
    return np.histogram(values, bins=[-np.inf, *edges, np.inf])[0]


def test_effective_rows_are_half_of_equal_samples_and_at_most_the_smaller_one():
    assert effective_rows(100, 100) == 50
    assert effective_rows(1e12, 100) == pytest.approx(100)
    assert effective_rows(100, 0) == 0


def test_distance_with_an_edge_at_every_value_is_that_of_scipy():
    rng = np.random.default_rng(0)
    then, now = rng.poisson(5, 300), rng.poisson(6, 200)
    edges = np.arange(0, 25) + 0.5
    expected = ks_2samp(then, now).statistic
    assert distribution_distance(counted(then, edges), counted(now, edges)) == pytest.approx(expected, abs=1e-12)


def test_fewer_edges_never_make_a_distance_larger():
    rng = np.random.default_rng(1)
    for _ in range(50):
        then, now = rng.normal(size=80), rng.normal(0.3, 1.2, size=60)
        edges = np.sort(rng.normal(size=rng.integers(1, 20)))
        binned = distribution_distance(counted(then, edges), counted(now, edges))
        assert binned <= ks_2samp(then, now).statistic + 1e-12


@pytest.mark.parametrize(("n", "m"), [(8, 6), (10, 30), (40, 25), (100, 100), (500, 60)])
def test_p_value_is_at_most_three_per_cent_below_the_exact_one(n, m):
    rng = np.random.default_rng(2)
    for shift in np.linspace(0, 1, 40):
        exact = ks_2samp(rng.normal(size=n), rng.normal(shift, size=m), method="exact")
        ours = kolmogorov_p_value(exact.statistic, effective_rows(n, m))
        assert ours >= min(exact.pvalue, 0.2) / 1.03


@pytest.mark.parametrize("ties", [False, True], ids=["continuous", "ties"])
def test_binned_p_values_of_unchanged_samples_are_rarely_small(ties):
    # 2,000 worlds: 5 % and 1 % within 3 standard errors at most; binning and ties only make them fewer.
    rng = np.random.default_rng(3)
    chances = []
    for _ in range(2000):
        then, now = rng.normal(size=150), rng.normal(size=100)
        if ties:
            then, now = np.round(then), np.round(now)
        edges = np.quantile(then, np.arange(1, 16) / 16)
        counts = counted(then, np.unique(edges)), counted(now, np.unique(edges))
        chances.append(kolmogorov_p_value(distribution_distance(*counts), effective_rows(150, 100)))
    assert np.mean(np.array(chances) <= 0.05) <= 0.065
    assert np.mean(np.array(chances) <= 0.01) <= 0.017


@pytest.mark.parametrize(("standard", "chance"), [(1.3581, 0.05), (1.6276, 0.01), (1.9495, 0.001)])
def test_p_value_has_the_published_critical_values(standard, chance):
    # Smirnov (1948), Annals of Mathematical Statistics 19, 279–281: the table of the limit.
    assert kolmogorov_p_value(standard / 20, 400) == pytest.approx(chance, rel=2e-3)


def test_bound_misses_a_true_distance_in_fewer_than_five_per_cent_of_samples():
    # A uniform sample against one shifted by 0.2: the true distance is 0.2 at every point between 0.2 and 1.
    rng, edges = np.random.default_rng(4), np.arange(1, 120) / 100
    missed = 0
    for _ in range(2000):
        counts = counted(rng.random(80), edges), counted(rng.random(60) + 0.2, edges)
        missed += distance_bound(distribution_distance(*counts), effective_rows(80, 60)) < 0.2
    assert missed / 2000 < 0.05


def test_bound_of_no_rows_is_everything():
    assert distance_bound(0.0, 0) == 1
    assert distance_bound(0.5, 1) == 1
    assert kolmogorov_p_value(1.0, 0) == 1
    assert passable_distance(0) == 1


def test_rows_for_the_example_of_the_design():
    assert rows_for_distance(0.10, reference=10_000, tests=20) == 1132


@pytest.mark.parametrize(("distance", "tests"), [(0.1, 1), (0.1, 20), (0.05, 5)])
def test_rows_for_distance_are_the_fewest_for_which_it_is_passable(distance, tests):
    rows = rows_for_distance(distance, reference=8000, tests=tests)
    assert passable_distance(effective_rows(8000, rows), tests=tests) <= distance
    assert passable_distance(effective_rows(8000, rows - 1), tests=tests) > distance


def test_unchanged_samples_of_the_rows_asked_for_pass_nineteen_times_in_twenty():
    rng, tests, distance = np.random.default_rng(5), 5, 0.2
    rows = rows_for_distance(distance, reference=1000, tests=tests)
    shares = np.full(64, 1 / 64)
    passed = 0
    for _ in range(1000):
        seen = [
            distribution_distance(rng.multinomial(1000, shares), rng.multinomial(rows, shares)) for _ in range(tests)
        ]
        passed += max(distance_bound(value, effective_rows(1000, rows)) for value in seen) <= distance
    assert 0.94 < passed / 1000 < 0.995


def test_too_small_a_reference_passes_with_no_number_of_rows():
    needed = effective_rows_for_distance(0.1, tests=20)
    assert rows_for_distance(0.1, reference=math.floor(needed), tests=20) is None
    assert rows_for_distance(0.1, reference=math.ceil(needed) + 1, tests=20) > 100_000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: effective_rows(-1, 5), "reference is a number of rows, not -1"),
        (lambda: effective_rows(5, math.nan), "current is a number of rows, not nan"),
        (lambda: distribution_distance([1, 2], [1]), "both samples are counted in the same bins, not in 2 and 1"),
        (lambda: distribution_distance([1, 2], [0, 0]), "current_counts are counts of at least one row"),
        (lambda: distribution_distance([1, -1], [1, 0]), "reference_counts are counts of at least one row"),
        (lambda: kolmogorov_p_value(math.nan, 5), "a distance lies from 0 to 1, not nan"),
        (lambda: kolmogorov_p_value(0.5, math.nan), "effective is a number of rows, not nan"),
        (lambda: rows_for_distance(1.0, reference=5), "max_distance lies between 0 and 1 (0.1, say), not 1.0"),
        (lambda: rows_for_distance(0.5, reference=-5), "reference is a number of rows, not -5"),
        (lambda: passable_distance(5, tests=0), "tests is a count, an integer of at least 1, not 0"),
    ],
)
def test_impossible_arguments_are_refused(call, message):
    with pytest.raises(UsageError) as caught:
        call()
    assert str(caught.value) == message
