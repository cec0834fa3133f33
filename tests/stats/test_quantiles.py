from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, quantile_test

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import median_bounds, quantile_bounds, samples_for_quantile


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


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng: rng.exponential(size=150), -math.log(0.1)),
        (lambda rng: rng.geometric(0.2, size=150), math.ceil(math.log(0.1) / math.log(0.8))),
    ],
    ids=["skewed", "tied"],
)
def test_simulated_coverage_on_skewed_and_on_tied_samples(draw, truth):
    rng = np.random.default_rng(4)
    bounds = [quantile_bounds(draw(rng), 0.9, low_level=0.95, high_level=0.95) for _ in range(3000)]
    assert np.mean([b.low > truth for b in bounds]) < 0.066  # 4 standard errors of 3,000 draws above 5 %
    assert np.mean([b.high < truth for b in bounds]) < 0.066


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


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "a quantile of no samples says nothing: measure at least one"),
        ([1.0, math.nan, math.nan], "2 of 3 samples are NaN and have no place in an order: leave them out"),
        ([[1.0, 2.0]], "samples are numbers on one axis, not an array of shape (1, 2)"),
        (["fast"], "samples are numbers on one axis, not list of something else"),
    ],
)
def test_samples_without_an_order_are_refused(samples, message):
    with pytest.raises(UsageError) as caught:
        quantile_bounds(samples, 0.5, low_level=0.95, high_level=0.95)
    assert str(caught.value) == message


@pytest.mark.parametrize("quantile", [0.0, 1.0, 95, math.nan])
def test_an_impossible_quantile_is_refused(quantile):
    message = f"a quantile is a share above 0 and below 1 (0.95, say), not {quantile}"
    for call in (lambda q, **levels: quantile_bounds([1.0], q, **levels), samples_for_quantile):
        with pytest.raises(UsageError) as caught:
            call(quantile, low_level=0.95, high_level=0.95)
        assert str(caught.value) == message
