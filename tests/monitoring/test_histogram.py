"""Edges, counts between them, and exact sums."""

import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import ks_2samp

from pytest_modelserve.monitoring.histogram import (
    CHUNK,
    MAX_CELLS,
    CellTable,
    EvenCells,
    RelativeCells,
    added,
    choose_edges,
    count_values,
    exact_sums,
    moments,
)
from pytest_modelserve.stats.two_sample_tests import distribution_distance

EVEN = np.array([-2.625, -0.625, 0.375, 0.875, 4.375])  # odd multiples, 3 mod 4, of 1/8
RELATIVE = np.array([0.001953125, 0.25, 0.28125, 7.0, 1024.0])
SIGNALING = np.array([0x7FF0000000000001], dtype=np.uint64).view(np.float64)[0]
NEITHER = np.array([-1.0, 0.1, 0.3, 1e9])


def searched(values, edges):
    known = values[~np.isnan(values)]
    return np.bincount(np.searchsorted(edges, known, side="right"), minlength=len(edges) + 1)


def hard_values(edges):
    """The edges, their neighbors among doubles, everything special, and numbers around them."""
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
@pytest.mark.parametrize("nan", [math.nan, -math.nan, SIGNALING], ids=["nan", "negative nan", "signaling nan"])
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


def test_edges_too_distant_for_even_cells_are_counted_correctly():
    """Found by a search: dividing the largest edge by the grid of the smallest overflowed."""
    edges = [0.4925, 6.652801031782399e291]
    assert count_values(np.array([0.0, 0.985, 7e291]), edges).tolist() == [1, 1, 1]


