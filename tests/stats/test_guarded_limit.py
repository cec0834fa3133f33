from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.special import gammaln, ndtri
from scipy.stats import beta, binom

from pytest_modelserve.stats.paired_proportions import (
    Truth,
    buehler_limit,
    first_lost_outside,
    probabilities_within,
    rows_without_discordance,
    tango_limit,
    tango_suffices,
)


@cache
def limit_of_every_table(n, level):
    return {
        (lost, gained): buehler_limit(lost, gained, n, level) for lost in range(n + 1) for gained in range(n + 1 - lost)
    }


def multinomial_ways(tables):
    return np.exp(gammaln(tables.sum(axis=1) + 1) - gammaln(tables + 1).sum(axis=1))


def naive_p_value(lost, gained, n, level, difference):
    """The exact unconditional p-value by its definition: every table, a dense grid of discordances."""
    total, spent = lost + gained, 1e-5 * (1 - level)
    low = beta.ppf(spent / 2, total, n - total + 1) if total else 0.0
    high = beta.ppf(1 - spent / 2, total + 1, n - total) if total < n else 1.0
    tables = np.array([(a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a)])
    z = ndtri(level)
    within = tables[tango_limit(tables[:, 0], tables[:, 1], n, z) <= tango_limit(lost, gained, n, z)]
    size = abs(difference)
    discordances = np.linspace(max(low, size), max(high, size), 801)
    cells = np.stack([discordances + difference, discordances - difference, 2 - 2 * discordances], axis=1) / 2
    chances = multinomial_ways(within) * np.prod(np.clip(cells, 0, 1)[:, None, :] ** within, axis=2)
    return chances.sum(axis=1).max()


@pytest.mark.parametrize(
    ("lost", "gained", "n", "level"),
    [
        (1, 0, 25, 0.95),
        (0, 3, 25, 0.95),
        (2, 10, 13, 0.95),
        (1, 12, 13, 0.95),
        (1, 8, 36, 0.95),
        (4, 5, 25, 0.95),
        (1, 13, 25, 0.975),
        (0, 14, 36, 0.99),
    ],
)
def test_the_limit_is_where_the_naive_p_value_comes_down_to_what_is_tolerated(lost, gained, n, level):
    limit = buehler_limit(lost, gained, n, level)
    assert limit > tango_limit(lost, gained, n, ndtri(level)) + 1e-3
    assert naive_p_value(lost, gained, n, level, limit) / (1 - level) == pytest.approx(1.0997, abs=4e-4)


@pytest.mark.parametrize(
    ("lost", "gained", "n", "level"), [(20, 18, 400, 0.95), (130, 150, 2000, 0.999), (5, 1, 500, 0.95)]
)
def test_tangos_limit_stays_to_the_last_digit_where_it_errs_seldom_enough(lost, gained, n, level):
    assert buehler_limit(lost, gained, n, level) == tango_limit(lost, gained, n, ndtri(level))


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_whatever_is_true_the_limits_of_all_tables_err_at_most_a_tenth_too_often(level):
    n = 8
    limits = limit_of_every_table(n, level)
    tables = np.array([(lost, gained, n - lost - gained) for lost, gained in limits])
    ends, ways = np.array(list(limits.values())), multinomial_ways(tables)
    worst = 0.0
    for difference in np.linspace(-0.6, 0.9, 151):
        discordances = np.linspace(abs(difference), 1, 101)
        cells = np.stack([discordances + difference, discordances - difference, 2 - 2 * discordances], axis=1) / 2
        chances = ways * np.prod(np.clip(cells, 0, 1)[:, None, :] ** tables, axis=2)
        worst = max(worst, float((chances @ (ends < difference)).max()))
    assert 1.05 * (1 - level) < worst <= 1.1 * (1 - level)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_edges_of_the_verdict_are_those_of_every_tables_limit(level):
    n = 8
    limits, totals = limit_of_every_table(n, level), np.arange(n + 1)
    for difference in (-0.3, -0.05, -0.01, 0.0, 0.01, 0.05, 0.1, 0.3, 0.6):
        first = first_lost_outside(totals, n, difference, level)
        for total in range(n + 1):
            inside = [limits[lost, total - lost] <= difference for lost in range(total + 1)]
            assert inside == [lost < first[total] for lost in range(total + 1)]


@pytest.mark.parametrize(
    ("lost", "gained", "n", "level"), [(40, 0, 4000, 0.95), (0, 40, 4000, 0.999), (60, 4, 900, 0.95), (0, 0, 70, 0.95)]
)
def test_the_edges_follow_single_limits_for_larger_samples_too(lost, gained, n, level):
    limit, total = buehler_limit(lost, gained, n, level), np.array([lost + gained])
    assert first_lost_outside(total, n, limit + 1e-9, level)[0] > lost
    assert first_lost_outside(total, n, limit - 1e-9, level)[0] <= lost


def test_limits_rise_with_every_lost_row_and_with_the_level():
    n = 80
    for total in (3, 12):
        limits = [buehler_limit(lost, total - lost, n, 0.95) for lost in range(total + 1)]
        assert limits == sorted(limits)
    assert buehler_limit(2, 9, n, 0.95) < buehler_limit(2, 9, n, 0.99) < buehler_limit(2, 9, n, 0.999)


@pytest.mark.parametrize(
    ("n", "difference", "level", "tangos"),
    [(268, 0.01, 0.95, 1.353), (1018, -0.01, 0.999, 3.992)],
    ids=["PASS with none discordant", "FAIL with some twenty lost"],
)
def test_known_worst_errors_of_tangos_limit_are_brought_down(n, difference, level, tangos):
    # Every discordant row is of the commoner kind.
    truth = Truth(n, difference, np.array([abs(difference)]))
    assert probabilities_within(truth, difference, ndtri(level))[0] / (1 - level) == pytest.approx(tangos, abs=0.001)
    totals = np.arange(60)
    first = first_lost_outside(totals, n, difference, level)
    inside = totals < first if difference > 0 else first > 0  # all of them lost, or none
    assert binom.pmf(totals, n, abs(difference))[inside].sum() / (1 - level) <= 1.1


@pytest.mark.parametrize("difference", [0.002, 0.01, 0.05, 0.2])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.999])
def test_rows_without_discordance_are_the_fewest_whose_limit_is_low_enough(difference, level):
    n = rows_without_discordance(difference, level)
    assert buehler_limit(0, 0, n, level) <= difference < buehler_limit(0, 0, n - 1, level)


def test_where_tango_is_taken_unasked_his_limit_errs_at_most_eight_per_cent_too_often():
    rng, worst = np.random.default_rng(6), 0.0
    for _ in range(60):
        level, n = float(rng.choice([0.9, 0.95, 0.99, 0.999, 0.9999])), int(np.exp(rng.uniform(5, 11)))
        size = float(np.exp(rng.uniform(-9, -2)))
        steps = np.sqrt(n * max(80 / n, size)) + np.arange(0, 12, 0.25)
        discordances = np.minimum(steps**2 / n, 0.6)
        discordances = discordances[tango_suffices(n, size, discordances, level)]
        for difference in (size, -size) if discordances.size else ():
            errors = probabilities_within(Truth(n, difference, discordances), difference, float(ndtri(level)))
            worst = max(worst, float(errors.max()) / (1 - level))
    assert 1 < worst <= 1.08
