from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import ndtri
from scipy.stats import norm

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import paired_difference_bounds, tango_statistic


def two_sided(lost, gained, n, level):
    end = (1 + level) / 2
    return paired_difference_bounds(lost, gained, n, low_level=end, high_level=end)


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
    bounds = two_sided(lost, gained, n, level)
    digits = 5e-4 if round(low, 3) == low and round(high, 3) == high else 5e-5
    assert (bounds.low, bounds.high) == pytest.approx((low, high), abs=1.01 * digits)


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
    z_low, z_high = norm.ppf([0.999, 0.95])
    bounds = paired_difference_bounds(0, 0, n, low_level=0.999, high_level=0.95)
    assert bounds.estimate == 0
    assert bounds.low == pytest.approx(-(z_low**2) / (n + z_low**2), rel=1e-12)
    assert bounds.high == pytest.approx(z_high**2 / (n + z_high**2), rel=1e-12)


@pytest.mark.parametrize("n", [1, 21, 5000])
def test_all_rows_lost_end_at_one_exactly(n):
    z2 = norm.ppf(0.975) ** 2
    bounds = two_sided(n, 0, n, 0.95)
    assert bounds.high == 1.0
    assert bounds.low == pytest.approx((n - z2) / (n + z2), rel=1e-9)


def test_the_bounds_are_rounded_outwards_so_that_no_margin_slips_between_them_and_the_statistic():
    z_low, z_high = ndtri(0.999), ndtri(0.95)
    for lost in range(0, 40, 3):
        bounds = paired_difference_bounds(lost, 5, 500, low_level=0.999, high_level=0.95)
        assert tango_statistic(lost, 5, 500, bounds.high) <= -z_high
        assert tango_statistic(lost, 5, 500, bounds.low) >= z_low


def test_the_bounds_are_where_the_statistic_reaches_its_normal_quantiles():
    z_low, z_high = norm.ppf([0.999, 0.95])
    for lost, gained, n in [(61, 9, 2000), (0, 4, 50), (1, 0, 1_000_000), (20, 20, 40), (3, 0, 4)]:
        bounds = paired_difference_bounds(lost, gained, n, low_level=0.999, high_level=0.95)
        # Absolute as well: near ±1 one float of difference moves the statistic by 1e-8.
        assert tango_statistic(lost, gained, n, bounds.low) == pytest.approx(z_low, rel=1e-6)
        assert tango_statistic(lost, gained, n, bounds.high) == pytest.approx(-z_high, rel=1e-6)


def test_swapping_the_models_mirrors_the_interval():
    one = paired_difference_bounds(17, 4, 300, low_level=0.999, high_level=0.95)
    other = paired_difference_bounds(4, 17, 300, low_level=0.95, high_level=0.999)
    assert (other.estimate, other.low, other.high) == (-one.estimate, -one.high, -one.low)
    np.testing.assert_array_equal(tango_statistic(17, 4, 300, [-0.3, 0.2]), -tango_statistic(4, 17, 300, [0.3, -0.2]))


def test_interval_widens_with_its_levels_and_when_n_shrinks():
    widths = [
        bounds.high - bounds.low
        for bounds in (two_sided(12, 3, 400, 0.9), two_sided(12, 3, 400, 0.99), two_sided(3, 1, 100, 0.99))
    ]
    assert widths == sorted(widths)


def test_the_statistic_is_defined_where_the_hypothesis_leaves_no_variance():
    assert tango_statistic(0, 0, 10, 0.0) == 0
    assert tango_statistic(10, 0, 10, 1.0) == 0
    assert tango_statistic(9, 0, 10, 1.0) == -math.inf
    assert tango_statistic(9, 0, 10, -1.0) == math.inf


def test_numpy_counts_give_builtin_floats():
    bounds = paired_difference_bounds(np.int64(3), np.int64(1), np.int64(70), low_level=0.999, high_level=0.95)
    assert [type(value) for value in (bounds.estimate, bounds.low, bounds.high)] == [float] * 3


@pytest.mark.parametrize(
    ("lost", "gained", "n", "message"),
    [
        (0, 0, 0, "n is a count, an integer of at least 1, not 0"),
        (-1, 0, 9, "lost is a count, an integer of at least 0, not -1"),
        (1, 0.5, 9, "gained is a count, an integer of at least 0, not 0.5"),
        (6, 5, 10, "lost and gained rows are among the n rows: 6 + 5 of 10 cannot be"),
    ],
)
def test_impossible_tables_are_refused(lost, gained, n, message):
    with pytest.raises(UsageError) as caught:
        paired_difference_bounds(lost, gained, n, low_level=0.999, high_level=0.95)
    assert str(caught.value) == message


def test_the_statistic_refuses_impossible_arguments():
    with pytest.raises(UsageError, match=r"^lost and gained are counts of rows among n >= 1 rows, together at most n$"):
        tango_statistic([1, np.nan], 2, 10, 0.0)
    with pytest.raises(UsageError, match=r"^a difference of two shares lies from -1 to 1$"):
        tango_statistic(1, 2, 10, [0.0, 1.5])
