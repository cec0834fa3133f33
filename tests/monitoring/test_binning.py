"""Counting between edges: the table of cells gives the very counts of a search."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_modelserve.monitoring.histogram import (
    CHUNK,
    MAX_CELLS,
    CellTable,
    EvenCells,
    RelativeCells,
    choose_edges,
    count_values,
)

EVEN = np.array([-2.625, -0.625, 0.375, 0.875, 4.375])  # odd multiples, 3 mod 4, of 1/8
RELATIVE = np.array([0.001953125, 0.25, 0.28125, 7.0, 1024.0])
SIGNALLING = np.array([0x7FF0000000000001], dtype=np.uint64).view(np.float64)[0]
NEITHER = np.array([-1.0, 0.1, 0.3, 1e9])


def searched(values, edges):
    known = values[~np.isnan(values)]
    return np.bincount(np.searchsorted(edges, known, side="right"), minlength=len(edges) + 1)


def hard_values(edges):
    """The edges, their neighbours among doubles, everything special, and numbers around them."""
    special = [0.0, -0.0, math.inf, -math.inf, 5e-324, -5e-324, 1.7e308, -1.7e308]
    near = [np.nextafter(edges, -math.inf), edges, np.nextafter(edges, math.inf), special]
    spread = np.random.default_rng(0).normal(0, np.abs(edges).max() / 3, 5000)
    return np.concatenate([*near, spread])


@pytest.mark.parametrize(
    ("edges", "cells"),
    [(EVEN, EvenCells), (RELATIVE, RelativeCells), (NEITHER, None)],
    ids=["even", "relative", "none"],
)
def test_counts_are_those_of_a_search(edges, cells):
    table = CellTable.of(edges)
    assert (None if table is None else type(table.cells)) is cells
    values = hard_values(edges)
    np.testing.assert_array_equal(count_values(values, edges), searched(values, edges))


@pytest.mark.parametrize("edges", [EVEN, RELATIVE, NEITHER], ids=["even", "relative", "none"])
@pytest.mark.parametrize("nan", [math.nan, -math.nan, SIGNALLING], ids=["nan", "negative nan", "signalling nan"])
def test_nan_is_in_no_bin_wherever_it_stands(edges, nan):
    values = hard_values(edges)
    for place in (0, len(values) // 2, len(values)):
        holed = np.insert(values, place, np.array([nan, nan]))
        np.testing.assert_array_equal(count_values(holed, edges), searched(values, edges))
    assert count_values(np.full(3, nan), edges).sum() == 0


@pytest.mark.parametrize("scale", [2.0**-900, 2.0**-250, 1e-30, 1.0, 1e30, 2.0**500, 2.0**850])
def test_nan_and_extremes_are_counted_rightly_at_every_scale(scale):
    rng = np.random.default_rng(1)
    for sample in (rng.normal(size=600), rng.lognormal(0, 4, 600)):
        edges = choose_edges(np.sort(sample * scale), bins=256)
        values = np.concatenate([hard_values(edges), [math.nan, -math.nan]])
        np.testing.assert_array_equal(count_values(values, edges), searched(values, edges))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int64", "uint64", "bool", "longdouble"])
def test_numbers_of_any_kind_are_counted_as_doubles(dtype):
    values = np.random.default_rng(2).normal(1, 3, 1000).clip(0 if dtype[0] in "ub" else -9, 9).astype(dtype)
    for edges in (EVEN, RELATIVE, NEITHER):
        np.testing.assert_array_equal(count_values(values, edges), searched(values.astype(float), edges))


def test_chunks_add_up_and_strided_columns_count_alike():
    values = np.random.default_rng(3).normal(size=(CHUNK + 100, 2))
    assert len(values) > CHUNK
    np.testing.assert_array_equal(count_values(values[:, 1], EVEN), searched(values[:, 1], EVEN))
    np.testing.assert_array_equal(count_values(values[:, 1], NEITHER), searched(values[:, 1], NEITHER))


def test_no_values_and_no_edges():
    np.testing.assert_array_equal(count_values(np.array([]), EVEN), np.zeros(6))
    np.testing.assert_array_equal(count_values(np.array([1.0, 2.0]), []), [2])


def test_a_table_that_would_be_too_large_is_not_laid():
    far = np.array([0.375, 0.375 + MAX_CELLS])
    assert EvenCells.of(far) is not None
    assert CellTable.of(np.concatenate([-far[::-1] - 0.25, far])) is None
    values = np.array([-1e6, 0.0, 1e6])
    np.testing.assert_array_equal(count_values(values, far), [2, 0, 1])


def test_the_values_themselves_are_left_alone():
    values = np.array([0.1, 5.0, math.nan])
    kept = values.copy()
    count_values(values, EVEN)
    np.testing.assert_array_equal(values, kept)


def test_edges_too_far_apart_for_even_cells_are_counted_all_the_same() -> None:
    """Found by a search: dividing the largest edge by the grid of the smallest overflowed."""
    edges = [0.4925, 6.652801031782399e291]
    assert count_values(np.array([0.0, 0.985, 7e291]), edges).tolist() == [1, 1, 1]
