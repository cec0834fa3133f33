"""The edges of a profile, and how near the distance between them comes to that of the rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp

from pytest_modelserve.monitoring.histogram import CellTable, EvenCells, RelativeCells, choose_edges, count_values
from pytest_modelserve.stats.two_sample_tests import distribution_distance

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


def test_values_beyond_the_range_of_a_few_categories_are_told_from_those_at_its_ends():
    edges = choose_edges(np.sort(np.arange(400) % 4).astype(float), bins=256)
    np.testing.assert_array_equal(count_values(np.array([-1.0, 0, 3, 4]), edges), [1, 1, 0, 0, 1, 1])


def test_values_that_were_rounded_to_float32_stay_in_their_bins():
    then = np.sort(np.random.default_rng(4).choice([0.1, 0.3, 0.7, 0.9], 1000))
    edges = choose_edges(then, bins=256)
    np.testing.assert_array_equal(count_values(then, edges), count_values(then.astype(np.float32), edges))


@pytest.mark.parametrize("ends", [[0.0, 1.2e308], [-1.2e308, 1.2e308], [-1e308, 5.0, 1.2e308]])
def test_values_at_the_ends_of_what_a_double_holds_are_told_apart(ends: list[float]) -> None:
    edges = choose_edges(np.array(ends), bins=4)
    assert np.isfinite(edges).all()
    assert np.unique(np.searchsorted(edges, ends, side="right")).size == len(ends)
