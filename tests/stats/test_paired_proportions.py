"""Tango's interval and Buehler's exact limits against published tables and enumeration."""

import math
from functools import cache

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import gammaln, ndtri
from scipy.stats import beta, binom, multinomial, norm

from pytest_modelserve.stats import paired_difference_bounds, tango_statistic
from pytest_modelserve.stats.paired_proportions import (
    Truth,
    buehler_limit,
    first_lost_above,
    largest_limits,
    probabilities_within,
    rows_without_discordance,
    tango_limit,
    tango_suffices,
)


@pytest.mark.parametrize(
    ("lost", "gained", "n", "level", "low", "high"),
    [(6, 16, 161, 0.975, -0.1240, -0.0054), (28, 25, 618, 0.95, -0.0148, 0.0247)],
    ids=["Cavo 2012", "R PropCIs"],
)
def test_published_tango_intervals_stay_where_rows_are_discordant_both_ways(lost, gained, n, level, low, high):
    # The first from Fagerland, Lydersen and Laake (2017), chapter 8; the second as R's PropCIs::scoreci.mp(25, 28, 618,
    # 0.9) prints it.
    bounds = paired_difference_bounds(lost, gained, n, low_level=level, high_level=level)
    assert (bounds.low, bounds.high) == pytest.approx((low, high), abs=5.1e-5)


def test_the_ends_are_the_guarded_limits_of_the_table_and_of_its_mirror_image():
    bounds = paired_difference_bounds(61, 9, 2000, low_level=0.999, high_level=0.95)
    assert bounds.estimate == 0.026
    assert bounds.high == buehler_limit(61, 9, 2000, 0.95) == tango_limit(61, 9, 2000, ndtri(0.95))
    # Tango's low end is wrong too often here.
    assert bounds.low == -buehler_limit(9, 61, 2000, 0.999)
    assert -tango_limit(9, 61, 2000, ndtri(0.999)) - bounds.low == pytest.approx(0.00054, abs=1e-5)


@pytest.mark.parametrize("n", [1, 10, 268, 100_000])
def test_no_discordant_row_leaves_the_width_that_five_and_a_half_per_cent_allow(n):
    bounds = paired_difference_bounds(0, 0, n, low_level=0.999, high_level=0.95)
    assert bounds.estimate == 0
    assert bounds.high == pytest.approx(1 - 0.055 ** (1 / n), rel=1e-4)
    assert bounds.low <= -(1 - 0.0011 ** (1 / n)) * (1 - 1e-4)


@pytest.mark.parametrize("n", [1, 21, 5000])
def test_all_rows_lost_end_at_one_exactly(n):
    bounds = paired_difference_bounds(n, 0, n, low_level=0.95, high_level=0.95)
    assert bounds.high == 1.0
    assert bounds.low < 1.0


def test_ends_are_rounded_outwards_so_that_no_margin_slips_between_them_and_the_statistic():
    z_low, z_high = ndtri(0.999), ndtri(0.95)
    for lost in range(0, 40, 6):
        bounds = paired_difference_bounds(lost, 5, 500, low_level=0.999, high_level=0.95)
        assert tango_statistic(lost, 5, 500, bounds.high) <= -z_high
        assert tango_statistic(lost, 5, 500, bounds.low) >= z_low


def test_swapping_the_models_mirrors_the_interval():
    one = paired_difference_bounds(17, 4, 300, low_level=0.999, high_level=0.95)
    other = paired_difference_bounds(4, 17, 300, low_level=0.95, high_level=0.999)
    assert (other.estimate, other.low, other.high) == (-one.estimate, -one.high, -one.low)


def test_numpy_counts_give_builtin_floats():
    bounds = paired_difference_bounds(np.int64(3), np.int64(1), np.int64(70), low_level=0.999, high_level=0.95)
    assert [type(value) for value in (bounds.estimate, bounds.low, bounds.high)] == [float] * 3


@pytest.mark.parametrize(
    ("lost", "gained", "n", "level", "low", "high"),
    [
        (9, 3, 32, 0.95, -0.027, 0.390),
        (0, 1, 44, 0.90, -0.096, 0.037),
        (1, 7, 21, 0.95, -0.517, -0.026),
        (6, 16, 161, 0.95, -0.1240, -0.0054),
        (28, 25, 618, 0.90, -0.0148, 0.0247),
    ],
    ids=["Tango 1998", "Tango 1998, an empty cell", "Bentur 2009", "Cavo 2012", "R PropCIs"],
)
def test_published_intervals(lost, gained, n, level, low, high):
    # Tango's examples and Bentur's as the R packages ratesci and contingencytables check them; Cavo's from Fagerland,
    # Lydersen and Laake (2017), chapter 8; the last as R's PropCIs::scoreci.mp(25, 28, 618, 0.9) prints it.
    z = norm.ppf((1 + level) / 2)
    limits = -tango_limit(gained, lost, n, z), tango_limit(lost, gained, n, z)
    digits = 5e-4 if round(low, 3) == low and round(high, 3) == high else 5e-5
    assert tuple(map(float, limits)) == pytest.approx((low, high), abs=1.01 * digits)


