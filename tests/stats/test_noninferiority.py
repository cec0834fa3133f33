from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
from scipy.stats import binom, multinomial, norm

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import noninferiority_power, paired_difference_bounds, rows_needed
from pytest_modelserve.stats.paired_proportions import tango_limit

RATES = {"confidence": 0.95, "alpha": 0.001}


@cache
def bounds_of_every_table(n):
    tables = [(lost, gained) for lost in range(n + 1) for gained in range(n + 1 - lost)]
    return {table: paired_difference_bounds(*table, n, low_level=0.98, high_level=0.9) for table in tables}


def shares_of_every_table(n, discordance, difference, margin):
    """The verdict shares the slow way: the interval of each possible table, weighted with the table's probability."""
    cells = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    passes = inconclusive = fails = 0.0
    for (lost, gained), bounds in bounds_of_every_table(n).items():
        chance = multinomial.pmf([lost, gained, n - lost - gained], n, cells)
        passes += chance * (bounds.high <= margin)
        fails += chance * (bounds.low > margin)
        inconclusive += chance * (bounds.low <= margin < bounds.high)
    return passes, inconclusive, fails


@pytest.mark.parametrize(
    ("discordance", "difference", "margin"),
    [(0.5, 0.1, 0.2), (0.3, 0.0, 0.25), (0.3, 0.3, 0.1), (0.6, -0.2, -0.05), (1.0, 0.5, 0.0)],
)
def test_shares_equal_those_of_every_table_judged_by_its_interval(discordance, difference, margin):
    n = 9
    shares = noninferiority_power(
        n, discordance=discordance, difference=difference, margin=margin, confidence=0.9, alpha=0.02
    )
    expected = shares_of_every_table(n, discordance, difference, margin)
    assert dataclasses.astuple(shares) == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("margin", [0.005, 0.01, 0.02, 0.03, 0.05])
@pytest.mark.parametrize("n", [50, 268, 1018, 2585, 10_000, 100_000])
def test_neither_verdict_is_wrong_more_than_a_tenth_too_often_at_the_margin(n, margin):
    # From discordance equal to the margin, where no row is gained, to 20 %.
    gained = np.array([0.0, 0.4, 1.1, 2.3]) ** 2 / n
    discordances = [*(margin + 2 * gained).tolist(), 0.1, 0.2]
    for discordance in discordances:
        shares = noninferiority_power(n, discordance=discordance, difference=margin, margin=margin, **RATES)
        assert shares.passes <= 0.055
        assert shares.fails <= 0.0011


def test_the_error_comes_close_to_what_is_tolerated_and_to_nominal_where_rows_are_many():
    # At n = 289 none discordant passes for the first time; Tango's limit would allow it at 268, with 6.76 %.
    begins = noninferiority_power(289, discordance=0.01, difference=0.01, margin=0.01, **RATES)
    assert begins.passes == pytest.approx(0.99**289, rel=1e-9)
    assert begins.passes == pytest.approx(0.0548, abs=1e-4)
    assert noninferiority_power(268, discordance=0.01, difference=0.01, margin=0.01, **RATES).passes == 0
    # Tango's limit would fail it at 0.4 %.
    few = noninferiority_power(1018, discordance=0.0125, difference=0.01, margin=0.01, **RATES)
    assert 0.0008 < few.fails < 0.0011
    large = noninferiority_power(100_000, discordance=0.3, difference=0.01, margin=0.01, **RATES)
    assert large.passes == pytest.approx(0.05, abs=2e-4)
    assert large.fails == pytest.approx(0.001, abs=2e-5)


def test_where_tango_keeps_his_level_no_power_is_lost():
    # At 1,400 rows and 2 points his limit passes at most 5.2 % of models on their margin, whatever their discordance.
    totals = np.arange(140)
    lost = np.arange(140)[:, None]
    passes = (tango_limit(lost, np.maximum(totals - lost, 0), 1400, norm.ppf(0.95)) <= 0.02) & (lost <= totals)
    for discordance in (0.001, 0.02, 0.05):
        chances = binom.pmf(totals, 1400, discordance) * binom.pmf(lost, totals, 0.5)
        power = noninferiority_power(1400, discordance=discordance, difference=0, margin=0.02, **RATES).passes
        assert power == pytest.approx(chances[passes].sum(), abs=1e-10)


def test_simulated_intervals_miss_as_often_as_enumerated():
    n, discordance, difference, repeats = 150, 0.06, 0.02, 6000
    cells = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    tables = np.random.default_rng(2).multinomial(n, cells, size=repeats)[:, :2]
    counted, times = np.unique(tables, axis=0, return_counts=True)
    misses = sum(
        count
        for (lost, gained), count in zip(counted.tolist(), times.tolist(), strict=True)
        if paired_difference_bounds(lost, gained, n, low_level=0.999, high_level=0.95).high < difference
    )
    exact = noninferiority_power(n, discordance=discordance, difference=difference, margin=difference, **RATES).passes
    assert exact == pytest.approx(0.05, abs=0.01)
    assert misses / repeats == pytest.approx(exact, abs=4 * (0.05 * 0.95 / repeats) ** 0.5)


