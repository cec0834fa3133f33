from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import ndtri
from scipy.stats import norm

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import tango_statistic
from pytest_modelserve.stats.paired_proportions import tango_limit


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


def test_the_statistic_refuses_impossible_arguments():
    with pytest.raises(UsageError, match=r"^lost and gained are counts of rows among n >= 1 rows, together at most n$"):
        tango_statistic([1, np.nan], 2, 10, 0.0)
    with pytest.raises(UsageError, match=r"^a difference of two shares lies from -1 to 1$"):
        tango_statistic(1, 2, 10, [0.0, 1.5])
