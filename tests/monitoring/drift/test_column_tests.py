"""Error rates of the drift tests of columns in simulations; benchmarks/drift_error_rates.py runs many more."""

import numpy as np
import pytest

from pytest_modelserve.evidence import Budget, Verdict
from pytest_modelserve.monitoring import measure_drift, reference_profile
from pytest_modelserve.monitoring.decision import Blocks, decide
from pytest_modelserve.monitoring.drift.column_tests import compare_numbers

BINS = 64


def verdict(comparisons, *, budget, alpha=0.01):
    result = decide([(1.0, comparisons)], budget=budget, alpha=alpha)
    return Budget("at_most", budget).verdict(result.headline.distance, result.interval)


def unchanged(rng, columns, profile_rows, rows):
    """Columns whose bins hold equally many of the profile's rows: the true shares spread around that as they do."""
    for shares in rng.dirichlet(np.full(BINS, profile_rows / BINS), size=columns):
        yield compare_numbers("x", np.full(BINS, profile_rows / BINS), rng.multinomial(rows, shares), blocks=Blocks())


def test_unchanged_data_are_significant_about_as_often_as_alpha_says_and_no_more():
    rng = np.random.default_rng(0)
    failed = [verdict(list(unchanged(rng, 5, 640, 400)), budget=1e-9, alpha=0.05) is Verdict.FAIL for _ in range(600)]
    assert 0.01 < np.mean(failed) <= 0.05 + 3 * (0.05 * 0.95 / 600) ** 0.5


@pytest.mark.parametrize(("rows", "fewest", "most"), [(50, 0, 0), (300, 0, 0), (1500, 290, 300)])
def test_unchanged_data_pass_with_enough_rows_and_fail_with_none(rows, fewest, most):
    rng = np.random.default_rng(1)
    found = [verdict(list(unchanged(rng, 5, 6400, rows)), budget=0.10) for _ in range(300)]
    assert found.count(Verdict.FAIL) <= 3  # alpha is 0.01
    assert fewest <= found.count(Verdict.PASS) <= most


@pytest.mark.parametrize("rows", [400, 1500, 6000])
def test_a_column_truly_at_its_budget_passes_in_fewer_than_five_per_cent_of_samples(rows):
    # All bins but one hold equal shares; the first holds the budget more, so that the distance is exactly that.
    rng, passed, budget = np.random.default_rng(2), 0, 0.10
    then = np.full(BINS, 1 / BINS)
    now = then * (1 - budget / (1 - 1 / BINS))
    now[0] = 1 - now[1:].sum()
    assert np.abs(np.cumsum(now) - np.cumsum(then)).max() == pytest.approx(budget)
    for _ in range(500):
        counts = rng.multinomial(6400, then), rng.multinomial(rows, now)
        passed += verdict([compare_numbers("x", *counts, blocks=Blocks())], budget=budget) is Verdict.PASS
    assert passed <= 25


@pytest.mark.parametrize("turn", [lambda rows: rows, lambda rows: rows.astype(int), lambda rows: rows * 250.5 - 3])
def test_two_values_are_compared_like_two_categories_whatever_they_are(turn):
    then, now = (np.random.default_rng(seed).random(20_000) < share for seed, share in ((0, 0.002), (1, 0.006)))
    texts = [np.where(rows, "yes", "no") for rows in (then, now)]
    found = []
    for before, after in ((turn(then), turn(now)), texts):
        profile = reference_profile({"fraud": before})
        evidence = measure_drift({"fraud": after}, profile, max_distance=0.003, block=1)
        found.append((evidence.verdict, evidence.details["distances"]["fraud"]))
    assert found[0] == found[1]
    assert found[0][0] is Verdict.FAIL


def test_a_rare_amount_among_zeros_that_doubles_is_found():
    def amounts(rng, share):
        return {"refund": np.where(rng.random(50_000) < share, rng.lognormal(3, 1, 50_000), 0.0)}

    rng = np.random.default_rng(0)
    profile = reference_profile(amounts(rng, 0.002))
    found = [measure_drift(amounts(rng, share), profile, max_distance=0.001, block=1) for share in (0.002, 0.004)]
    assert [evidence.verdict is Verdict.FAIL for evidence in found] == [False, True]


@pytest.mark.parametrize(
    "shares",
    [[0.998, 0.002], [0.5, 0.5], [0.97, 0.02, 0.005, 0.005], [0.9, *[0.001] * 100]],
    ids=["0.2 %", "half", "4 values", "zeros in 90 %"],
)
def test_unchanged_rare_values_are_significant_no_more_often_than_alpha(shares):
    rng, p_values = np.random.default_rng(7), []
    for _ in range(1000):
        counts = rng.multinomial(2000, shares), rng.multinomial(1500, shares)
        p_values.append(compare_numbers("x", *counts, blocks=Blocks()).p_value)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05 + 2 * (0.05 * 0.95 / 1000) ** 0.5


def test_half_a_deviation_in_one_of_twenty_columns_is_always_found():
    rng, edges = np.random.default_rng(5), np.linspace(-2, 2, BINS - 1)

    def counted(values):
        return np.bincount(np.searchsorted(edges, values), minlength=BINS)

    for _ in range(15):
        columns = [
            compare_numbers("x", counted(rng.normal(size=10_000)), counted(rng.normal(shift, 1, 1000)), blocks=Blocks())
            for shift in (0.5, *[0.0] * 19)
        ]
        assert verdict(columns, budget=0.10) is Verdict.FAIL
