"""Intervals of means against statsmodels, published values and simulation."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.signal import lfilter

from pytest_modelserve.stats import block_means, mean_bounds

LEVELS = {"low_level": 0.999, "high_level": 0.95}
SYMMETRIC = np.array([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0]) + 10
SKEWED = np.random.default_rng(0).standard_normal(60) ** 2


def misses(draw, truth, *, block=1, repeats=1500, seed=1):
    """How often each end lies on the wrong side of the truth."""
    rng = np.random.default_rng(seed)
    found = [mean_bounds(draw(rng), block=block, **LEVELS) for _ in range(repeats)]
    return np.mean([b.low > truth for b in found]), np.mean([b.high < truth for b in found])


def autoregression(rng, n, coefficient):
    return lfilter([1.0], [1.0, -coefficient], rng.standard_normal(n + 200))[200:]


def test_standard_error_of_independent_values_is_the_familiar_one():
    sample = block_means(SKEWED)
    assert sample.mean == pytest.approx(SKEWED.mean())
    assert sample.standard_error == pytest.approx(scipy_stats.sem(SKEWED), rel=1e-12)
    assert sample.skewness == pytest.approx(scipy_stats.skew(SKEWED), rel=1e-12)
    assert (sample.n, sample.blocks) == (60, 60)


def test_standard_error_of_equal_blocks_is_that_of_their_means():
    means = SKEWED.reshape(12, 5).mean(axis=1)
    assert block_means(SKEWED, block=5).standard_error == pytest.approx(scipy_stats.sem(means), rel=1e-12)
    assert block_means(SKEWED, block=5).blocks == 12


def test_rows_that_fill_no_block_of_their_own_are_spread_over_the_others():
    values = np.array([1.0, 2, 3, 4, 5, 6, 7, 20])
    sample = block_means(values, block=3)  # 8 values make two blocks, of 4 and 4
    first, second = values[:4].sum() - 4 * values.mean(), values[4:].sum() - 4 * values.mean()
    assert sample.deviations.tolist() == [first, second]
    assert sample.standard_error == pytest.approx(math.sqrt(2 * (first**2 + second**2)) / 8)
    unequal = block_means(values[:7], block=3)  # 3 and 4
    mean = values[:7].mean()
    assert unequal.deviations == pytest.approx([values[:3].sum() - 3 * mean, values[3:7].sum() - 4 * mean])


def test_bounds_of_a_symmetric_sample_are_students():
    bounds = mean_bounds(SYMMETRIC, **LEVELS)
    t = scipy_stats.t(df=len(SYMMETRIC) - 1, loc=SYMMETRIC.mean(), scale=scipy_stats.sem(SYMMETRIC))
    assert (bounds.estimate, bounds.low, bounds.high) == pytest.approx((10, t.ppf(0.001), t.ppf(0.95)), rel=1e-12)


def halls_statistic(values, truth):
    """g(T) of Hall (1992), the studentised mean without its skewness, written from the paper."""
    n, skewness = len(values), scipy_stats.skew(values)
    t = (values.mean() - truth) / scipy_stats.sem(values)
    return t + skewness * t**2 / (3 * math.sqrt(n)) + skewness**2 * t**3 / (27 * n) + skewness / (6 * math.sqrt(n))


def test_long_side_of_a_skewed_sample_is_halls_and_its_short_side_students():
    bounds = mean_bounds(SKEWED, **LEVELS)
    t_low, t_high = scipy_stats.t.ppf([0.999, 0.95], df=59)
    assert halls_statistic(SKEWED, bounds.high) == pytest.approx(-t_high, rel=1e-9)
    assert bounds.low == pytest.approx(SKEWED.mean() - t_low * scipy_stats.sem(SKEWED), rel=1e-12)
    assert bounds.high > SKEWED.mean() + t_high * scipy_stats.sem(SKEWED)


def test_bounds_move_with_the_values_and_turn_with_their_sign():
    one = mean_bounds(SKEWED, **LEVELS)
    moved = mean_bounds(5 * SKEWED - 2, **LEVELS)
    assert (moved.low, moved.high) == pytest.approx((5 * one.low - 2, 5 * one.high - 2))
    turned = mean_bounds(-SKEWED, low_level=0.95, high_level=0.999)
    assert (turned.low, turned.high) == pytest.approx((-one.high, -one.low))


def test_a_hair_of_skewness_changes_the_bounds_by_no_more_than_a_hair():
    one = mean_bounds(SYMMETRIC, **LEVELS)
    for nudge in (1e-9, 1e-6, 1e-4):
        values = SYMMETRIC.copy()
        values[-1] += nudge
        assert mean_bounds(values, **LEVELS).high == pytest.approx(one.high, abs=10 * nudge)


def test_a_single_block_bounds_nothing():
    for values, block in (([1.0], 1), (SYMMETRIC, 4), (SYMMETRIC, 100)):
        bounds = mean_bounds(values, block=block, **LEVELS)
        assert (bounds.low, bounds.high) == (-math.inf, math.inf)
        assert bounds.estimate == np.mean(values)


def test_equal_values_have_an_interval_without_width():
    bounds = mean_bounds(np.full(9, 0.25), **LEVELS)
    assert (bounds.low, bounds.estimate, bounds.high) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("scale", [1e-200, 1e150])
def test_values_of_any_size_neither_overflow_nor_vanish(scale):
    bounds, plain = mean_bounds(scale * SKEWED, **LEVELS), mean_bounds(SKEWED, **LEVELS)
    assert (bounds.low / scale, bounds.high / scale) == pytest.approx((plain.low, plain.high))


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng: rng.standard_normal(50), 0.0),
        (lambda rng: rng.standard_t(3, 50), 0.0),
        (lambda rng: np.abs(rng.standard_normal(200)), math.sqrt(2 / math.pi)),
        (lambda rng: rng.standard_normal(200) ** 2, 1.0),
    ],
    ids=["normal", "heavy tails", "absolute errors", "squared errors"],
)
def test_ends_miss_as_often_as_they_say(draw, truth):
    low, high = misses(draw, truth)
    assert low <= 0.004  # 0.1 % expected, 6 of 1,500 allowed
    assert 0.03 <= high <= 0.07


def test_blocks_hold_the_level_where_values_depend_on_each_other_and_rows_do_not():
    def draw(rng):
        return autoregression(rng, 520, 0.6)

    low, high = misses(draw, 0.0, block=26)
    assert low <= 0.004
    assert 0.03 <= high <= 0.07
    low, high = misses(draw, 0.0, block=1)
    assert low > 0.01
    assert high > 0.12