def score_from_first_principles(lost, gained, n, difference):
    """The efficient score over the root of its information, the nuisance q = P(gained) fitted by a numerical search."""
    same = n - lost - gained

    def minus_log_likelihood(q):
        return -(lost * math.log(q + difference) + gained * math.log(q) + same * math.log(1 - 2 * q - difference))

    q = minimize_scalar(
        minus_log_likelihood,
        bounds=(max(0.0, -difference) + 1e-12, (1 - difference) / 2 - 1e-12),
        method="bounded",
        options={"xatol": 1e-12},
    ).x
    p_lost, p_same = q + difference, 1 - 2 * q - difference
    score = lost / p_lost - same / p_same
    by_difference, crossed = n * (1 / p_lost + 1 / p_same), n * (1 / p_lost + 2 / p_same)
    by_q = n * (1 / p_lost + 1 / q + 4 / p_same)
    return score / math.sqrt(by_difference - crossed**2 / by_q)


def test_the_statistic_is_the_efficient_score_at_the_numerically_fitted_null():
    rng = np.random.default_rng(1)
    for _ in range(60):
        n = int(rng.integers(10, 3000))
        lost, gained, _ = (1 + rng.multinomial(n - 3, rng.dirichlet([1, 1, 3]))).tolist()
        difference = float(rng.uniform(-0.8, 0.8))
        expected = score_from_first_principles(lost, gained, n, difference)
        assert tango_statistic(lost, gained, n, difference) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_at_no_difference_the_statistic_is_mcnemars():
    lost, gained = np.arange(1, 30), np.arange(30, 1, -1)
    expected = (lost - gained) / np.sqrt(lost + gained)
    np.testing.assert_allclose(tango_statistic(lost, gained, 100, 0.0), expected, rtol=1e-12)


def test_the_statistic_falls_with_the_difference_and_rises_with_every_lost_row():
    n, grid = 23, np.linspace(-1, 1, 401)
    tables = [(lost, gained) for lost in range(n + 1) for gained in range(n + 1 - lost)]
    over_differences = np.array([tango_statistic(*table, n, grid) for table in tables])
    assert not np.isnan(over_differences).any()
    assert (np.diff(over_differences, axis=1)[np.isfinite(np.diff(over_differences, axis=1))] <= 1e-9).all()
    for total in range(1, n + 1):
        lost = np.arange(total + 1)[:, None]
        rising = tango_statistic(lost, total - lost, n, grid[1:-1])
        assert (np.diff(rising, axis=0) > 0).all()


@pytest.mark.parametrize("n", [1, 10, 268, 100_000])
def test_no_discordant_row_leaves_the_width_that_the_closed_form_gives(n):
    z = norm.ppf(0.95)
    assert tango_limit(0, 0, n, z) == pytest.approx(z**2 / (n + z**2), rel=1e-12)


@pytest.mark.parametrize("n", [1, 21, 5000])
def test_all_rows_lost_end_at_one_and_all_gained_near_minus_one(n):
    z = norm.ppf(0.975)
    assert tango_limit(n, 0, n, z) == 1.0
    assert tango_limit(0, n, n, z) == pytest.approx((z**2 - n) / (n + z**2), rel=1e-9)


def test_the_limit_is_the_first_float_at_which_the_statistic_has_fallen_to_minus_z():
    lost, z = np.arange(0, 40, 3), ndtri(0.95)
    limits = tango_limit(lost, 5, 500, z)
    assert (tango_statistic(lost, 5, 500, limits) <= -z).all()
    assert (tango_statistic(lost, 5, 500, np.nextafter(limits, -1)) > -z).all()


def test_the_limit_is_where_the_statistic_reaches_its_normal_quantile():
    for lost, gained, n in [(61, 9, 2000), (0, 4, 50), (1, 0, 1_000_000), (20, 20, 40), (3, 0, 4)]:
        for z in norm.ppf([0.95, 0.999]):
            # Absolute as well: near ±1 one float of difference moves the statistic by 1e-8.
            assert tango_statistic(lost, gained, n, tango_limit(lost, gained, n, z)) == pytest.approx(-z, rel=1e-6)


def test_swapping_the_models_mirrors_the_statistic():
    np.testing.assert_array_equal(tango_statistic(17, 4, 300, [-0.3, 0.2]), -tango_statistic(4, 17, 300, [0.3, -0.2]))


def test_the_statistic_is_defined_where_the_hypothesis_leaves_no_variance():
    assert tango_statistic(0, 0, 10, 0.0) == 0
    assert tango_statistic(10, 0, 10, 1.0) == 0
    assert tango_statistic(9, 0, 10, 1.0) == -math.inf
    assert tango_statistic(9, 0, 10, -1.0) == math.inf


