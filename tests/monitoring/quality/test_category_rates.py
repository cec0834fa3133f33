"""New and lost categories: shares, chances, bounds and words."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from pytest_modelserve.monitoring import reference_profile
from pytest_modelserve.monitoring.decision import Blocks
from pytest_modelserve.monitoring.quality.rates import CountedCategories, lost_category_rate, new_category_rate
from pytest_modelserve.monitoring.window import read_window

INDEPENDENT = Blocks()
SHARES = np.array([0.5, 0.3, 0.15, 0.05])


def text(counts):
    return np.repeat([f"c{index}" for index in range(len(counts))], counts)


def counted(then, now, *, as_profile=False):
    profile = reference_profile({"x": then})
    data = reference_profile({"x": now}, like=profile) if as_profile else {"x": now}
    ((column, reference),) = read_window(data, profile).pairs[:1]
    return CountedCategories.of(column, reference)


def lost(then, now, *, alpha=0.001, blocks=INDEPENDENT, **options):
    return lost_category_rate(counted(then, now, **options), blocks, alpha=alpha)


@pytest.mark.parametrize("as_profile", [False, True])
def test_a_lost_category_is_told_with_its_share_of_the_profile(as_profile):
    rate = lost(text([5000, 3000, 1500, 500]), text([1000, 600, 300]), as_profile=as_profile)
    assert (rate.distance, rate.fault) == (0.05, "lost category")
    assert rate.p_value < 1e-20
    assert rate.upper == pytest.approx(beta.ppf(0.95, 501, 9500))
    assert rate.detail == "'x' lost categories with 5.0 % of the profile's rows: 'c3' (500)"


def test_many_rare_categories_that_are_lost_together_are_told_together():
    rate = lost(text([9200, *[20] * 40]), text([2000]))
    assert rate.distance == 0.08
    assert rate.detail == (
        "'x' lost categories with 8.0 % of the profile's rows: "
        "'c1' (20), 'c10' (20), 'c11' (20), 'c12' (20), 'c13' (20) and 35 more"
    )


def test_rare_categories_that_miss_a_small_window_by_chance_are_bounded_by_the_largest():
    rate = lost(text([9970, 12, 10, 8]), text([300]))
    assert rate.p_value > 0.05
    assert rate.distance == 0.0012
    assert rate.upper == pytest.approx(beta.ppf(0.95, 13, 9988))


def test_nothing_lost_is_bounded_by_nothing():
    rate = lost(text([50, 50]), text([99, 1]))
    assert (rate.distance, rate.p_value, rate.upper) == (0, 1, 0)


def test_the_chance_is_never_below_that_of_dealing_the_rows_out_again():
    then, now = np.array([200, 60, 25, 9, 4, 2]), np.array([90, 20, 0, 0, 0, 0])
    chance = lost(text(then), text(now)).p_value
    rng, rows, as_many = np.random.default_rng(0), text(then + now), 0
    for _ in range(8_000):
        drawn = rng.permutation(rows)[: now.sum()]
        gone = np.isin(rows, drawn, invert=True).sum()
        as_many += gone >= 40
    assert as_many / 8_000 < chance < 1e-3


def test_unchanged_data_lose_categories_significantly_no_more_often_than_alpha():
    shares = 1 / np.arange(1, 60) ** 1.2
    rng, chances = np.random.default_rng(1), []
    for _ in range(150):
        then, now = (rng.multinomial(rows, shares / shares.sum()) for rows in (2000, 400))
        chances.append(lost(text(then), text(now)).p_value)
    assert np.mean(np.array(chances) <= 0.05) <= 0.05


def test_a_category_that_is_lost_beyond_the_budget_passes_in_fewer_than_five_per_cent_of_samples():
    rng, passed = np.random.default_rng(2), 0
    for _ in range(500):
        then = rng.multinomial(400, SHARES)
        now = rng.multinomial(100, SHARES[:3] / SHARES[:3].sum())
        passed += lost(text(then), text([*now, 0])).upper <= 0.049
    assert passed <= 25


def test_dependent_rows_lose_less_significantly():
    then, now = text([9900, 100]), text([600])
    assert lost(then, now, blocks=Blocks(50, 50)).p_value > 0.5 > 0.01 > lost(then, now).p_value


def test_new_categories_of_data_in_pools_are_at_least_those_of_the_pools_that_were_empty():
    counts = counted(text([900, 100]), text([500, *[1] * 150]), as_profile=True)
    assert not counts.named
    rate = new_category_rate(counts, Blocks())
    assert 100 / 650 < rate.distance <= 150 / 650
    assert (rate.upper, rate.detail) == (
        1.0,
        f"'x' has a new category in at least {round(650 * rate.distance)} of 650 rows",
    )
