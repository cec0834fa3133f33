"""The bound of a false alarm rate, and halves of data."""

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.selftest.false_alarms import SameTwice, rate_bound


def test_bound_without_alarms_is_that_of_clopper_and_pearson():
    assert rate_bound(0, 200) == pytest.approx(1 - 0.05 ** (1 / 200), rel=1e-6)
    assert rate_bound(0, 0) == 1


def test_data_are_split_in_halves_of_which_one_is_profiled_as_the_profile_was():
    rows = {"age": np.arange(100.0), "city": ["Bern", "Graz"] * 50}
    profile = ms.reference_profile(rows, sketch_rows=40, block=2)
    half, other = SameTwice(0).data(rows, profile, profile, None)
    assert half.rows == other.rows == 50
    assert other.column("age").edges == profile.column("age").edges
    assert (other.block, other.sketch.rows, other.associations is None) == (2, 40, profile.associations is None)
    again = SameTwice(1).data(rows, profile, profile, None)[0]
    assert again.columns[0].values.tolist() != half.columns[0].values.tolist()


def test_halves_of_the_same_rows_rarely_fail():
    """At alpha 1 % at most 1 of 100 splits is expected to FAIL; 5 or more have a probability below 0.4 %."""
    rng = np.random.default_rng(0)
    rows = {"age": rng.normal(40, 12, 600)}
    profile = ms.reference_profile(rows)
    fails = 0
    for seed in range(100):
        half, other = SameTwice(seed).data(rows, profile, profile, None)
        fails += ms.measure_drift({"age": half.columns[0].values}, other, max_distance=0.05).verdict.name == "FAIL"
    assert fails < 5