def every_table(n):
    lost, gained = (counts.ravel() for counts in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    possible = lost + gained <= n
    return lost[possible], gained[possible]


def probability_of_every_table(n, difference, discordance):
    lost, gained = every_table(n)
    cells = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    return multinomial.pmf(np.stack([lost, gained, n - lost - gained], axis=1), n, cells)


@pytest.mark.parametrize("difference", [-0.3, -0.05, 0.0, 0.05, 0.3])
@pytest.mark.parametrize("z", [0.5, 1.645, 3.09])
def test_probabilities_equal_the_sum_over_every_table(difference, z):
    n, discordances = 23, np.array([0.3, 0.35, 0.6, 1.0])
    limits = tango_limit(*every_table(n), n, z)
    for limit in (-0.2, difference, difference + 0.1):
        expected = [probability_of_every_table(n, difference, d)[limits <= limit].sum() for d in discordances]
        probabilities = probabilities_within(Truth(n, difference, discordances), limit, z)
        assert probabilities == pytest.approx(expected, abs=1e-12)


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
        probabilities = probability_of_every_table(n, difference, discordance)
        following = limits[limits > limit].min()
        assert probabilities[limits <= limit].sum() <= most < probabilities[limits <= following].sum()
        assert np.nextafter(limit, 1) == following


def test_a_hundred_thousand_rows_agree_with_simulated_ones():
    n, difference, discordance, z = 100_000, 0.01, 0.012, 3.0
    cells = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    lost, gained, _ = np.random.default_rng(5).multinomial(n, cells, size=20_000).T
    within = np.mean(tango_limit(lost, gained, n, z) <= difference + 0.001)
    probability = probabilities_within(Truth(n, difference, np.array([discordance])), difference + 0.001, z)[0]
    assert within == pytest.approx(probability, abs=4 * np.sqrt(0.25 / 20_000))
    assert 0.3 < probability < 0.7


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
    probabilities = multinomial_ways(within) * np.prod(np.clip(cells, 0, 1)[:, None, :] ** within, axis=2)
    return probabilities.sum(axis=1).max()


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
def test_limits_of_all_tables_err_at_most_a_tenth_too_often_for_any_truth(level):
    n = 8
    limits = limit_of_every_table(n, level)
    tables = np.array([(lost, gained, n - lost - gained) for lost, gained in limits])
    ends, ways = np.array(list(limits.values())), multinomial_ways(tables)
    worst = 0.0
    for difference in np.linspace(-0.6, 0.9, 151):
        discordances = np.linspace(abs(difference), 1, 101)
        cells = np.stack([discordances + difference, discordances - difference, 2 - 2 * discordances], axis=1) / 2
        probabilities = ways * np.prod(np.clip(cells, 0, 1)[:, None, :] ** tables, axis=2)
        worst = max(worst, float((probabilities @ (ends < difference)).max()))
    assert 1.05 * (1 - level) < worst <= 1.1 * (1 - level)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_edges_of_the_verdict_are_those_of_every_tables_limit(level):
    n = 8
    limits, totals = limit_of_every_table(n, level), np.arange(n + 1)
    for difference in (-0.3, -0.05, -0.01, 0.0, 0.01, 0.05, 0.1, 0.3, 0.6):
        first = first_lost_above(totals, n, difference, level)
        for total in range(n + 1):
            inside = [limits[lost, total - lost] <= difference for lost in range(total + 1)]
            assert inside == [lost < first[total] for lost in range(total + 1)]


@pytest.mark.parametrize(
    ("lost", "gained", "n", "level"), [(40, 0, 4000, 0.95), (0, 40, 4000, 0.999), (60, 4, 900, 0.95), (0, 0, 70, 0.95)]
)
def test_the_edges_follow_single_limits_for_larger_samples_too(lost, gained, n, level):
    limit, total = buehler_limit(lost, gained, n, level), np.array([lost + gained])
    assert first_lost_above(total, n, limit + 1e-9, level)[0] > lost
    assert first_lost_above(total, n, limit - 1e-9, level)[0] <= lost


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
    first = first_lost_above(totals, n, difference, level)
    inside = totals < first if difference > 0 else first > 0  # all of them lost, or none
    assert binom.pmf(totals, n, abs(difference))[inside].sum() / (1 - level) <= 1.1


@pytest.mark.parametrize("difference", [0.002, 0.01, 0.05, 0.2])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.999])
def test_rows_without_discordance_are_the_fewest_whose_limit_is_low_enough(difference, level):
    n = rows_without_discordance(difference, level)
    assert buehler_limit(0, 0, n, level) <= difference < buehler_limit(0, 0, n - 1, level)


def test_tangos_limit_errs_at_most_eight_per_cent_too_often_where_it_is_used_unchecked():
    rng, worst = np.random.default_rng(6), 0.0
    for _ in range(30):
        level, n = float(rng.choice([0.9, 0.95, 0.99, 0.999, 0.9999])), int(np.exp(rng.uniform(5, 11)))
        size = float(np.exp(rng.uniform(-9, -2)))
        steps = np.sqrt(n * max(80 / n, size)) + np.arange(0, 12, 0.25)
        discordances = np.minimum(steps**2 / n, 0.6)
        discordances = discordances[tango_suffices(n, size, discordances, level)]
        for difference in (size, -size) if discordances.size else ():
            errors = probabilities_within(Truth(n, difference, discordances), difference, float(ndtri(level)))
            worst = max(worst, float(errors.max()) / (1 - level))
    assert 1 < worst <= 1.08
