"""Bounds of quantiles against enumeration, published values and simulation."""

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm, quantile_test

from pytest_modelserve.stats import median_bounds, quantile_bounds, samples_for_quantile
from pytest_modelserve.stats.quantiles import dependence_block, dependent_quantile_bounds


@pytest.mark.parametrize("n", [5, 20, 64, 333])
@pytest.mark.parametrize("quantile", [0.05, 0.5, 0.9, 0.99])
def test_each_end_is_the_one_sided_interval_of_scipys_quantile_test(n, quantile):
    samples = np.random.default_rng(n).lognormal(size=n)
    bounds = quantile_bounds(samples, quantile, low_level=0.999, high_level=0.95)
    low = quantile_test(samples, p=quantile, alternative="greater").confidence_interval(0.999).low
    high = quantile_test(samples, p=quantile, alternative="less").confidence_interval(0.95).high
    # scipy says NaN where no order statistic has the level.
    assert bounds.low == (low if not math.isnan(low) else -math.inf)
    assert bounds.high == (high if not math.isnan(high) else math.inf)


@pytest.mark.parametrize(
    ("quantile", "one_over", "two_over"), [(0.90, 44, 64), (0.95, 90, 130), (0.99, 459, 662)], ids=str
)
def test_sample_sizes_of_mlperf_loadgens_early_stopping(quantile, one_over, two_over):
    # At 99 % confidence LoadGen passes with no query over the latency from 44, 90, 459 on, with one from 64, 130, 662.
    assert samples_for_quantile(quantile, low_level=0.9, high_level=0.99) == one_over
    for n, over in ((one_over - 1, None), (one_over, 0), (two_over - 1, 0), (two_over, 1)):
        high = quantile_bounds(np.arange(n), quantile, low_level=0.9, high_level=0.99).high
        assert high == (math.inf if over is None else n - 1 - over)


@pytest.mark.parametrize("quantile", [0.001, 0.07, 0.5, 0.95])
@pytest.mark.parametrize(("low_level", "high_level"), [(0.999, 0.95), (0.75, 0.75), (0.51, 0.999_999)])
def test_samples_for_quantile_is_the_fewest_with_two_finite_ends(quantile, low_level, high_level):
    n = samples_for_quantile(quantile, low_level=low_level, high_level=high_level)
    assert n == next(
        m for m in range(1, 20_000) if 1 - quantile**m >= high_level and 1 - (1 - quantile) ** m >= low_level
    )
    ends = [quantile_bounds(np.zeros(m), quantile, low_level=low_level, high_level=high_level) for m in (n - 1, n) if m]
    assert all(map(math.isfinite, (ends[-1].low, ends[-1].high)))
    assert n == 1 or not all(map(math.isfinite, (ends[0].low, ends[0].high)))


@pytest.mark.parametrize(("quantile", "level"), [(0.25, 0.578125), (0.55, 0.6975)])
def test_samples_for_quantile_agrees_with_the_bounds_where_logarithms_round_the_wrong_way(quantile, level):
    # Both levels are 1 - q^n to the last digit; the quotient of logarithms lands a hair above or below n.
    n = samples_for_quantile(quantile, low_level=level, high_level=level)
    enough = quantile_bounds(np.zeros(n), quantile, low_level=level, high_level=level)
    too_few = quantile_bounds(np.zeros(n - 1), quantile, low_level=level, high_level=level)
    assert (enough.low, enough.high) == (0, 0)
    assert math.inf in (-too_few.low, too_few.high)


@pytest.mark.parametrize("n", [1, 13, 100])
@pytest.mark.parametrize("quantile", [0.07, 0.25, 0.5, 0.95, 0.99])
def test_the_estimate_inverts_the_empirical_distribution_function(n, quantile):
    samples = np.random.default_rng(3).permutation(n).astype(float)
    bounds = quantile_bounds(samples, quantile, low_level=0.9, high_level=0.9)
    assert bounds.estimate == min(x for x in samples if np.mean(samples <= x) >= quantile)


