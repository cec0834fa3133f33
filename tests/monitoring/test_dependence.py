"""Dependence of neighboring rows: estimated from every kind of column, at two scales, and merged."""

import itertools

import numpy as np
import pytest
from scipy.signal import lfilter

from pytest_modelserve.errors import UsageError
from pytest_modelserve.monitoring.columns import as_column
from pytest_modelserve.monitoring.dependence import Dependence, estimate_dependence


def chain(seed, rows, coefficient):
    noise = np.random.default_rng(seed).standard_normal(rows + 200)
    return lfilter([1.0], [1.0, -coefficient], noise)[200:]


def inflation(values):
    return estimate_dependence(as_column("x", values)).inflation


@pytest.mark.parametrize("kind", ["float", "text", "boolean", "integer"])
def test_dependence_shows_in_every_kind_of_column_and_is_gone_after_shuffling(kind):
    values = chain(0, 2000, 0.7)
    values = {
        "float": values,
        "text": np.where(values > 0, "day", "night"),
        "boolean": values > 0,
        "integer": np.floor(values).astype(int),
    }[kind]
    found = estimate_dependence(as_column("x", values))
    # The indicator of a half of a Gaussian chain has the autocorrelations 2/π·asin(0.7^lag): in sum, an inflation of 4.
    assert found.inflation == pytest.approx(4.0, rel=0.25)
    assert 10 < found.block < 40
    shuffled = np.random.default_rng(1).permutation(values)
    alone = estimate_dependence(as_column("x", shuffled))
    assert (alone.block, alone.inflation) == (1.0, 1.0)
    assert abs(alone.z_score) < 3 < 20 < found.z_score


@pytest.mark.parametrize("rows", [20, 100, 1000, 5000])
def test_the_correlation_of_independent_rows_is_significant_as_rarely_as_it_says(rows):
    rng = np.random.default_rng(2)
    found = [estimate_dependence(as_column("x", rng.normal(size=rows))) for _ in range(300)]
    assert np.mean([dependence.z_score > 2.33 for dependence in found]) <= 0.03  # 0.01 are expected


def test_a_slow_change_below_noise_counts_in_a_long_column():
    rng = np.random.default_rng(3)
    season = np.sin(2 * np.pi * np.arange(20_000) / 20_000)
    assert inflation(0.6 * season + rng.normal(size=20_000)) > 20  # the first autocorrelation is 0.15


def test_a_short_memory_is_seen_between_rows_that_are_too_far_apart_to_show_it():
    assert inflation(chain(4, 300_000, 0.7)) == pytest.approx(4.0, rel=0.3)


def test_the_end_of_a_long_column_is_read():
    values = np.zeros(100_000)
    values[-300:] = np.arange(300)
    assert inflation(values) > 1
    assert inflation(np.zeros(100_000)) == 1


def test_missing_values_lie_between_rows():
    values = chain(5, 5000, 0.9)
    gaps = np.where(np.random.default_rng(5).random(5000) < 0.9, np.nan, values)
    assert 1 < inflation(gaps) < inflation(values) / 2


def test_negative_dependence_counts_as_none():
    assert inflation(chain(6, 2000, -0.7)) == 1


def test_dependence_of_parts_merges_by_rows_and_in_any_order():
    parts = [Dependence(300, 200, 0.3, 7.25, 1.7), Dependence(100, 90, 0.1, 2.0, 10 / 3), Dependence(50), Dependence()]
    merged = {one.merged(two).merged(three).merged(four) for one, two, three, four in itertools.permutations(parts)}
    [found] = merged
    assert (found.rows, found.pairs, found.block) == (450, 290, 7.25)
    assert found.inflation == pytest.approx((300 * 1.7 + 100 * 10 / 3 + 50) / 450)
    assert found.correlation == pytest.approx((200 * 0.3 + 90 * 0.1) / 290)


@pytest.mark.parametrize("values", [(-1, -1), (5, 6), (5, 5, 2.0), (5, 5, 0.0, 0.5), (5, 5, 0.0, 1.0, float("nan"))])
def test_values_out_of_range_are_refused(values):
    with pytest.raises(UsageError, match="a dependence needs"):
        Dependence(*values)