SHAPES = {
    "normal": lambda rng, n, s: rng.normal(s, 1, n),
    "uniform": lambda rng, n, s: rng.random(n) + 0.3 * s,
    "exponential": lambda rng, n, s: rng.exponential(1 + s, n),
    "Cauchy": lambda rng, n, s: rng.standard_cauchy(n) + s,
    "lognormal × 1e6": lambda rng, n, s: 1e6 * rng.lognormal(s, 2, n),
    "lognormal, 5 decades": lambda rng, n, s: rng.lognormal(5 * s, 5, n),
    "Student t, half a degree": lambda rng, n, s: rng.standard_t(0.5, n) * (1 + s),
    "small whole numbers": lambda rng, n, s: rng.poisson(4 + s, n).astype(float),
    "large whole numbers": lambda rng, n, s: rng.poisson(4000 * (1 + s / 50), n).astype(float),
    "rounded": lambda rng, n, s: np.round(rng.normal(s, 1, n), 1),
    "a third zeros": lambda rng, n, s: np.where(rng.random(n) < 0.3, 0, rng.lognormal(s, 2, n)),
    "clipped": lambda rng, n, s: np.clip(rng.normal(s, 1, n), -1, 1),
    "far from zero": lambda rng, n, s: 1e9 + rng.normal(s, 1, n),
    "near the smallest doubles": lambda rng, n, s: 1e-300 * rng.normal(s, 1, n),
    "near the largest doubles": lambda rng, n, s: 1e300 * rng.normal(s, 1, n),
    "two far apart": lambda rng, n, s: np.where(rng.random(n) < 0.5, 0, 1000) + 1e-3 * rng.normal(s, 1, n),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_distance_at_the_edges_is_below_that_of_the_rows_and_near_it(shape):
    rng = np.random.default_rng(0)
    then = np.sort(SHAPES[shape](rng, 10_000, 0.0))
    edges = choose_edges(then, bins=256)
    for shift in (0.0, 0.1, 0.5):
        now = SHAPES[shape](rng, 2000, shift)
        ours = distribution_distance(count_values(then, edges), count_values(now, edges))
        exact = ks_2samp(then, now, method="asymp").statistic
        assert exact - 0.004 <= ours <= exact + 1e-12


@pytest.mark.parametrize("shape", ["small whole numbers", "rounded"])
def test_distance_of_few_distinct_values_is_exact(shape):
    rng = np.random.default_rng(1)
    then, now = np.sort(SHAPES[shape](rng, 3000, 0.0)), SHAPES[shape](rng, 1000, 0.4)
    edges = choose_edges(then, bins=256)
    ours = distribution_distance(count_values(then, edges), count_values(now, edges))
    assert ours == pytest.approx(ks_2samp(then, now).statistic, abs=1e-12)


@pytest.mark.parametrize(
    ("shape", "cells"),
    [
        ("normal", EvenCells),
        ("large whole numbers", EvenCells),
        ("far from zero", EvenCells),
        ("lognormal × 1e6", RelativeCells),
        ("lognormal, 5 decades", RelativeCells),
    ],
)
def test_edges_of_common_shapes_lie_on_a_grid(shape, cells):
    table = CellTable.of(choose_edges(np.sort(SHAPES[shape](np.random.default_rng(2), 10_000, 0.0)), bins=256))
    assert table is not None
    assert type(table.cells) is cells


@pytest.mark.parametrize("bins", [2, 16, 256])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_bin_is_much_fuller_than_its_share_but_for_one_value(shape, bins):
    then = np.sort(SHAPES[shape](np.random.default_rng(3), 10_000, 0.0))
    edges = choose_edges(then, bins=bins)
    assert len(edges) <= 2 * bins
    assert (np.diff(edges) > 0).all()
    bin_of = np.searchsorted(edges, then, side="right")
    for full in np.flatnonzero(np.bincount(bin_of) > 3 * 10_000 / bins):
        _, rows = np.unique(then[bin_of == full], return_counts=True)
        assert rows.sum() - rows.max() <= 10_000 / bins


@pytest.mark.parametrize("values", [[5.0], [0.0], [-3.0, -3.0], [1e-12]])
def test_a_constant_has_an_edge_on_either_side(values):
    edges = choose_edges(np.array(values), bins=256)
    below, above = values[0] - abs(values[0]) / 1000 - 1e-100, values[0] + abs(values[0]) / 1000 + 1e-100
    np.testing.assert_array_equal(count_values(np.array([below, values[0], above]), edges), [1, 1, 1])


def test_values_beyond_the_range_of_few_values_have_their_own_bins():
    edges = choose_edges(np.sort(np.arange(400) % 4).astype(float), bins=256)
    np.testing.assert_array_equal(count_values(np.array([-1.0, 0, 3, 4]), edges), [1, 1, 0, 0, 1, 1])


def test_values_that_were_rounded_to_float32_stay_in_their_bins():
    then = np.sort(np.random.default_rng(4).choice([0.1, 0.3, 0.7, 0.9], 1000))
    edges = choose_edges(then, bins=256)
    np.testing.assert_array_equal(count_values(then, edges), count_values(then.astype(np.float32), edges))


@pytest.mark.parametrize("ends", [[0.0, 1.2e308], [-1.2e308, 1.2e308], [-1e308, 5.0, 1.2e308]])
def test_values_near_the_largest_double_have_their_own_bins(ends):
    edges = choose_edges(np.array(ends), bins=4)
    assert np.isfinite(edges).all()
    assert np.unique(np.searchsorted(edges, ends, side="right")).size == len(ends)


DOUBLES = st.floats(allow_nan=False, allow_infinity=False)
LISTS = arrays(np.float64, st.integers(0, 40), elements=DOUBLES)


def fractions(sums):
    return tuple(mantissa * Fraction(2) ** exponent for mantissa, exponent in (sums[:2], sums[2:]))


@given(values=LISTS)
def test_sums_are_those_of_fractions(values):
    exact = [Fraction(value) for value in values.tolist()]
    assert fractions(exact_sums(values)) == (sum(exact), sum(value * value for value in exact))


@given(values=LISTS, cut=st.integers(0, 40))
def test_sums_of_parts_add_up_in_any_order(values, cut):
    one, other = exact_sums(values[:cut][::-1].copy()), exact_sums(values[cut:])
    assert added(one, other) == added(other, one) == exact_sums(values)


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_sums_over_several_steps_are_exact(scale):
    values = np.random.default_rng(0).lognormal(0, 3, 40_000) * scale
    exact = [Fraction(value) for value in values.tolist()]
    assert fractions(exact_sums(values)) == (sum(exact), sum(value * value for value in exact))


@given(values=arrays(np.float64, st.integers(1, 40), elements=DOUBLES))
def test_moments_are_those_of_the_standard_library(values):
    mean, std = moments(exact_sums(values), len(values))
    exact = [Fraction(value) for value in values.tolist()]
    assert mean == float(statistics.mean(exact))
    assert std == pytest.approx(statistics.pstdev(exact), rel=1e-15)


def test_moments_where_squares_overflow_vanish_or_cancel():
    assert moments(exact_sums(np.array([1e300, 3e300])), 2) == (2e300, 1e300)
    assert moments(exact_sums(np.array([1e-300, 3e-300])), 2) == pytest.approx((2e-300, 1e-300), rel=1e-15)
    assert moments(exact_sums(np.array([1e15, 1e15 + 1])), 2) == (1e15 + 0.5, 0.5)
    assert moments(exact_sums(np.full(1000, 0.1)), 1000) == (0.1, 0.0)
    assert moments(exact_sums(np.array([1e300, 1.0, -1e300])), 3)[0] == pytest.approx(1 / 3)
    assert moments(exact_sums(np.empty(0)), 0) == (0.0, 0.0)
