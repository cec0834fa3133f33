from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtri

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import paired_difference_bounds, tango_statistic
from pytest_modelserve.stats.paired_proportions import buehler_limit, tango_limit


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


def test_interval_widens_with_its_levels_and_when_n_shrinks():
    tables = [(12, 3, 400, 0.95), (12, 3, 400, 0.995), (3, 1, 100, 0.995)]
    bounds = [paired_difference_bounds(*table, low_level=level, high_level=level) for *table, level in tables]
    widths = [b.high - b.low for b in bounds]
    assert widths == sorted(widths)


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
