"""The data-quality gate: rules, rates, and the three verdicts over them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, fisher_exact

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring import measure_data_quality, reference_profile
from pytest_modelserve.reporting import failure_text


@pytest.fixture
def profile(people):
    return reference_profile(people(10_000, 0), name="training")


def figures(evidence, rate):
    """Value, upper bound and chance of one rate."""
    return evidence.details["rates"][rate]


def test_whole_data_pass(people, profile):
    evidence = measure_data_quality(people(2000, 1), profile, max_share=0.01)
    assert evidence.verdict is Verdict.PASS
    assert [quantity.name for quantity in evidence.quantities] == ["excess share", "broken rules"]
    assert (evidence.findings, evidence.advice) == ((), "")
    assert (evidence.gate, evidence.alpha, evidence.confidence) == ("data quality", 0.001, 0.95)


def test_every_broken_rule_is_told(people, profile):
    window = people(500, 1)
    window["Age"] = window.pop("age")
    window["extra"] = np.arange(500)
    window["member"] = np.full(500, 0.5)
    window["children"] = np.full(500, 2)
    window["city"] = ["Bern"] * 500
    window["street"] = [None] * 500
    evidence = measure_data_quality(window, profile, max_share=0.01, name="last night")
    assert evidence.verdict is Verdict.FAIL
    assert evidence.quantities[0].name == "broken rules"
    assert evidence.quantities[0].value == 6
    assert evidence.findings[:6] == (
        "column 'age' is missing; is the new column 'Age' its new name?",
        "column 'extra' is not in the profile",
        "column 'member' holds 0.5, the profile booleans",
        "column 'children' is 2 in every row; in the profile it varies",
        "column 'city' is 'Bern' in every row; in the profile it varies",
        "column 'street' is null in every row",
    )


def test_infinities_break_a_rule_where_the_profile_has_none(people, profile):
    window = people(2000, 1)
    window["age"][:3] = [math.inf, -math.inf, math.inf]
    evidence = measure_data_quality(window, profile, max_share=0.01)
    assert evidence.findings == ("column 'age' is infinite in 3 of 2,000 rows",)
    assert failure_text(evidence).startswith("data quality: the data are not whole\n\n  broken rules 1\n")


def test_infinities_are_a_rate_where_the_profile_has_some():
    values = np.arange(10_000.0)
    values[:100] = math.inf
    profile = reference_profile({"x": values})
    rng = np.random.default_rng(0)
    usual = np.where(rng.random(2000) < 0.01, math.inf, rng.uniform(200, 9000, 2000))
    assert measure_data_quality({"x": usual}, profile, max_share=0.02).verdict is Verdict.PASS
    many = np.where(rng.random(2000) < 0.1, -math.inf, usual)
    evidence = measure_data_quality({"x": many}, profile, max_share=0.02)
    assert evidence.verdict is Verdict.FAIL
    assert evidence.findings[0].startswith("'x' infinite in 1.0 % → ")


def test_all_columns_gone_is_judged_by_the_rule_alone(profile):
    evidence = measure_data_quality({"other": [1, 2]}, profile, max_share=0.01)
    assert [quantity.name for quantity in evidence.quantities] == ["broken rules"]
    assert evidence.verdict is Verdict.FAIL
    assert evidence.quantities[0].value == 6


@pytest.mark.parametrize("rows", [1, 2])
def test_a_row_or_two_of_one_value_are_no_constant_column(people, profile, rows):
    window = {name: values[:1].repeat(rows) for name, values in people(5, 1).items()}
    evidence = measure_data_quality(window, profile, max_share=0.01)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert evidence.quantities[1].value == 0


def test_a_column_that_is_nearly_always_zero_may_be_so_for_a_window():
    values = np.zeros(10_000)
    values[:100] = 1
    profile = reference_profile({"x": np.random.default_rng(0).permutation(values)})
    assert measure_data_quality({"x": np.zeros(500)}, profile, max_share=0.05).verdict is Verdict.PASS
    assert measure_data_quality({"x": np.zeros(5000)}, profile, max_share=0.05).verdict is Verdict.FAIL


@pytest.mark.parametrize(("share", "verdict"), [(0.02, Verdict.PASS), (0.05, Verdict.FAIL)])
def test_nulls_are_held_against_those_of_the_profile(share, verdict):
    rng = np.random.default_rng(1)

    def draw(rows, nulls):
        return {"x": np.where(rng.random(rows) < nulls, np.nan, rng.normal(size=rows))}

    profile = reference_profile(draw(20_000, 0.02))
    evidence = measure_data_quality(draw(5000, share), profile, max_share=0.01)
    assert evidence.verdict is verdict


def test_null_rate_has_the_chance_and_the_bound_of_scipy():
    then, now = np.arange(4000.0), np.arange(1000.0)
    then[:40], now[:25] = np.nan, np.nan
    evidence = measure_data_quality({"x": now + 30}, reference_profile({"x": then}, block=1), max_share=0.01)
    value, high, chance = figures(evidence, "x: null")
    assert value == pytest.approx(0.025 - 0.01)
    above = binomtest(25, 1000, alternative="less").proportion_ci(0.95).high - 0.025
    below = 0.01 - binomtest(40, 4000, alternative="greater").proportion_ci(0.95).low
    assert high == pytest.approx(0.015 + math.hypot(above, below), abs=1e-5)
    assert chance == pytest.approx(fisher_exact([[25, 975], [40, 3960]], "greater").pvalue, rel=5e-3)


def test_significant_and_below_the_budget_is_no_failure():
    then, now = np.arange(100_000.0), np.arange(100_000.0)
    now[:2000] = np.nan
    evidence = measure_data_quality({"x": now}, reference_profile({"x": then}), max_share=0.05)
    assert figures(evidence, "x: null")[2] < 1e-100
    assert evidence.verdict is Verdict.PASS


def test_above_the_budget_and_not_significant_is_no_failure():
    then = np.random.default_rng(2).normal(size=200)
    now = then[:20].copy()
    now[0] = np.nan
    evidence = measure_data_quality({"x": now}, reference_profile({"x": then}), max_share=0.01)
    assert figures(evidence, "x: null")[0] > 0.01
    assert evidence.verdict is Verdict.INCONCLUSIVE


def test_values_out_of_range_are_told_with_the_range(people, profile):
    window = people(2000, 1)
    window["age"][np.random.default_rng(3).random(2000) < 0.03] *= 100
    evidence = measure_data_quality(window, profile, max_share=0.01)
    assert evidence.verdict is Verdict.FAIL
    column = profile.column("age")
    outside = int((window["age"] > column.maximum).sum() + (window["age"] < column.minimum).sum())
    assert evidence.findings == (
        f"'age' outside [{column.minimum:.6g}, {column.maximum:.6g}] in {outside} of 2,000 rows, with values from "
        f"{window['age'].min():.6g} to {window['age'].max():.6g}",
    )


def test_one_row_a_hundredfold_of_what_was_seen_is_inconclusive_at_a_tight_budget(people, profile):
    window = people(2000, 1)
    window["age"][7] = 4000
    assert measure_data_quality(window, profile, max_share=0.0015).verdict is Verdict.INCONCLUSIVE


def test_new_categories_are_named(people, profile):
    window = people(2000, 1)
    rng = np.random.default_rng(4)
    window["city"] = np.where(rng.random(2000) < 0.05, rng.choice(["Wien", "Genf"], 2000, p=[0.8, 0.2]), window["city"])
    evidence = measure_data_quality(window, profile, max_share=0.01)
    assert evidence.verdict is Verdict.FAIL
    wien, genf = (int((window["city"] == name).sum()) for name in ("Wien", "Genf"))
    assert evidence.findings == (
        f"'city' of a new category in {wien + genf} of 2,000 rows: 'Wien' ({wien}), 'Genf' ({genf})",
    )


def test_pooled_columns_are_not_watched_for_new_categories(people, profile):
    rates = measure_data_quality(people(500, 1), profile, max_share=0.01).details["rates"]
    assert {rate for rate in rates if rate.endswith("new category")} == {"city: new category"}


def test_too_few_rows_say_how_many_would_do_and_those_do(people, profile):
    evidence = measure_data_quality(people(100, 1), profile, max_share=0.01)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert evidence.advice == "give about 473 rows, or raise max_share"
    passed = [measure_data_quality(people(473, seed), profile, max_share=0.01).verdict for seed in range(2, 42)]
    assert passed.count(Verdict.PASS) >= 36
    assert Verdict.FAIL not in passed


def test_too_small_a_profile_is_said_to_be_so(people):
    evidence = measure_data_quality(people(2000, 1), reference_profile(people(100, 0)), max_share=0.01)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert evidence.advice == ("profile more rows: so few do not tell the shares of faulty rows to max_share")


def test_blocks_of_the_profile_make_rows_count_less(people):
    plain, blocked = (reference_profile(people(10_000, 0), block=block) for block in (None, 50))
    assert measure_data_quality(people(2000, 1), plain, max_share=0.01).verdict is Verdict.PASS
    assert measure_data_quality(people(2000, 1), blocked, max_share=0.01).verdict is Verdict.INCONCLUSIVE


def test_unchanged_data_fail_less_often_than_alpha():
    # 300 worlds at an alpha of 0.05 and a budget of next to nothing, so that significance alone decides.
    rng, failed = np.random.default_rng(5), 0
    shares = 1 / np.arange(1, 60) ** 1.2

    def draw(rows):
        age = np.where(rng.random(rows) < 0.03, np.nan, rng.standard_cauchy(rows))
        names = np.array([f"n{index}" for index in rng.choice(59, rows, p=shares / shares.sum())])
        return {"age": age, "name": names, "count": rng.poisson(2, rows)}

    for _ in range(300):
        profile = reference_profile(draw(400))
        failed += measure_data_quality(draw(300), profile, max_share=1e-9, alpha=0.05).verdict is Verdict.FAIL
    assert failed <= 0.05 * 300 + 2 * math.sqrt(300 * 0.05 * 0.95)


@pytest.mark.parametrize("budget", [0, 1, -0.1, math.nan])
def test_a_budget_out_of_range_is_refused(people, profile, budget):
    with pytest.raises(UsageError) as caught:
        measure_data_quality(people(10, 1), profile, max_share=budget)
    assert str(caught.value) == f"max_share is a share between 0 and 1 (0.01, say), not {budget}"


def test_data_that_cannot_be_read_are_an_error_and_no_verdict(profile):
    with pytest.raises(InputError, match=r"^there are no rows in the data$"):
        measure_data_quality({"age": []}, profile, max_share=0.01)
