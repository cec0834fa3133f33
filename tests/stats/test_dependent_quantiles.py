"""Quantiles of dependent samples, held against processes whose quantile is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import quantile_bounds
from pytest_modelserve.stats.quantiles import dependence_block, dependent_quantile_bounds


def bursts(rng: np.random.Generator, n: int, length: float, share: float) -> np.ndarray:
    """1 to 2, and in bursts of mean `length` that take `share` of the time 3 to 4; begun in the steady state."""
    leave = 1 / length
    enter = leave * share / (1 - share)
    states, inside = np.empty(n), rng.random() < share
    for i, u in enumerate(rng.random(n)):
        inside = u >= leave if inside else u < enter
        states[i] = inside
    return 1 + 2 * states + rng.random(n)


def test_independent_samples_have_the_plain_bounds() -> None:
    rng = np.random.default_rng(0)
    same = 0
    for _ in range(100):
        samples = rng.lognormal(size=472)
        found = dependent_quantile_bounds(samples, 0.95, low_level=0.999, high_level=0.95)
        same += found.bounds == quantile_bounds(samples, 0.95, low_level=0.999, high_level=0.95)
    assert same >= 90


def test_bounds_keep_their_levels_where_plain_ones_do_not() -> None:
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


def test_long_samples_of_dependent_values_have_both_bounds() -> None:
    rng = np.random.default_rng(2)
    found = dependent_quantile_bounds(bursts(rng, 20_000, 10, 0.2), 0.95, low_level=0.999, high_level=0.95)
    assert found.block != 1
    assert 3 < found.bounds.low < 3.75 < found.bounds.high < 4


def test_few_samples_of_a_drift_have_no_upper_bound() -> None:
    bounds = dependent_quantile_bounds(np.linspace(0, 1, 472), 0.95, low_level=0.999, high_level=0.95).bounds
    assert bounds.high == math.inf


def test_few_long_interruptions_do_not_make_the_quantile_long() -> None:
    """The speed changes once, and thirty of 35,000 calls meet a host that does something else for 4 ms."""
    rng = np.random.default_rng(6)
    samples = np.where(np.arange(35_000) < 20_000, 5.6, 8.2) + rng.gamma(2, 0.2, 35_000)
    samples[rng.choice(35_000, 30, replace=False)] = 4000
    bounds = dependent_quantile_bounds(samples, 0.95, low_level=0.999, high_level=0.95).bounds
    assert 8 < bounds.estimate < bounds.high < 15


def test_rare_interruptions_do_not_hide_behind_a_wandering_speed() -> None:
    """The speed wanders, so that the calls about the p95 come together; those that are ten times slower do not, and the
    quantile is bounded by them."""
    rng = np.random.default_rng(3)
    samples = 1 + 0.1 * np.sin(np.arange(5000) / 1000) + 0.001 * rng.random(5000)
    samples[rng.random(5000) < 0.01] = 10 + rng.random()
    bounds = dependent_quantile_bounds(samples, 0.95, low_level=0.999, high_level=0.95).bounds
    assert 1 < bounds.estimate < 1.2
    assert bounds.estimate < bounds.high < 12


def test_equal_samples_have_equal_bounds() -> None:
    found = dependent_quantile_bounds(np.ones(472), 0.95, low_level=0.999, high_level=0.95)
    assert (found.bounds.low, found.bounds.high, found.block) == (1, 1, 1)


@pytest.mark.parametrize("n", [1, 5, 59, 60])
def test_few_samples_are_bounded_as_far_as_they_reach(n: int) -> None:
    samples = np.random.default_rng(4).random(n)
    bounds = dependent_quantile_bounds(samples, 0.95, low_level=0.999, high_level=0.95).bounds
    assert (bounds.high == math.inf) == (n < 59)


def test_block_is_longer_than_the_dependence() -> None:
    rng = np.random.default_rng(5)
    assert dependence_block(rng.random(1000)) == 1
    assert dependence_block(np.repeat(rng.random(100), 10)) >= 16
    assert dependence_block(np.arange(1000)) == 0


def test_nothing_to_order_is_refused() -> None:
    with pytest.raises(UsageError, match="a quantile of no samples"):
        dependent_quantile_bounds([], 0.95, low_level=0.999, high_level=0.95)
