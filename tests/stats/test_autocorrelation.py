"""Autocorrelation and serial dependence against scipy, statsmodels and simulation."""

import math

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import spearmanr

from pytest_modelserve.stats import SerialDependence, serial_dependence
from pytest_modelserve.stats.autocorrelation import LagOne, agreement_autocorrelation, rank_autocorrelation


def autoregressive(rng, n, coefficient):
    values = np.empty(n)
    values[0] = rng.normal()
    for index in range(1, n):
        values[index] = coefficient * values[index - 1] + rng.normal() * math.sqrt(1 - coefficient**2)
    return values


@pytest.mark.parametrize("coefficient", [-0.5, 0.0, 0.3, 0.9])
def test_estimate_is_near_spearmans_correlation_of_neighbors(coefficient):
    values = autoregressive(np.random.default_rng(8), 3000, coefficient)
    lag = rank_autocorrelation(values[np.newaxis])
    assert lag.pairs == 2999
    assert lag.estimate == pytest.approx(spearmanr(values[:-1], values[1:]).statistic, abs=2e-3)
    assert lag.estimate == pytest.approx(6 / math.pi * math.asin(coefficient / 2), abs=0.06)


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


def autoregression(rng, n, coefficient):
    return lfilter([1.0], [1.0, -coefficient], rng.standard_normal(n + 200))[200:]


def share_found(draw, *, repeats=800, seed=3):
    rng = np.random.default_rng(seed)
    return np.mean([serial_dependence(draw(rng)) is not None for _ in range(repeats)])


def test_ratio_is_the_variance_of_sums_over_that_of_independent_ones():
    values = autoregression(np.random.default_rng(0), 300, 0.8)
    found = serial_dependence(values)
    assert found is not None
    sums = [values[i : i + found.span].sum() - found.span * values.mean() for i in range(len(values) - found.span + 1)]
    independent = found.span * (1 - found.span / 300) * values.var(ddof=1)
    assert found.variance_ratio == pytest.approx(np.mean(np.square(sums)) / independent)


@pytest.mark.parametrize(("n", "span"), [(15, 2), (16, 4), (300, 16)])
def test_spans_go_up_to_the_root_of_the_number_of_values(n, span):
    assert serial_dependence(np.arange(n, dtype=float)).span == span  # a trend shows most in the longest span


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.standard_normal(100),
        lambda rng: np.abs(rng.standard_normal(600)),
        lambda rng: rng.standard_t(5, 300) ** 2,
    ],
    ids=["normal", "absolute errors", "heavy tails"],
)
def test_independent_values_are_rarely_taken_for_dependent(draw):
    assert share_found(draw) <= 0.03


def test_short_memory_is_found():
    assert share_found(lambda rng: autoregression(rng, 200, 0.5), repeats=200) >= 0.98
    assert share_found(lambda rng: autoregression(rng, 50, 0.5), repeats=200) >= 0.65


def test_slow_drift_below_noise_is_found_although_neighbors_hardly_agree():
    rng = np.random.default_rng(5)
    drift = autoregression(rng, 1000, 0.97) * np.sqrt(1 - 0.97**2)
    values = np.sqrt(0.15) * drift + np.sqrt(0.85) * rng.standard_normal(1000)
    assert np.corrcoef(values[1:], values[:-1])[0, 1] < 0.2
    found = serial_dependence(values)
    assert found is not None
    assert found.span == 16
    assert found.variance_ratio > 1.5


def test_values_that_alternate_make_intervals_too_long_and_are_no_finding():
    assert serial_dependence(np.tile([0.0, 1.0], 100)) is None


def test_order_is_what_counts():
    values = autoregression(np.random.default_rng(2), 400, 0.8)
    assert serial_dependence(values) is not None
    assert serial_dependence(np.random.default_rng(2).permutation(values)) is None


@pytest.mark.parametrize("scale", [1e-200, 1e150])
def test_ratio_has_no_unit(scale):
    values = autoregression(np.random.default_rng(0), 300, 0.8)
    one, other = serial_dependence(values), serial_dependence(scale * values)
    assert one is not None
    assert other == SerialDependence(one.span, pytest.approx(one.variance_ratio))


@pytest.mark.parametrize("values", [[], [1.0], np.arange(7.0), np.full(50, 0.1)], ids=["none", "one", "seven", "equal"])
def test_values_that_say_nothing_show_nothing(values):
    assert serial_dependence(values) is None
