"""BCa intervals against scipy and simulation."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pytest_modelserve.stats import bca_bounds, bca_bounds_against, bootstrap as bca, resamples_for

# Test A of spatial perception, 26 children: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, table 14.1.
SPATIAL = np.array(
    [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41.0]
)
# Average LSAT and GPA of 15 law schools: the same, table 3.1.
LSAT = np.array([576, 635, 558, 578, 666, 580, 555, 661, 651, 605, 653, 575, 545, 572, 594.0])
GPA = np.array([3.39, 3.30, 2.81, 3.03, 3.44, 3.07, 3.00, 3.43, 3.36, 3.13, 3.12, 2.74, 2.76, 2.88, 2.96])
LEVELS = {"low_level": 0.95, "high_level": 0.95}


def variance(rows):
    return float(SPATIAL[rows].var())


def correlation(rows):
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(LSAT[rows], GPA[rows])[0, 1])


def test_published_variance_of_the_spatial_test():
    """Section 14.3: estimate 171.5, acceleration 0.061, BCa interval (115.8, 259.6) from 2,000 resamples."""
    bounds = bca_bounds(variance, 26, **LEVELS, resamples=20_000)
    assert bounds.estimate == pytest.approx(171.5, abs=0.05)
    assert bca._acceleration(variance, np.arange(26)[:, None]) == pytest.approx(0.061, abs=5e-4)
    assert (bounds.low, bounds.high) == (pytest.approx(115.8, abs=3), pytest.approx(259.6, abs=4))


def test_law_schools_agree_with_scipy():
    """Estimate 0.776; the interval is far from symmetric."""
    bounds = bca_bounds(correlation, 15, **LEVELS, resamples=4000)
    other = scipy_stats.bootstrap(
        (LSAT, GPA),
        lambda x, y: np.corrcoef(x, y)[0, 1],
        paired=True,
        vectorized=False,
        confidence_level=0.9,
        n_resamples=4000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert bounds.estimate == pytest.approx(0.776, abs=5e-4)
    assert (bounds.low, bounds.high) == (pytest.approx(other.low, abs=0.03), pytest.approx(other.high, abs=0.01))
    assert bounds.estimate - bounds.low > 2 * (bounds.high - bounds.estimate)


def test_same_seed_gives_the_same_bounds_and_another_seed_others():
    first = bca_bounds(variance, 26, **LEVELS, resamples=300)
    assert bca_bounds(variance, 26, **LEVELS, resamples=300) == first
    assert bca_bounds(variance, 26, **LEVELS, resamples=300, seed=1) != first


def test_expansion_is_that_of_students_t():
    """For the mean of many resamples: t times sqrt(s²/n), s² unbiased, where the plain end has z times sqrt of the biased one."""
    values = scipy_stats.norm.ppf((np.arange(20) + 0.5) / 20)
    mean = lambda rows: float(values[rows].mean())  # noqa: E731
    plain, expanded = (bca_bounds(mean, 20, **LEVELS, resamples=20_000, expanded=wide) for wide in (False, True))
    assert plain.high == pytest.approx(1.645 * values.std() / np.sqrt(20), rel=0.03)
    assert expanded.high == pytest.approx(scipy_stats.t.ppf(0.95, 19) * values.std(ddof=1) / np.sqrt(20), rel=0.03)


def test_few_units_bound_nothing_at_a_far_level():
    bounds = bca_bounds(lambda rows: float(rows.mean()), 5, low_level=0.999, high_level=0.999, expanded=True)
    assert (bounds.low, bounds.high) == (-np.inf, np.inf)


def test_far_levels_take_many_resamples():
    assert resamples_for(low_level=0.95, high_level=0.999) == 10_000
    assert resamples_for(low_level=0.95, high_level=0.95) == 200


def test_groups_are_drawn_whole():
    seen = []
    bca_bounds(
        lambda rows: seen.append(rows) or float(len(rows) > 0),
        6,
        ids=np.array([0, 0, 1, 2, 2, 2]),
        **LEVELS,
        resamples=50,
    )
    for rows in seen[1:51]:
        counts = np.bincount(rows, minlength=6)
        assert counts[0] == counts[1]
        assert counts[3] == counts[4] == counts[5]
        assert counts[0] + counts[2] + counts[3] == 3


def test_grouped_bounds_are_wider_where_rows_of_a_group_agree():
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(20), 5)
    values = rng.standard_normal(20)[ids]
    mean = lambda rows: float(values[rows].mean())  # noqa: E731
    alone = bca_bounds(mean, 100, **LEVELS, resamples=1000)
    grouped = bca_bounds(mean, 100, ids=ids, **LEVELS, resamples=1000)
    assert grouped.high - grouped.low > 1.8 * (alone.high - alone.low)


def test_statistic_that_no_resample_changes_has_no_width():
    bounds = bca_bounds(lambda rows: 0.5, 10, **LEVELS)
    assert (bounds.low, bounds.high) == (0.5, 0.5)


def test_resamples_without_a_value_count_as_beyond_either_end():
    def half(rows):
        return float(rows.mean()) if len(np.unique(rows)) > 6 or len(rows) < 10 else np.nan

    bounds = bca_bounds(half, 10, low_level=0.95, high_level=0.95, resamples=400)
    assert (bounds.low, bounds.high) == (-np.inf, np.inf)


def test_ends_miss_about_as_often_as_they_say():
    """The mean of 40 normal values, 250 worlds: each end at 95 % misses in 5 to 6 %."""
    missed = np.zeros(2)
    for seed in range(250):
        values = np.random.default_rng(seed).standard_normal(40)
        bounds = bca_bounds(lambda rows, values=values: float(values[rows].mean()), 40, **LEVELS, seed=seed)
        missed += [bounds.low > 0, bounds.high < 0]
    assert (missed / 250).min() >= 0.015
    assert (missed / 250).max() <= 0.105


FAR = {"low_level": 0.999, "high_level": 0.95}


@pytest.mark.parametrize("seed", range(4))
def test_fewer_resamples_put_every_limit_on_the_same_side_as_all(seed):
    """Limits from 12 standard errors below the mean to 12 above it, of skewed values."""
    values = np.random.default_rng(seed).exponential(size=60)
    mean = lambda rows: float(values[rows].mean())  # noqa: E731
    full = bca_bounds(mean, 60, **FAR, expanded=True, seed=seed)
    error = values.std(ddof=1) / np.sqrt(60)
    for limit in values.mean() + error * np.array([-12, -8, -5, -1, 0.5, 3, 5, 12]):
        bounds, count = bca_bounds_against(mean, 60, limit=limit, **FAR, seed=seed)
        assert (bounds.low > limit, bounds.high < limit) == (full.low > limit, full.high < limit)
        assert count <= 10_000


def test_limits_far_from_the_estimate_take_two_hundred_resamples_and_near_failures_all():
    values = np.random.default_rng(0).standard_normal(500)
    mean = lambda rows: float(values[rows].mean())  # noqa: E731
    error = values.std() / np.sqrt(500)
    counts = [bca_bounds_against(mean, 500, limit=values.mean() + z * error, **FAR)[1] for z in (5, -8, 1, -1, -3.4)]
    assert counts == [200, 200, 1000, 200, 10_000]


def test_end_at_a_limit_that_is_the_truth_misses_about_as_often_as_it_says():
    """The mean of 40 normal values, 200 worlds, with a budget at the truth: PASS, which is wrong, in 5 to 6 %."""
    passed = 0
    for seed in range(200):
        values = np.random.default_rng(seed).standard_normal(40)
        statistic = lambda rows, values=values: float(values[rows].sum() / rows.size)  # noqa: E731
        passed += bca_bounds_against(statistic, 40, limit=0.0, low_level=0.95, high_level=0.95, seed=seed)[0].high < 0
    assert 0.015 <= passed / 200 <= 0.105
