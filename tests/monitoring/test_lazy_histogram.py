"""Cells of a lazy frame lead to the counts of the numbers themselves."""

import numpy as np
import polars
import pytest
from hypothesis import given, settings, strategies as st

from pytest_modelserve.monitoring import reference_profile
from pytest_modelserve.monitoring.column_profile import NumericColumn
from pytest_modelserve.monitoring.lazy_profiler import scan

FINITE = st.floats(-1e300, 1e300)
NUMBERS = st.lists(st.one_of(FINITE, FINITE, st.sampled_from([0.0, -0.0, 1.0, 5e-324, 1e300, -1e300])), min_size=2)
BINS = st.sampled_from([2, 5, 256])


def column(values, **options):
    scanned = scan(polars.LazyFrame({"x": values}), **options).column("x")
    assert isinstance(scanned, NumericColumn)
    return scanned


@settings(max_examples=25)
@given(reference=NUMBERS, current=NUMBERS, bins=BINS)
def test_counts_are_those_of_the_values(reference, current, bins):
    profile = reference_profile({"x": np.array(reference)}, bins=bins)
    in_memory = reference_profile({"x": np.array(current)}, like=profile).column("x")
    scanned = column(np.array(current), like=profile)
    assert isinstance(in_memory, NumericColumn)
    for what in ("counts", "minimum", "maximum", "below", "above"):
        assert getattr(scanned, what) == getattr(in_memory, what)


@settings(max_examples=25)
@given(values=NUMBERS, bins=BINS)
def test_chosen_edges_lose_no_row(values, bins):
    scanned = column(np.array(values), bins=bins)
    assert len(scanned.edges) <= 2 * bins
    below = [int((np.array(values) < edge).sum()) for edge in scanned.edges]
    assert np.cumsum(scanned.counts).tolist() == [*below, len(values)]


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).normal(size=20_000),
        np.random.default_rng(1).standard_cauchy(20_000),
        np.random.default_rng(2).lognormal(0, 5, 20_000),
        1e9 + np.random.default_rng(3).normal(size=20_000),
        np.repeat([0.0, 1000.0], 10_000) + 1e-3 * np.random.default_rng(4).normal(size=20_000),
        np.random.default_rng(5).poisson(4000, 20_000).astype(float),
    ],
    ids=["normal", "Cauchy", "lognormal(5)", "1e9 + normal", "two spikes", "Poisson"],
)
def test_bins_hold_about_equally_many_rows(values):
    counts, bins = np.array(column(values, bins=100).counts), 100
    assert 90 <= len(counts) <= 110
    assert counts.max() <= 2 * values.size / bins
    assert (counts >= values.size / bins / 4).mean() > 0.9
