"""Block length against figures of arch, and variance inflation against chains whose inflation is known."""

import numpy as np
import pytest
from scipy.signal import lfilter

from pytest_modelserve.stats import optimal_block_length, short_memory, variance_inflation


def chain(seed, n, coefficient):
    """An autoregression that starts with its first noise."""
    return lfilter([1.0], [1.0, -coefficient], np.random.default_rng(seed).standard_normal(n))


SERIES = {
    "independent, 200": chain(0, 200, 0.0),
    "autoregression 0.7, 200": chain(1, 200, 0.7),
    "autoregression 0.7, 1,000": chain(2, 1000, 0.7),
    "autoregression 0.9, 5,000": chain(3, 5000, 0.9),
    "autoregression -0.5, 500": chain(4, 500, -0.5),
    "random walk, 300": chain(5, 300, 1.0),
    "two levels, 379": np.repeat([0.0, 1.0], [212, 167]),
    "season of 52, 1,040": np.sin(2 * np.pi * np.arange(1040) / 52) + 0.5 * chain(6, 1040, 0.0),
    "square, 60": np.tile([0.0, 0.0, 1.0, 1.0], 15),
}


@pytest.mark.parametrize(
    ("name", "stationary", "circular"),
    [  # arch 8.0.0, arch.bootstrap.optimal_block_length(series)
        ("independent, 200", 1.016556, 1.163666),
        ("autoregression 0.7, 200", 5.293267, 6.059278),
        ("autoregression 0.7, 1,000", 12.363306, 14.152453),
        ("autoregression 0.9, 5,000", 54.822560, 62.756165),
        ("autoregression -0.5, 500", 8.832368, 10.110538),
        ("random walk, 300", 26.742694, 30.612743),
        ("two levels, 379", 32.231282, 36.895608),
        ("season of 52, 1,040", 97.0, 97.0),
        ("square, 60", 20.0, 20.0),
    ],
)
def test_lengths_are_those_of_an_independent_implementation(name, stationary, circular):
    found = optimal_block_length(SERIES[name])
    assert (found.stationary, found.circular) == pytest.approx((stationary, circular), abs=1e-6)
    assert short_memory(SERIES[name]).significant is (name != "independent, 200")


def test_lengths_of_many_chains_scatter_around_the_optimum_of_their_autocovariances():
    n, coefficient = 2000, 0.7
    lags = np.arange(1, 200)
    level, slope = 1 + 2 * (coefficient**lags).sum(), 2 * (lags * coefficient**lags).sum()
    optimum = (3 / 2 * (slope / level) ** 2 * n) ** (1 / 3)
    found = [optimal_block_length(chain(seed, n, coefficient)).circular for seed in range(200)]
    assert np.median(found) == pytest.approx(optimum, rel=0.15)


@pytest.mark.parametrize("coefficient", [0.3, 0.7, 0.9])
def test_inflation_of_a_chain_is_that_of_the_sum_of_its_autocorrelations(coefficient):
    found = []
    for seed in range(100):
        values = chain(seed, 5000, coefficient)
        found.append(variance_inflation(values, optimal_block_length(values).bandwidth))
    assert np.mean(found) == pytest.approx((1 + coefficient) / (1 - coefficient), rel=0.12)


def test_independent_values_are_rarely_called_dependent():
    rng = np.random.default_rng(7)
    assert np.mean([short_memory(rng.normal(size=500)).significant for _ in range(1000)]) <= 0.01


def test_the_first_autocorrelation_is_that_of_numpy():
    values = SERIES["autoregression 0.7, 1,000"]
    assert short_memory(values).correlation == pytest.approx(np.corrcoef(values[1:], values[:-1])[0, 1], abs=0.005)


def test_missing_values_thin_a_chain_out_and_leave_less_inflation():
    values, rng = chain(8, 20_000, 0.9), np.random.default_rng(8)
    gaps = np.where(rng.random(20_000) < 0.9, np.nan, values)
    found = variance_inflation(gaps, optimal_block_length(gaps).bandwidth)
    # A tenth of the rows is known, so that each lag has a tenth of its pairs: 1 + 0.1·(19 − 1).
    assert found == pytest.approx(2.8, rel=0.25)


def test_columns_of_indicators_add_their_autocovariances():
    values = chain(9, 3000, 0.7) > 0
    one = optimal_block_length(values)
    both = optimal_block_length(np.column_stack((values, ~values)))
    assert (both.circular, both.bandwidth) == (pytest.approx(one.circular), one.bandwidth)
    assert variance_inflation(np.column_stack((values, ~values)), 10) == pytest.approx(variance_inflation(values, 10))


@pytest.mark.parametrize("values", [np.arange(15.0), np.full(100, 0.1), []], ids=["few", "equal", "none"])
def test_values_that_say_nothing_have_blocks_of_one(values):
    found = optimal_block_length(values)
    assert (found.circular, found.stationary, found.bandwidth) == (1.0, 1.0, 0)
    assert not short_memory(values).significant


@pytest.mark.parametrize("scale", [1e-200, 1e150])
def test_lengths_have_no_unit(scale):
    values = SERIES["autoregression 0.7, 200"]
    assert optimal_block_length(scale * values).circular == pytest.approx(optimal_block_length(values).circular)
