from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import beta, multinomial

from pytest_modelserve.stats.paired_proportions import Truth, largest_limits, probabilities_within, tango_limit


def every_table(n):
    lost, gained = (counts.ravel() for counts in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    possible = lost + gained <= n
    return lost[possible], gained[possible]


def chance_of_every_table(n, difference, discordance):
    lost, gained = every_table(n)
    cells = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    return multinomial.pmf(np.stack([lost, gained, n - lost - gained], axis=1), n, cells)


@pytest.mark.parametrize("difference", [-0.3, -0.05, 0.0, 0.05, 0.3])
@pytest.mark.parametrize("z", [0.5, 1.645, 3.09])
def test_chances_equal_the_sum_over_every_table(difference, z):
    n, discordances = 23, np.array([0.3, 0.35, 0.6, 1.0])
    limits = tango_limit(*every_table(n), n, z)
    for limit in (-0.2, difference, difference + 0.1):
        expected = [chance_of_every_table(n, difference, d)[limits <= limit].sum() for d in discordances]
        chances = probabilities_within(Truth(n, difference, discordances), limit, z)
        assert chances == pytest.approx(expected, abs=1e-12)


def test_published_exact_unconditional_p_value():
    # 6 and 16 discordant of 161 rows (Cavo 2012): the two-sided exact unconditional McNemar test with Berger and Boos's
    # range at gamma = 0.0001, which the p-value then includes, as R's contingencytables prints it.
    gamma, n, total = 1e-4, 161, 22
    low, high = beta.ppf(gamma / 2, total, n - total + 1), beta.ppf(1 - gamma / 2, total + 1, n - total)
    z = (16 - 6) / np.sqrt(total) * (1 - 1e-12)
    one_sided = probabilities_within(Truth(n, 0.0, np.linspace(low, high, 1001)), 0.0, z).max()
    assert 2 * one_sided + gamma == pytest.approx(0.034053, abs=5e-7)


@pytest.mark.parametrize("difference", [-0.15, 0.0, 0.15])
def test_the_largest_limit_is_just_below_the_table_that_makes_it_too_likely(difference):
    n, z, allowed = 23, ndtri(0.9), np.array([0.05, 0.03])
    discordances = np.array([0.15, 0.4])
    limits = tango_limit(*every_table(n), n, z)
    found = largest_limits(Truth(n, difference, discordances), allowed, z)
    for discordance, most, limit in zip(discordances, allowed, found, strict=True):
        chances = chance_of_every_table(n, difference, discordance)
        following = limits[limits > limit].min()
        assert chances[limits <= limit].sum() <= most < chances[limits <= following].sum()
        assert np.nextafter(limit, 1) == following


def test_a_hundred_thousand_rows_agree_with_simulated_ones():
    n, difference, discordance, z = 100_000, 0.01, 0.012, 3.0
    cells = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    lost, gained, _ = np.random.default_rng(5).multinomial(n, cells, size=20_000).T
    within = np.mean(tango_limit(lost, gained, n, z) <= difference + 0.001)
    chance = probabilities_within(Truth(n, difference, np.array([discordance])), difference + 0.001, z)[0]
    assert within == pytest.approx(chance, abs=4 * np.sqrt(0.25 / 20_000))
    assert 0.3 < chance < 0.7
