"""Bounds, Holm's adjustment and the split of error rates over interim analyses."""

import itertools

import numpy as np
import pytest
from scipy.stats import binom

from pytest_modelserve.stats import holm, interim_error_rate

LOOKS = (50, 100, 200, 400, 800)


def test_holm_of_a_worked_example():
    # As R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm").
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_holm_is_the_closed_test_of_bonferroni():
    rng = np.random.default_rng(6)
    for p_values in rng.beta(0.5, 3, size=(50, 6)).round(2):
        subsets = [s for size in range(1, 7) for s in itertools.combinations(range(6), size)]
        expected = [max(min(1, len(s) * min(p_values[list(s)])) for s in subsets if test in s) for test in range(6)]
        np.testing.assert_allclose(holm(p_values), expected)


def test_holm_of_no_tests_is_empty_and_leaves_its_input_alone():
    assert holm([]).shape == (0,)
    p_values = np.array([0.9, 0.1])
    holm(p_values)
    np.testing.assert_array_equal(p_values, [0.9, 0.1])


def miss_at_any_look(error):
    """P(the high end of a sign interval lies below the median at some look), by following the count of signs."""
    alive, seen, missed = np.ones(1), 0, 0.0
    for look in LOOKS:
        alive = np.convolve(alive, binom.pmf(np.arange(look - seen + 1), look - seen, 0.5))
        seen, rank = look, int(binom.ppf(1 - error, look, 0.5)) + 1
        missed += alive[rank:].sum()
        alive[rank:] = 0
    return missed


@pytest.mark.parametrize(("error", "split", "unsplit"), [(0.05, 0.032, 0.136), (0.001, 0.0007, 0.0032)])
def test_split_error_holds_over_five_looks_and_the_whole_error_at_each_would_not(error, split, unsplit):
    assert miss_at_any_look(interim_error_rate(error, len(LOOKS))) == pytest.approx(split, rel=0.05)
    assert miss_at_any_look(error) == pytest.approx(unsplit, rel=0.05)
    assert split < error < unsplit


def test_spend_with_one_look_costs_nothing():
    assert interim_error_rate(0.001, 1) == 0.001