def test_levels_are_met_whatever_the_sample_size():
    for n in range(1, 120):
        for quantile in (0.1, 0.5, 0.9):
            bounds = quantile_bounds(np.arange(1, n + 1), quantile, low_level=0.99, high_level=0.9)
            if math.isfinite(bounds.low):
                assert binom.sf(bounds.low - 1, n, quantile) >= 0.99 > binom.sf(bounds.low, n, quantile)
            if math.isfinite(bounds.high):
                assert binom.cdf(bounds.high - 1, n, quantile) >= 0.9 > binom.cdf(bounds.high - 2, n, quantile)


def test_the_median_is_bounded_by_the_sign_test():
    # P(Bin(20, 1/2) <= 5) = 2.07 % and P(<= 6) = 5.77 %: the interval ends at the 6th from either side.
    bounds = median_bounds(np.arange(1, 21), low_level=0.975, high_level=0.975)
    assert (bounds.low, bounds.estimate, bounds.high) == (6, 10, 15)


def test_too_few_samples_leave_an_end_unbounded():
    bounds = quantile_bounds([3.0, 1.0, 2.0], 0.95, low_level=0.95, high_level=0.95)
    assert (bounds.low, bounds.estimate, bounds.high) == (2.0, 3.0, math.inf)


def test_a_call_that_never_came_back_is_the_slowest():
    bounds = quantile_bounds([1.0, math.inf, 2.0, 3.0] * 50, 0.5, low_level=0.95, high_level=0.95)
    assert (bounds.estimate, bounds.high) == (2.0, 3.0)


def test_the_order_of_the_samples_does_not_matter_and_they_are_left_as_they_were():
    samples = np.random.default_rng(5).normal(size=101)
    before = samples.copy()
    bounds = median_bounds(samples, low_level=0.95, high_level=0.95)
    assert bounds == median_bounds(samples[::-1], low_level=0.95, high_level=0.95)
    np.testing.assert_array_equal(samples, before)
    assert [type(value) for value in (bounds.estimate, bounds.low, bounds.high)] == [float] * 3


def bursts(rng, n, length, share):
    """1 to 2, and in bursts of mean `length` that take `share` of the time 3 to 4; begun in the steady state."""
    leave = 1 / length
    enter = leave * share / (1 - share)
    states, inside = np.empty(n), rng.random() < share
    for i, u in enumerate(rng.random(n)):
        inside = u >= leave if inside else u < enter
        states[i] = inside
    return 1 + 2 * states + rng.random(n)


def test_independent_samples_have_the_plain_bounds():
    rng = np.random.default_rng(0)
    same = 0
    for _ in range(100):
        samples = rng.lognormal(size=472)
        found = dependent_quantile_bounds(samples, 0.95, low_level=0.999, high_level=0.95)
        same += found.bounds == quantile_bounds(samples, 0.95, low_level=0.999, high_level=0.95)
    assert same >= 90


def test_bounds_keep_their_levels_where_plain_ones_do_not():
    """A tenth of the time in bursts of 10; the p95 lies in the middle of a burst, at 3.5. Of 200 runs at most 24 may
    miss at 5 % by chance in less than 1 in 10,000; the plain bounds miss in a third."""
    rng = np.random.default_rng(1)
    missed = {"high": 0, "low": 0, "plain": 0}
    for _ in range(200):
        samples = bursts(rng, 472, 10, 0.1)
        bounds = dependent_quantile_bounds(samples, 0.95, low_level=0.95, high_level=0.95).bounds
        missed["high"] += bounds.high < 3.5
        missed["low"] += bounds.low > 3.5
        missed["plain"] += quantile_bounds(samples, 0.95, low_level=0.95, high_level=0.95).high < 3.5
    assert missed["high"] <= 24
    assert missed["low"] <= 24
    assert missed["plain"] >= 40


