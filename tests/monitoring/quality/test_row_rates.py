"""Copies of rows and times that run backwards, against how many the profile had."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact

from pytest_modelserve.monitoring.decision import Blocks
from pytest_modelserve.monitoring.profile import RepeatedRows
from pytest_modelserve.monitoring.profiler import backward_rows, repeated_rows
from pytest_modelserve.monitoring.quality.rates import disorder_rate, duplicate_rate, is_ordered
from pytest_modelserve.monitoring.readers import read_table


def duplicates(now, then):
    """The rate of two pairs of copies and rows."""
    return duplicate_rate(RepeatedRows(*now), now[1], RepeatedRows(*then), then[1], Blocks())


def test_copies_are_held_against_those_of_the_profile_by_fishers_test():
    rate = duplicates((30, 2000), (50, 10_000))
    assert rate.distance == pytest.approx(0.01)
    expected = fisher_exact([[30, 1970], [50, 9950]], alternative="greater").pvalue
    assert rate.p_value == pytest.approx(expected, rel=1e-6)
    assert (rate.where, rate.key) == ("duplicate rows", "duplicate rows")
    assert rate.detail == "30 of 2,000 rows equal an earlier one, 0.5 % → 1.5 % (+1.0 points)"


def test_more_rows_than_the_profile_has_may_have_as_many_times_its_share():
    rate = duplicates((4000, 40_000), (250, 10_000))
    assert rate.distance == pytest.approx(0)
    assert rate.p_value > 0.3
    assert duplicates((4000, 40_000), (0, 10_000)).p_value < 1e-9


@pytest.mark.parametrize(("rows", "profile_rows"), [(300, 1000), (3000, 1000)])
@pytest.mark.parametrize("cells", [30, 1000, 30_000])
def test_unchanged_rows_of_few_or_many_kinds_alarm_no_more_often_than_alpha(rows, profile_rows, cells):
    rng = np.random.default_rng(0)

    def copies(size):
        drawn = np.unique(rng.integers(0, cells, size)).size
        return (size - drawn, size)

    chances = [duplicates(copies(rows), copies(profile_rows)).p_value for _ in range(200)]
    assert np.mean(np.array(chances) <= 0.05) <= 0.05


def test_one_kind_of_row_that_makes_half_of_all_is_no_alarm():
    rng = np.random.default_rng(1)

    def copies(size):
        table = read_table({"x": np.where(rng.random(size) < 0.5, 0.0, rng.random(size))})
        return repeated_rows(table.columns).rows, size

    chances = [duplicates(copies(500), copies(2000)).p_value for _ in range(150)]
    assert np.mean(np.array(chances) <= 0.05) <= 0.05


def test_shards_whose_copies_were_counted_apart_count_as_rows_of_one_shard():
    merged = RepeatedRows(5, 1000).merged(RepeatedRows(5, 1000))
    rate = duplicate_rate(RepeatedRows(20, 2000), 2000, merged, 2000, Blocks())
    assert rate.distance == pytest.approx(20 / 2000 - 10 / 1000)


def test_times_earlier_than_the_one_before_are_counted_and_null_left_out():
    assert backward_rows(np.array([1.0, 2.0, 2.0, 1.5, np.nan, 3.0, np.nan, 2.9, np.nan])) == 2
    assert backward_rows(np.array([np.nan])) == 0


@pytest.mark.parametrize(("backward", "keeps"), [(0, True), (250, True), (251, False)])
def test_times_keep_an_order_while_a_quarter_at_most_run_backwards(backward, keeps):
    assert is_ordered(backward, 1000) is keeps


def test_disorder_is_held_against_that_of_the_profile_by_fishers_test():
    rate = disorder_rate("seen", 60, 2000, 100, 10_000, Blocks())
    assert rate.distance == pytest.approx(0.02)
    expected = fisher_exact([[60, 1940], [100, 9900]], alternative="greater").pvalue
    assert rate.p_value == pytest.approx(expected, rel=1e-6)
    assert rate.detail == "'seen' earlier than the row before in 1.0 % → 3.0 % (+2.0 points)"


@pytest.mark.parametrize("jitter", [0.05, 1.0])
def test_logs_as_jittery_as_the_profile_alarm_no_more_often_than_alpha(jitter):
    rng = np.random.default_rng(2)

    def log(rows):
        return backward_rows(np.cumsum(rng.exponential(size=rows)) + rng.normal(0, jitter, rows)), rows

    chances = [disorder_rate("seen", *log(300), *log(1000), Blocks()).p_value for _ in range(200)]
    assert np.mean(np.array(chances) <= 0.05) <= 0.05
