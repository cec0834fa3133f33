"""Copies of rows, counted by hashes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pytest_modelserve.monitoring.profile import RepeatedRows
from pytest_modelserve.monitoring.profiler import repeated_rows
from pytest_modelserve.monitoring.readers import read_table


def count(data):
    return repeated_rows(read_table(data).columns).rows


def oracle(data):
    """Rows that a set has seen, null equal to null."""
    rows = list(zip(*(np.asarray(values).tolist() for values in data.values()), strict=True))
    return len(rows) - len({tuple("null" if value is None or value != value else value for value in r) for r in rows})


@pytest.mark.parametrize("seed", range(6))
def test_copies_are_as_many_as_a_set_of_tuples_finds(seed):
    rng = np.random.default_rng(seed)
    data = {
        "small": rng.integers(0, 3, 3000),
        "float": rng.integers(-2, 3, 3000) / 2,
        "flag": rng.random(3000) < 0.5,
        "nulls": np.where(rng.random(3000) < 0.3, np.nan, rng.integers(0, 4, 3000)),
        "text": rng.choice(np.array(["a", "b", None], dtype=object), 3000),
        "single": rng.integers(0, 2, 3000).astype(np.float32),
    }
    assert 0 < count(data) == oracle(data) < 3000


def test_rows_that_one_column_tells_apart_are_no_copies():
    x = np.random.default_rng(0).normal(size=5000)
    assert count({"x": x, "same": np.zeros(5000)}) == 0
    assert count({"same": np.zeros(5000), "x": x}) == 0


def test_nulls_of_a_column_that_tells_other_rows_apart_are_equal():
    x = np.random.default_rng(0).normal(size=5000)
    x[[3, 900]] = np.nan
    assert count({"x": x, "same": np.zeros(5000)}) == 1


def test_a_copy_differs_in_no_column():
    x = np.arange(100.0)
    x[7] = x[3]
    y = np.zeros(100)
    assert count({"x": x, "y": y}) == 1
    y[7] = 1
    assert count({"x": x, "y": y}) == 0


def test_all_rows_the_same_leave_one_that_is_no_copy():
    assert count({"x": [5.0] * 40, "y": ["a"] * 40}) == 39


def test_text_alone_is_compared():
    assert count({"x": ["a", "b", "a", None, None, ""]}) == 2


def test_zeros_of_either_sign_are_equal_and_so_are_all_nan():
    nan = np.array([0x7FF8000000000000, 0xFFF8000000000000, 0x7FF8000000000001], dtype=np.uint64).view(np.float64)
    assert count({"x": np.concatenate(([0.0, -0.0, 1.0], nan))}) == 3


def test_large_whole_numbers_are_told_apart_beyond_what_doubles_hold():
    assert count({"id": 2**60 + np.arange(1000)}) == 0


def test_a_million_rows_of_few_values_hash_without_a_collision():
    # 10⁶ different rows: digits of the row's number in columns of small numbers, the worst case for a weak hash.
    numbers = np.arange(1_000_000)
    assert count({f"digit {place}": (numbers // 10**place % 10).astype(float) for place in range(6)}) == 0
    assert count({f"bit {place}": (numbers >> place) & 1 for place in range(20)}) == 0


def test_merged_counts_add_up_among_the_rows_of_the_smaller_part():
    assert RepeatedRows(3, 100).merged(RepeatedRows(4, 60)) == RepeatedRows(7, 60)
    assert RepeatedRows(**dataclasses.asdict(RepeatedRows(3, 100))) == RepeatedRows(3, 100)
