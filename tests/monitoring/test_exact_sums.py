"""Sums without rounding, against Python's fractions."""

from __future__ import annotations

import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from pytest_modelserve.monitoring.histogram import added, exact_sums, moments

DOUBLES = st.floats(allow_nan=False, allow_infinity=False)
LISTS = arrays(np.float64, st.integers(0, 40), elements=DOUBLES)


def fractions(sums):
    return tuple(mantissa * Fraction(2) ** exponent for mantissa, exponent in (sums[:2], sums[2:]))


@settings(deadline=None)
@given(values=LISTS)
def test_sums_are_those_of_fractions(values):
    exact = [Fraction(value) for value in values.tolist()]
    assert fractions(exact_sums(values)) == (sum(exact), sum(value * value for value in exact))


@settings(deadline=None)
@given(values=LISTS, cut=st.integers(0, 40))
def test_sums_of_parts_add_up_in_any_order(values, cut):
    one, other = exact_sums(values[:cut][::-1].copy()), exact_sums(values[cut:])
    assert added(one, other) == added(other, one) == exact_sums(values)


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_sums_over_several_steps_are_exact(scale):
    values = np.random.default_rng(0).lognormal(0, 3, 40_000) * scale
    exact = [Fraction(value) for value in values.tolist()]
    assert fractions(exact_sums(values)) == (sum(exact), sum(value * value for value in exact))


@settings(deadline=None)
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


def test_the_values_are_left_as_they_were():
    values = np.array([1.5, 1e300, -2.0])
    exact_sums(values)
    assert values.tolist() == [1.5, 1e300, -2.0]