def test_few_long_interruptions_do_not_make_the_quantile_long():
    """The speed changes once, and thirty of 35,000 calls meet a host that does something else for 4 ms."""
    rng = np.random.default_rng(6)
    samples = np.where(np.arange(35_000) < 20_000, 5.6, 8.2) + rng.gamma(2, 0.2, 35_000)
    samples[rng.choice(35_000, 30, replace=False)] = 4000
    bounds = dependent_quantile_bounds(samples, 0.95, low_level=0.999, high_level=0.95).bounds
    assert 8 < bounds.estimate < bounds.high < 15


def test_rare_interruptions_do_not_hide_behind_a_wandering_speed():
    """The speed wanders, so that the calls about the p95 come together; those that are ten times slower do not, and the
    quantile is bounded by them."""
    rng = np.random.default_rng(3)
    samples = 1 + 0.1 * np.sin(np.arange(5000) / 1000) + 0.001 * rng.random(5000)
    samples[rng.random(5000) < 0.01] = 10 + rng.random()
    bounds = dependent_quantile_bounds(samples, 0.95, low_level=0.999, high_level=0.95).bounds
    assert 1 < bounds.estimate < 1.2
    assert bounds.estimate < bounds.high < 12


def two_speeds(n, duration, slow_share, rng):
    """Times of about 1, and about 2 in periods of a mean duration, as where another process shares a cache."""
    slow = np.empty(n, np.bool_)
    start, is_slow = 0, bool(rng.random() < slow_share)
    while start < n:
        mean = duration if is_slow else duration * (1 - slow_share) / slow_share
        stop = start + int(rng.geometric(1 / mean))
        slow[start:stop] = is_slow
        start, is_slow = stop, not is_slow
    return np.where(slow, 2, 1) * (1 + 0.05 * rng.standard_normal(n))


def test_two_speeds_and_one_burst_leave_an_upper_bound_near_the_quantile():
    rng = np.random.default_rng(0)
    times = np.where(np.arange(76_000) // 20_000 % 2, 9.4, 8.6) * (1 + 0.01 * rng.standard_normal(76_000))
    times[30_000 + rng.integers(0, 2000, 40)] += 3000
    found = dependent_quantile_bounds(times, 0.95, low_level=0.9995, high_level=0.975)
    assert found.block > 76_000 // 16  # too few blocks to rank one
    assert 9.5 < found.bounds.estimate < found.bounds.high < 9.8


def test_an_upper_bound_over_few_periods_of_low_speed_keeps_its_level():
    slow_share, misses = 0.3, 0
    quantile = 2 * (1 + 0.05 * float(norm.ppf(1 - 0.05 / slow_share)))
    for seed in range(100):
        times = two_speeds(20_000, 2000, slow_share, np.random.default_rng(seed))
        misses += dependent_quantile_bounds(times, 0.95, low_level=0.9995, high_level=0.975).bounds.high < quantile
    assert binomtest(misses, 100, 0.025, alternative="greater").pvalue > 0.01


def test_equal_samples_have_equal_bounds():
    found = dependent_quantile_bounds(np.ones(472), 0.95, low_level=0.999, high_level=0.95)
    assert (found.bounds.low, found.bounds.high, found.block) == (1, 1, 1)


@pytest.mark.parametrize("n", [1, 5, 59, 60])
def test_few_samples_are_bounded_as_far_as_they_reach(n):
    samples = np.random.default_rng(4).random(n)
    bounds = dependent_quantile_bounds(samples, 0.95, low_level=0.999, high_level=0.95).bounds
    assert (bounds.high == math.inf) == (n < 59)


def test_block_is_longer_than_the_dependence():
    rng = np.random.default_rng(5)
    assert dependence_block(rng.random(1000)) == 1
    assert dependence_block(np.repeat(rng.random(100), 10)) >= 16
    assert dependence_block(np.arange(1000)) == 0
