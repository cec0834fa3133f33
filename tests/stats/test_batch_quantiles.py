"""Bounds of quantiles of sojourn times in queues, whose neighbors depend on each other."""

import math

import numpy as np
import pytest

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.batch_quantiles import batch_quantile_bounds, serial_quantile_bounds
from pytest_modelserve.stats.quantiles import quantile_bounds

LEVELS = {"low_level": 0.999, "high_level": 0.95}
P95_MM1 = -math.log(0.05) / 0.2
"""Sojourn times of an M/M/1 queue at load 0.8 are exponential with rate 1 - 0.8."""


def sojourn_times(n, rng, *, load=0.8, warm_up=2_000):
    """Of an M/M/1 queue with a mean service time of 1, by Lindley's recursion."""
    gaps, service = rng.exponential(1 / load, n + warm_up), rng.exponential(1.0, n + warm_up)
    steps = np.concatenate([[0.0], np.cumsum(service[:-1] - gaps[1:])])
    return (steps - np.minimum.accumulate(steps) + service)[warm_up:]


def test_bounds_of_a_queue_hold_their_level_where_independent_ones_do_not():
    rng = np.random.default_rng(1)
    found, independent = [], []
    for _ in range(200):
        times = sojourn_times(4_000, rng)
        found.append(serial_quantile_bounds(times, 0.95, **LEVELS))
        independent.append(quantile_bounds(times, 0.95, **LEVELS))
    assert sum(each.high < P95_MM1 for each in found) <= 20  # 10 are expected
    assert sum(each.low > P95_MM1 for each in found) <= 2
    assert sum(each.high < P95_MM1 for each in independent) > 60


def test_estimate_is_that_of_the_order_statistics():
    times = sojourn_times(5_000, np.random.default_rng(2))
    expected = quantile_bounds(times, 0.95, **LEVELS).estimate
    assert serial_quantile_bounds(times, 0.95, **LEVELS).estimate == expected
    assert batch_quantile_bounds(np.array_split(times, 9), 0.95, **LEVELS).estimate == expected


def test_independent_samples_get_finite_bounds_that_are_not_much_wider():
    values = np.random.default_rng(3).exponential(size=4_000)
    plain, found = quantile_bounds(values, 0.95, **LEVELS), serial_quantile_bounds(values, 0.95, **LEVELS)
    assert found.low < plain.estimate < found.high < math.inf
    assert found.high - found.estimate < 3 * (plain.high - plain.estimate)


def test_few_samples_have_no_high_end_and_failed_ones_make_it_infinite():
    assert serial_quantile_bounds(np.arange(50.0), 0.95, **LEVELS).high == math.inf
    values = np.where(np.arange(1_000) % 10 == 0, math.inf, 1.0)  # a tenth has no answer
    found = serial_quantile_bounds(values, 0.95, **LEVELS)
    assert (found.estimate, found.high) == (math.inf, math.inf)


def test_fewer_than_four_batches_have_no_ends():
    found = batch_quantile_bounds([np.arange(500.0), np.arange(500.0), np.arange(500.0), []], 0.5, **LEVELS)
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_batches_of_different_sizes_count_by_their_samples():
    values = np.random.default_rng(4).permutation(10_000).astype(float)
    parts = np.split(values, [100, 1_000, 3_000, 3_500, 6_000, 8_000, 9_900])
    found = batch_quantile_bounds(parts, 0.9, **LEVELS)
    assert 8_000 < found.low < found.estimate == 8_999 < found.high < 9_800


@pytest.mark.parametrize(
    ("samples", "message"),
    [([], "must not be empty"), ([1.0, math.nan], "must not be NaN"), ([[1.0]], "one axis|shape|axes")],
)
def test_invalid_samples_are_named(samples, message):
    with pytest.raises(UsageError, match=message):
        serial_quantile_bounds(samples, 0.95, **LEVELS)


def test_empty_batches_alone_are_an_error():
    with pytest.raises(UsageError, match="batches must hold samples"):
        batch_quantile_bounds([[], []], 0.95, **LEVELS)
    with pytest.raises(UsageError, match="must not be NaN"):
        batch_quantile_bounds([[1.0], [math.nan]] * 4, 0.95, **LEVELS)
