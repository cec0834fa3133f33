"""Power and sample sizes against enumeration and simulation."""

import dataclasses
from functools import cache

import numpy as np
import pytest
from scipy.stats import binom, multinomial, norm

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import (
    VerdictProbabilities,
    mean_bounds,
    mean_power,
    noninferiority_power,
    paired_difference_bounds,
    rows_needed,
    values_needed,
)
from pytest_modelserve.stats.paired_proportions import buehler_limit, tango_limit

RATES = {"confidence": 0.95, "alpha": 0.001}


@cache
def bounds_of_every_table(n):
    tables = [(lost, gained) for lost in range(n + 1) for gained in range(n + 1 - lost)]
    return {table: paired_difference_bounds(*table, n, low_level=0.98, high_level=0.9) for table in tables}


def probabilities_of_every_table(n, discordance, difference, margin):
    """Probabilities of the verdicts by the interval of each possible table, weighted with its probability."""
    cells = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    passes = inconclusive = fails = 0.0
    for (lost, gained), bounds in bounds_of_every_table(n).items():
        probability = multinomial.pmf([lost, gained, n - lost - gained], n, cells)
        passes += probability * (bounds.high <= margin)
        fails += probability * (bounds.low > margin)
        inconclusive += probability * (bounds.low <= margin < bounds.high)
    return passes, inconclusive, fails


@pytest.mark.parametrize(
    ("discordance", "difference", "margin"),
    [(0.5, 0.1, 0.2), (0.3, 0.0, 0.25), (0.3, 0.3, 0.1), (0.6, -0.2, -0.05), (1.0, 0.5, 0.0)],
)
def test_probabilities_equal_those_of_the_intervals_of_all_tables(discordance, difference, margin):
    n = 7
    found = noninferiority_power(
        n, discordance=discordance, difference=difference, margin=margin, confidence=0.9, alpha=0.02
    )
    expected = probabilities_of_every_table(n, discordance, difference, margin)
    assert dataclasses.astuple(found) == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("margin", [0.005, 0.01, 0.05])
@pytest.mark.parametrize("n", [50, 268, 1018, 10_000, 100_000])
def test_neither_verdict_is_wrong_more_than_a_tenth_too_often_at_the_margin(n, margin):
    # From discordance equal to the margin, where no row is gained, to 20 %.
    gained = np.array([0.0, 0.4, 1.1, 2.3]) ** 2 / n
    discordances = [*(margin + 2 * gained).tolist(), 0.1, 0.2]
    for discordance in discordances:
        found = noninferiority_power(n, discordance=discordance, difference=margin, margin=margin, **RATES)
        assert found.passes <= 0.055
        assert found.fails <= 0.0011


def test_error_rate_is_near_the_tolerance_for_few_rows_and_near_nominal_for_many():
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
        weights = binom.pmf(totals, 1400, discordance) * binom.pmf(lost, totals, 0.5)
        power = noninferiority_power(1400, discordance=discordance, difference=0, margin=0.02, **RATES).passes
        assert power == pytest.approx(weights[passes].sum(), abs=1e-10)


def test_simulated_intervals_miss_as_often_as_enumerated():
    n, discordance, difference, repeats = 150, 0.06, 0.02, 6000
    cells = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    tables = np.random.default_rng(2).multinomial(n, cells, size=repeats)[:, :2]
    counted, times = np.unique(tables, axis=0, return_counts=True)
    misses = sum(
        count
        for (lost, gained), count in zip(counted.tolist(), times.tolist(), strict=True)
        if buehler_limit(lost, gained, n, 0.95) < difference
    )
    exact = noninferiority_power(n, discordance=discordance, difference=difference, margin=difference, **RATES).passes
    assert exact == pytest.approx(0.05, abs=0.01)
    assert misses / repeats == pytest.approx(exact, abs=4 * (0.05 * 0.95 / repeats) ** 0.5)


def test_probabilities_add_up_to_one_for_many_rows():
    found = noninferiority_power(1_000_000, discordance=0.3, difference=0.0005, margin=0.001, **RATES)
    assert sum(dataclasses.astuple(found)) == pytest.approx(1, abs=1e-12)
    assert [type(each) for each in dataclasses.astuple(found)] == [float] * 3


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
    with pytest.raises(UsageError, match=f"difference must be below the margin {margin}, got {difference}"):
        rows_needed(discordance=0.05, margin=margin, difference=difference, confidence=0.95)


PILOT = np.random.default_rng(0).standard_normal(100)


@pytest.mark.parametrize(("truth", "limit"), [(0.0, 0.25), (0.0, 0.0), (0.5, 0.0)])
def test_probabilities_are_those_of_simulated_samples(truth, limit):
    expected = mean_power(PILOT, truth=truth, limit=limit, **RATES)
    rng, scale = np.random.default_rng(1), PILOT.std(ddof=1)
    found = [
        mean_bounds(truth + scale * rng.standard_normal(100), low_level=0.999, high_level=0.95) for _ in range(1500)
    ]
    assert expected.passes == pytest.approx(np.mean([b.high <= limit for b in found]), abs=0.04)
    assert expected.fails == pytest.approx(np.mean([b.low > limit for b in found]), abs=0.04)
    assert sum(dataclasses.astuple(expected)) == pytest.approx(1)


def test_values_needed_give_their_power():
    for truth, limit in ((0.0, 0.1), (0.3, 0.1)):
        n = values_needed(PILOT, truth=truth, limit=limit, **RATES)
        rng = np.random.default_rng(2)
        sample = rng.standard_normal(n)
        sample = (sample - sample.mean()) / sample.std(ddof=1) * PILOT.std(ddof=1)
        found = mean_power(sample, truth=truth, limit=limit, **RATES)
        assert max(found.passes, found.fails) == pytest.approx(0.9, abs=0.02)


def test_a_single_block_plans_nothing():
    assert mean_power(PILOT, truth=0.0, limit=1.0, block=100, **RATES) == VerdictProbabilities(0.0, 1.0, 0.0)
    assert values_needed(PILOT, truth=0.0, limit=1.0, block=100, **RATES) is None


def test_values_that_do_not_vary_decide_at_once():
    equal = np.zeros(10)
    assert mean_power(equal, truth=0.0, limit=0.0, **RATES) == VerdictProbabilities(1.0, 0.0, 0.0)
    assert mean_power(equal, truth=0.1, limit=0.0, **RATES) == VerdictProbabilities(0.0, 0.0, 1.0)
    assert values_needed(equal, truth=0.1, limit=0.0, **RATES) == 2


def test_skewed_values_take_more_of_them_where_their_long_side_is_judged():
    skewed = np.random.default_rng(4).standard_normal(60) ** 2
    skewed = (skewed - skewed.mean()) / skewed.std(ddof=1)
    above = values_needed(skewed, truth=0.0, limit=0.3, **RATES)
    below = values_needed(-skewed, truth=0.0, limit=0.3, **RATES)
    assert above > below


def test_few_blocks_do_not_make_the_plan_pay_their_wide_interval_for_ever():
    """Two blocks have a t of 318 at 99.9 %; the twenty that would do have one of 3.6."""
    n = values_needed([0.0, 2.0], truth=1.0, limit=0.0, **RATES)
    assert n < 60


def test_no_number_of_values_decides_on_the_limit_itself():
    assert values_needed(PILOT, truth=0.1, limit=0.1, **RATES) is None
    assert values_needed(PILOT, truth=0.1, limit=0.1 + 1e-12, **RATES) is None
    assert values_needed(PILOT, truth=0.0, limit=5e-324, **RATES) is None
