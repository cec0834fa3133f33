from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.autocorrelation import LagOne, agreement_autocorrelation, rank_autocorrelation


def autoregressive(rng, n, coefficient):
    values = np.empty(n)
    values[0] = rng.normal()
    for index in range(1, n):
        values[index] = coefficient * values[index - 1] + rng.normal() * math.sqrt(1 - coefficient**2)
    return values


@pytest.mark.parametrize("coefficient", [-0.5, 0.0, 0.3, 0.9])
def test_estimate_is_near_spearmans_correlation_of_neighbours(coefficient):
    values = autoregressive(np.random.default_rng(8), 3000, coefficient)
    lag = rank_autocorrelation(values[np.newaxis])
    assert lag.pairs == 2999
    assert lag.estimate == pytest.approx(spearmanr(values[:-1], values[1:]).statistic, abs=2e-3)
    assert lag.estimate == pytest.approx(6 / math.pi * math.asin(coefficient / 2), abs=0.06)


def test_ties_share_their_mean_rank():
    values = np.round(autoregressive(np.random.default_rng(9), 2000, 0.6))
    expected = spearmanr(values[:-1], values[1:]).statistic
    assert rank_autocorrelation(values[np.newaxis]).estimate == pytest.approx(expected, abs=2e-3)


def test_a_monotone_transform_changes_nothing():
    values = autoregressive(np.random.default_rng(10), 500, 0.4)[np.newaxis]
    assert rank_autocorrelation(np.exp(5 * values)) == rank_autocorrelation(values)


def test_pairs_with_a_missing_value_and_across_stretches_are_left_out():
    values = np.array([[1.0, 2.0, np.nan, 3.0], [4.0, 5.0, 6.0, 7.0]])
    assert rank_autocorrelation(values).pairs == 1 + 3
    assert rank_autocorrelation(np.array([[1.0, np.nan, 2.0]])) == LagOne(0.0, 0)


def test_levels_that_differ_between_stretches_count_as_dependence():
    rng = np.random.default_rng(11)
    values = rng.normal(size=(4, 200)) + 5 * np.arange(4)[:, np.newaxis]
    assert rank_autocorrelation(values).estimate > 0.9


def test_low_end_is_above_the_truth_as_often_as_it_says():
    rng, above = np.random.default_rng(12), 0
    for _ in range(2000):
        above += rank_autocorrelation(rng.normal(size=(1, 300))).low(1.645) > 0
    assert above / 2000 == pytest.approx(0.05, abs=0.02)


def test_what_does_not_vary_says_nothing():
    assert rank_autocorrelation(np.ones((2, 50))) == LagOne(0.0, 0)
    assert agreement_autocorrelation(np.zeros((2, 50), dtype=np.int64)) == LagOne(0.0, 0)
    assert LagOne(0.0, 0).low(3) == -1


def test_agreement_of_two_categories_is_their_autocorrelation():
    codes = (autoregressive(np.random.default_rng(13), 4000, 0.7) > 0.5).astype(np.int64)
    expected = np.corrcoef(codes[:-1], codes[1:])[0, 1]
    assert agreement_autocorrelation(codes[np.newaxis]).estimate == pytest.approx(expected, abs=2e-3)


def test_agreement_of_shuffled_categories_is_chance_and_of_sorted_ones_complete():
    codes = np.random.default_rng(14).integers(0, 7, 5000)
    assert abs(agreement_autocorrelation(codes[np.newaxis]).estimate) < 0.03
    assert agreement_autocorrelation(np.sort(codes)[np.newaxis]).estimate > 0.99


def test_unknown_categories_are_left_out():
    assert agreement_autocorrelation(np.array([[0, 1, -1, 1, 0]])).pairs == 2


def test_other_shapes_and_impossible_values_are_refused():
    with pytest.raises(UsageError, match=r"^values have two axes, stretches and their rows, not the shape \(3,\)$"):
        rank_autocorrelation([1.0, 2.0, 3.0])
    with pytest.raises(UsageError, match=r"^not an autocorrelation: 1.5 from 3 pairs$"):
        LagOne(1.5, 3)
