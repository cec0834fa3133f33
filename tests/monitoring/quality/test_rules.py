"""The limit of a tail beyond the range of a profile."""

import math

import numpy as np
import pytest
from scipy import stats

from pytest_modelserve.monitoring import reference_profile
from pytest_modelserve.monitoring.quality.rules import tail_limit

HEAVY = {
    "Cauchy": stats.cauchy(),
    "Student t, 2 d.f.": stats.t(2),
    "lognormal(2)": stats.lognorm(2),
    "Pareto(1.1)": stats.lomax(1.1),
    "exponential": stats.expon(),
}


def profiled(values):
    return reference_profile({"x": values}).column("x")


def furthest(values, **options):
    return tail_limit(profiled(values), **{"rows": 2000, **options})


@pytest.mark.parametrize("name", HEAVY)
@pytest.mark.parametrize("rows", [1000, 10_000])
def test_heavy_tails_leave_their_reach_in_a_few_windows_of_a_million(name, rows):
    # The chance of each profile is computed from the distribution itself, and averaged over 30 profiles.
    truth, p_values = HEAVY[name], []
    for seed in range(30):
        column = profiled(truth.rvs(rows, random_state=np.random.default_rng(seed)))
        far = tail_limit(column, rows=2000)
        p_values.append(2000 * (truth.sf(column.maximum + far) + truth.cdf(column.minimum - far)))
    assert np.mean(p_values) < 1e-5


def test_a_hundredfold_in_one_row_of_two_hundred_is_out_of_reach_of_normal_values():
    missed = []
    for seed in range(20):
        column = profiled(np.random.default_rng(seed).normal(size=10_000))
        far = tail_limit(column, rows=2000)
        beyond = stats.norm.sf((column.maximum + far) / 100) + stats.norm.cdf((column.minimum - far) / 100)
        missed.append((1 - 0.005 * beyond) ** 2000)
    assert np.mean(missed) < 0.0008


def test_a_range_that_ends_abruptly_reaches_three_widths_further():
    values = np.random.default_rng(0).uniform(10, 20, 10_000)
    assert furthest(values) == pytest.approx(3 * (values.max() - values.min()))


def test_the_reach_is_that_of_the_power_law_through_the_extreme_and_the_mean_slope():
    # Quantiles of a Pareto tail on either side: |x| = (1 − u)^(−1) has ξ = 1, and the extreme of 5,000 is 10,000.
    half = 1 / (1 - (np.arange(5000) + 0.5) / 5000)
    column = profiled(np.concatenate((-half, half)))
    extreme = column.maximum - column.median
    points = []
    for edge, beyond in zip(column.edges, np.cumsum(column.counts[::-1])[::-1][1:], strict=True):
        if 32 <= beyond <= 10_000 / 16:
            points.append(math.log(extreme / (edge - column.median)) / math.log(beyond / 2))
    expected = extreme * (2000 / 10_000 * 1e6) ** np.mean(points) - extreme
    assert tail_limit(column, rows=2000) == pytest.approx(expected, rel=1e-6)
    assert 1 < np.mean(points) < 1.5


def test_more_rows_reach_further_and_a_mirrored_column_as_far():
    values = np.random.default_rng(1).exponential(size=5000)
    assert furthest(values) < furthest(values, rows=2_000_000)
    assert furthest(-values) == pytest.approx(furthest(values), rel=0.1)


@pytest.mark.parametrize(
    "values",
    [np.full(5000, 7.0), np.random.default_rng(0).normal(size=511), np.where(np.arange(10_000) < 9, 5.0, 0.0)],
    ids=["constant", "few rows", "a few rare values"],
)
def test_profiles_without_a_known_tail_have_no_limit(values):
    assert furthest(values) is None


def test_dependent_rows_tell_the_tail_less_well():
    values = np.random.default_rng(2).standard_t(2, 10_000)
    assert furthest(values, block=5) > 2 * furthest(values)


def test_infinities_are_no_part_of_the_tail():
    values = np.random.default_rng(3).standard_t(2, 10_000)
    with_infinities = np.concatenate((values, [math.inf] * 100, [-math.inf] * 100))
    assert furthest(with_infinities) == pytest.approx(furthest(values), rel=0.05)