def test_shares_add_up_to_one_for_many_rows():
    shares = noninferiority_power(1_000_000, discordance=0.3, difference=0.0005, margin=0.001, **RATES)
    assert sum(dataclasses.astuple(shares)) == pytest.approx(1, abs=1e-12)
    assert [type(share) for share in dataclasses.astuple(shares)] == [float] * 3


def test_power_grows_with_rows_and_shrinks_with_the_drop():
    by_rows = [noninferiority_power(n, discordance=0.1, difference=0, margin=0.02, **RATES).passes for n in (500, 2000)]
    by_drop = [
        noninferiority_power(2000, discordance=0.1, difference=drop, margin=0.02, **RATES).passes
        for drop in (-0.01, 0.0, 0.01)
    ]
    assert by_rows == sorted(by_rows)
    assert by_drop == sorted(by_drop, reverse=True)


def test_a_model_far_outside_its_budget_fails():
    assert noninferiority_power(2000, discordance=0.1, difference=0.08, margin=0.01, **RATES).fails > 0.99


@pytest.mark.parametrize(("discordance", "n", "passes"), [(0.0, 288, 0.0), (0.0, 289, 1.0)])
def test_models_that_never_differ_pass_from_the_first_sufficient_row_on(discordance, n, passes):
    assert noninferiority_power(n, discordance=discordance, difference=0, margin=0.01, **RATES).passes == passes


@pytest.mark.parametrize("margin", [0.002, 0.01, 0.2])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_rows_needed_without_discordance_are_the_fewest_that_pass(margin, confidence):
    n = rows_needed(discordance=0, margin=margin, confidence=confidence)
    high = [paired_difference_bounds(0, 0, rows, low_level=0.95, high_level=confidence).high for rows in (n - 1, n)]
    assert high[1] <= margin < high[0]


@pytest.mark.parametrize("margin", [0.01, 0.02, 0.05])
@pytest.mark.parametrize(
    ("discordance", "difference", "least", "most"),
    [
        (0.001, 0.0, 0.83, 0.97),  # few discordant rows: the power moves in steps
        (0.005, 0.0, 0.83, 0.97),
        (0.02, 0.0, 0.89, 0.94),
        (0.1, 0.0, 0.895, 0.91),
        (0.1, 0.005, 0.89, 0.92),
        (0.1, -0.02, 0.88, 0.93),
        (0.3, 0.0, 0.899, 0.905),
    ],
)
def test_rows_needed_give_about_the_power_asked_for(margin, discordance, difference, least, most):
    n = rows_needed(discordance=discordance, margin=margin, difference=difference, confidence=0.95, power=0.9)
    passes = noninferiority_power(n, discordance=discordance, difference=difference, margin=margin, **RATES).passes
    assert least < passes < most


def test_rows_needed_count_with_the_variance_that_a_large_true_drop_leaves():
    truth = {"discordance": 0.5, "difference": 0.2, "margin": 0.3}
    passes = noninferiority_power(rows_needed(**truth, confidence=0.95), **truth, **RATES).passes
    assert passes == pytest.approx(0.9, abs=0.005)


def test_rows_needed_near_the_textbook_formula_where_discordance_is_far_above_the_margin():
    z = norm.ppf(0.95) + norm.ppf(0.9)
    n = rows_needed(discordance=0.3, margin=0.01, difference=0.002, confidence=0.95, power=0.9)
    assert n == pytest.approx(z**2 * (0.3 - 0.002**2) / (0.01 - 0.002) ** 2, rel=0.001)


@pytest.mark.parametrize(("difference", "margin"), [(0.01, 0.01), (0.03, 0.01), (0.0, 0.0)])
def test_no_number_of_rows_suffices_for_a_drop_at_the_margin(difference, margin):
    with pytest.raises(UsageError) as caught:
        rows_needed(discordance=0.05, margin=margin, difference=difference, confidence=0.95)
    assert str(caught.value) == (
        f"no number of rows makes PASS likely for a true drop of {difference}: it is not below the margin {margin}"
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n": 0}, "n is a count, an integer of at least 1, not 0"),
        ({"discordance": 1.2}, "discordance is a share from 0 to 1, not 1.2"),
        ({"discordance": float("nan")}, "discordance is a share from 0 to 1, not nan"),
        ({"difference": -0.2}, "a drop of -0.2 needs a discordance of at least 0.2, not 0.1"),
        ({"difference": float("nan")}, "a drop of nan needs a discordance of at least nan, not 0.1"),
        ({"margin": 1.0}, "margin is a difference of two shares, above -1 and below 1, not 1.0"),
        ({"confidence": 95}, "confidence is a probability above 0.5 and below 1 (0.95, say), not 95"),
        ({"alpha": 0.0}, "alpha is a probability above 0 and below 0.5 (0.001, say), not 0.0"),
    ],
)
def test_impossible_arguments_are_refused(changed, message):
    arguments = {"n": 100, "discordance": 0.1, "difference": 0.0, "margin": 0.01, **RATES, **changed}
    with pytest.raises(UsageError) as caught:
        noninferiority_power(arguments.pop("n"), **arguments)
    assert str(caught.value) == message


def test_a_power_of_a_coin_toss_is_refused():
    with pytest.raises(UsageError, match=r"^power is a probability above 0.5 and below 1"):
        rows_needed(discordance=0.1, margin=0.01, confidence=0.95, power=0.5)
