"""The data-quality gate: rules, rates, and its three verdicts."""

import math
import re
from datetime import UTC, datetime

import numpy as np
import pytest
from scipy.stats import binomtest, fisher_exact

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Verdict
from pytest_modelserve.evidence.failure_text import failure_text
from pytest_modelserve.monitoring import measure_data_quality, reference_profile


@pytest.fixture
def profile(people):
    return reference_profile(people(10_000, 0), name="training")


def figures(evidence, rate):
    """Value, upper bound and chance of one rate."""
    return evidence.details["rates"][rate]


def test_data_like_the_profile_pass(people, profile):
    evidence = measure_data_quality(people(2000, 1), profile, max_rate=0.01)
    assert evidence.verdict is Verdict.PASS
    assert [quantity.name for quantity in evidence.quantities] == ["rate increase", "broken rules"]
    assert (evidence.findings, evidence.advice) == ((), "")
    assert (evidence.gate, evidence.alpha, evidence.confidence) == ("data quality", 0.001, 0.95)


def test_every_broken_rule_is_reported(people, profile):
    window = people(500, 1)
    window["Age"] = window.pop("age")
    window["extra"] = np.arange(500)
    window["member"] = np.full(500, 0.5)
    window["children"] = np.full(500, 2)
    window["city"] = ["Bern"] * 500
    window["street"] = [None] * 500
    evidence = measure_data_quality(window, profile, max_rate=0.01, name="last night")
    assert evidence.verdict is Verdict.FAIL
    assert evidence.quantities[0].name == "broken rules"
    assert evidence.quantities[0].value == 6
    assert evidence.advice.endswith("; exclude= leaves columns out")
    assert evidence.findings[:6] == (
        "column 'age' is missing; is the new column 'Age' its new name?",
        "column 'extra' is not in the profile",
        "column 'member' holds 0.5 in row 0, the profile booleans",
        "column 'children' is 2 in every row; in the profile it varies",
        "column 'city' is 'Bern' in every row; in the profile it varies",
        "column 'street' is null in every row",
    )


def test_infinities_break_a_rule_where_the_profile_makes_so_many_impossible(people, profile):
    window = people(2000, 1)
    window["age"][:12] = [math.inf, -math.inf, math.inf] * 4
    evidence = measure_data_quality(window, profile, max_rate=0.01)
    assert evidence.findings == ("column 'age' is infinite in 12 of 2,000 rows",)
    assert failure_text(evidence).startswith(
        "data quality: the data break a rule, or a rate of faulty rows exceeds max_rate\n\n"
        "  broken rules 1\n  sample     n = 2000 rows\n"
    )


def test_few_infinities_are_a_rate_where_the_profile_has_none(people, profile):
    window = people(2000, 1)
    window["age"][:3] = math.inf
    evidence = measure_data_quality(window, profile, max_rate=0.01)
    assert evidence.verdict is Verdict.PASS
    chance = fisher_exact([[3, 1997], [0, 10_000]], alternative="greater").pvalue
    assert figures(evidence, "age: infinite")[2] == pytest.approx(chance, rel=5e-3)


def test_rare_infinities_that_a_small_profile_missed_fail_no_unchanged_data():
    def ratios(rng, rows):
        return {"ratio": np.where(rng.random(rows) < 0.002, math.inf, rng.lognormal(size=rows))}

    for seed in range(30):
        rng = np.random.default_rng(seed)
        profile = reference_profile(ratios(rng, 500))
        assert measure_data_quality(ratios(rng, 5000), profile, max_rate=0.02).verdict is not Verdict.FAIL


def test_infinities_are_a_rate_where_the_profile_has_some():
    values = np.arange(10_000.0)
    values[:100] = math.inf
    profile = reference_profile({"x": values})
    rng = np.random.default_rng(0)
    usual = np.where(rng.random(2000) < 0.01, math.inf, rng.uniform(200, 9000, 2000))
    assert measure_data_quality({"x": usual}, profile, max_rate=0.02).verdict is Verdict.PASS
    many = np.where(rng.random(2000) < 0.1, -math.inf, usual)
    evidence = measure_data_quality({"x": many}, profile, max_rate=0.02)
    assert evidence.verdict is Verdict.FAIL
    assert evidence.findings[0].startswith("'x' infinite in 1.0 % → ")


def test_missing_columns_fail_by_the_rule_alone(profile):
    evidence = measure_data_quality({"other": [1, 2]}, profile, max_rate=0.01)
    assert [quantity.name for quantity in evidence.quantities] == ["broken rules"]
    assert evidence.verdict is Verdict.FAIL
    assert evidence.quantities[0].value == 6


@pytest.mark.parametrize("rows", [1, 2])
def test_a_row_or_two_of_one_value_are_no_constant_column(people, profile, rows):
    window = {name: values[:1].repeat(rows) for name, values in people(5, 1).items()}
    evidence = measure_data_quality(window, profile, max_rate=0.01)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert evidence.quantities[1].value == 0


def test_a_column_that_is_nearly_always_zero_may_be_so_for_a_window():
    values = np.zeros(10_000)
    values[:100] = 1
    profile = reference_profile({"x": np.random.default_rng(0).permutation(values)})
    assert measure_data_quality({"x": np.zeros(500)}, profile, max_rate=0.05).verdict is Verdict.PASS
    assert measure_data_quality({"x": np.zeros(5000)}, profile, max_rate=0.05).verdict is Verdict.FAIL


@pytest.mark.parametrize(("share", "verdict"), [(0.02, Verdict.PASS), (0.05, Verdict.FAIL)])
def test_nulls_are_held_against_those_of_the_profile(share, verdict):
    rng = np.random.default_rng(1)

    def draw(rows, nulls):
        return {"x": np.where(rng.random(rows) < nulls, np.nan, rng.normal(size=rows))}

    profile = reference_profile(draw(20_000, 0.02))
    evidence = measure_data_quality(draw(5000, share), profile, max_rate=0.01)
    assert evidence.verdict is verdict


def test_null_rate_has_the_p_value_and_the_bound_of_scipy():
    then, now = np.arange(4000.0), np.arange(1000.0)
    then[:40], now[:25] = np.nan, np.nan
    evidence = measure_data_quality({"x": now + 30}, reference_profile({"x": then}, block=1), max_rate=0.01)
    value, high, p_value = figures(evidence, "x: null")
    assert value == pytest.approx(0.025 - 0.01)
    above = binomtest(25, 1000, alternative="less").proportion_ci(0.95).high - 0.025
    below = 0.01 - binomtest(40, 4000, alternative="greater").proportion_ci(0.95).low
    assert high == pytest.approx(0.015 + math.hypot(above, below), abs=1e-5)
    assert p_value == pytest.approx(fisher_exact([[25, 975], [40, 3960]], "greater").pvalue, rel=5e-3)


def test_above_the_budget_and_not_significant_is_no_failure():
    then = np.random.default_rng(2).normal(size=200)
    now = then[:20].copy()
    now[0] = np.nan
    evidence = measure_data_quality({"x": now}, reference_profile({"x": then}), max_rate=0.01)
    assert figures(evidence, "x: null")[0] > 0.01
    assert evidence.verdict is Verdict.INCONCLUSIVE


def test_values_out_of_range_are_reported_with_the_range(people, profile):
    window = people(2000, 1)
    window["age"][np.random.default_rng(3).random(2000) < 0.03] *= 3
    evidence = measure_data_quality(window, profile, max_rate=0.01)
    assert evidence.verdict is Verdict.FAIL
    column = profile.column("age")
    outside = int((window["age"] > column.maximum).sum() + (window["age"] < column.minimum).sum())
    assert evidence.findings == (
        f"'age' outside [{column.minimum:.6g}, {column.maximum:.6g}] in {outside} of 2,000 rows, with values from "
        f"{window['age'].min():.6g} to {window['age'].max():.6g}",
    )


def test_one_row_out_of_range_is_inconclusive_at_a_tight_budget(people, profile):
    window = people(2000, 1)
    window["age"][7] = 120
    assert measure_data_quality(window, profile, max_rate=0.0015).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("value", [4000, -4000])
def test_one_row_a_hundredfold_of_what_was_seen_breaks_a_rule(people, profile, value):
    window = people(2000, 1)
    window["age"][7] = value
    evidence = measure_data_quality(window, profile, max_rate=0.01)
    assert evidence.verdict is Verdict.FAIL
    column = profile.column("age")
    outside = max(value - column.maximum, column.minimum - value) / (column.maximum - column.minimum)
    assert evidence.findings == (
        f"column 'age' holds {value}, outside [{column.minimum:.6g}, {column.maximum:.6g}] by {outside:.1f} times the "
        "width of that range",
    )


def test_heavy_tails_break_no_rule_ten_widths_away():
    rng = np.random.default_rng(3)
    profile = reference_profile({"x": rng.standard_cauchy(10_000)})
    column, window = profile.column("x"), rng.standard_cauchy(2000)
    window[7] = column.maximum + 10 * (column.maximum - column.minimum)
    evidence = measure_data_quality({"x": window}, profile, max_rate=0.01)
    assert evidence.verdict is Verdict.PASS


def test_a_constant_column_is_reported_once(people, profile):
    evidence = measure_data_quality(people(2000, 1) | {"age": np.full(2000, 40.0)}, profile, max_rate=0.01)
    told = [finding for finding in evidence.findings if "'age'" in finding]
    assert told == ["column 'age' is 40 in every row; in the profile it varies"]


def test_new_categories_are_named(people, profile):
    window = people(2000, 1)
    rng = np.random.default_rng(4)
    window["city"] = np.where(rng.random(2000) < 0.05, rng.choice(["Wien", "Genf"], 2000, p=[0.8, 0.2]), window["city"])
    evidence = measure_data_quality(window, profile, max_rate=0.01)
    assert evidence.verdict is Verdict.FAIL
    wien, genf = (int((window["city"] == name).sum()) for name in ("Wien", "Genf"))
    assert evidence.findings == (
        f"'city' has a new category in {wien + genf} of 2,000 rows: 'Wien' ({wien}), 'Genf' ({genf})",
    )


def test_hashed_columns_have_no_rate_of_new_categories(people, profile):
    rates = measure_data_quality(people(500, 1), profile, max_rate=0.01).details["rates"]
    assert {rate for rate in rates if rate.endswith("new category")} == {"city: new category"}


def test_too_few_rows_say_how_many_would_do_and_those_do(people, profile):
    evidence = measure_data_quality(people(100, 1), profile, max_rate=0.01)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert evidence.advice == "provide about 628 rows in place of 100, or raise max_rate"
    passed = [measure_data_quality(people(628, seed), profile, max_rate=0.01).verdict for seed in range(2, 22)]
    assert passed.count(Verdict.PASS) >= 18
    assert Verdict.FAIL not in passed


def test_too_small_a_profile_is_said_to_be_so(people):
    evidence = measure_data_quality(people(2000, 1), reference_profile(people(100, 0)), max_rate=0.01)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    advice = re.fullmatch(
        r"the profile has too few rows \(100\) to compare rates of faulty rows to within max_rate: profile about ([\d,]+) "
        r"rows and test as many, or raise max_rate",
        evidence.advice,
    )
    rows = int(advice[1].replace(",", ""))
    profiles = (reference_profile(people(rows, 2 * seed)) for seed in range(1, 21))
    passed = [
        measure_data_quality(people(rows, 2 * seed + 1), p, max_rate=0.01).passed for seed, p in enumerate(profiles)
    ]
    assert sum(passed) >= 18


def test_blocks_of_the_profile_make_rows_count_less(people):
    plain, blocked = (reference_profile(people(10_000, 0), block=block) for block in (None, 50))
    assert measure_data_quality(people(2000, 1), plain, max_rate=0.01).verdict is Verdict.PASS
    assert measure_data_quality(people(2000, 1), blocked, max_rate=0.01).verdict is Verdict.INCONCLUSIVE


def test_unchanged_data_fail_less_often_than_alpha():
    # 100 worlds at an alpha of 0.05 and a budget of next to nothing, so that significance alone decides.
    rng, failed = np.random.default_rng(5), 0
    shares = 1 / np.arange(1, 60) ** 1.2

    def draw(rows):
        age = np.where(rng.random(rows) < 0.03, np.nan, rng.standard_cauchy(rows))
        names = np.array([f"n{index}" for index in rng.choice(59, rows, p=shares / shares.sum())])
        return {"age": age, "name": names, "count": rng.poisson(2, rows)}

    for _ in range(100):
        profile = reference_profile(draw(400))
        failed += measure_data_quality(draw(300), profile, max_rate=1e-9, alpha=0.05).verdict is Verdict.FAIL
    assert failed <= 0.05 * 100 + 2 * math.sqrt(100 * 0.05 * 0.95)


@pytest.mark.parametrize("budget", [0, 1, -0.1, math.nan])
def test_a_budget_out_of_range_is_refused(people, profile, budget):
    with pytest.raises(UsageError, match=r"max_rate must lie between 0 and 1 \(0\.01, for example\); got"):
        measure_data_quality(people(10, 1), profile, max_rate=budget)


def test_a_profile_of_the_data_gives_the_findings_of_the_data(people, profile):
    window = people(2000, 1)
    window["age"][:40] = np.nan
    window["age"][40:60] = 120
    window["city"] = np.where(np.arange(2000) < 30, "Wien", window["city"])
    window["city"][window["city"] == "Linz"] = "Graz"
    window["children"][100:] = window["children"][:-100].copy()
    evidence = measure_data_quality(window, profile, max_rate=0.001, name="night")
    counted = measure_data_quality(
        reference_profile(window, like=profile, name="night"), profile, max_rate=0.001, name="night"
    )
    assert evidence.verdict is Verdict.FAIL
    assert counted.findings[:-1] == evidence.findings[:-1]
    repeated = {rate for rate in evidence.details["rates"] if rate.endswith("repeated value")}
    assert repeated == {"age: repeated value", "children: repeated value", "street (length): repeated value"}
    shared = evidence.details["rates"].keys() - repeated
    assert counted.details["rates"] == {rate: evidence.details["rates"][rate] for rate in shared}


def test_a_closed_column_holds_no_new_category(people, profile):
    window = people(2000, 1)
    assert measure_data_quality(window, profile, max_rate=0.01, closed=("city",)).verdict is Verdict.PASS
    window["city"] = np.where(np.arange(2000) == 5, "Wien", window["city"])
    assert measure_data_quality(window, profile, max_rate=0.01).verdict is Verdict.PASS
    evidence = measure_data_quality(window, profile, max_rate=0.01, closed=("city",))
    assert evidence.verdict is Verdict.FAIL
    assert evidence.findings == ("column 'city' is closed, but has categories that are not in the profile: 'Wien' (1)",)


def test_a_lost_category_fails(people, profile):
    window = people(2000, 1)
    window["city"][window["city"] == "Linz"] = "Bern"
    evidence = measure_data_quality(window, profile, max_rate=0.01)
    assert evidence.verdict is Verdict.FAIL
    linz = dict(zip(profile.column("city").categories, profile.column("city").counts, strict=True))["Linz"]
    assert evidence.findings == (
        f"'city' lost categories with {linz / 100:.1f} % of the profile's rows: 'Linz' ({linz:,})",
    )


def test_a_value_that_was_filled_in_fails(people, profile):
    window = people(2000, 1)
    window["age"][np.random.default_rng(5).random(2000) < 0.03] = 40
    evidence = measure_data_quality(window, profile, max_rate=0.01)
    assert evidence.verdict is Verdict.FAIL
    assert evidence.findings[0].startswith("'age' is 40 in 3.")


def test_rows_that_were_written_twice_fail(people, profile):
    window = {name: np.concatenate((values, values[:60])) for name, values in people(2000, 1).items()}
    evidence = measure_data_quality(window, profile, max_rate=0.01)
    assert evidence.verdict is Verdict.FAIL
    assert evidence.findings == ("60 of 2,060 rows equal an earlier one, 0.0 % → 2.9 % (+2.9 points)",)
    assert figures(evidence, "duplicate rows")[0] == pytest.approx(60 / 2060, abs=1e-5)


def log(rows, seed, *, start="2026-03-01", late=0.01):
    """Rows a minute apart, some of them 10 minutes late."""
    rng = np.random.default_rng(seed)
    minutes = np.arange(rows) * 60 - 600 * (rng.random(rows) < late)
    return {"seen": np.datetime64(start, "s") + minutes.astype("m8[s]"), "x": rng.normal(size=rows)}


def test_times_have_no_range_and_their_order_is_held_against_the_profile():
    profile = reference_profile(log(10_000, 0))
    tomorrow = log(2000, 1, start="2026-03-08")
    assert measure_data_quality(tomorrow, profile, max_rate=0.01).verdict is Verdict.PASS
    evidence = measure_data_quality(log(2000, 2, late=0.05), profile, max_rate=0.01)
    assert evidence.verdict is Verdict.FAIL
    assert evidence.findings[0].startswith("'seen' earlier than the row before in 0.9 % → 4.2 % ")


def test_rows_of_one_day_are_no_column_that_stopped():
    def days(first, rows):
        return {"day": np.datetime64(first, "D") + np.arange(rows) // 500, "x": np.arange(rows) % 7 / 2}

    profile = reference_profile(days("2026-03-01", 15_000))
    evidence = measure_data_quality(days("2026-04-01", 500), profile, max_rate=0.01)
    assert "day: out of order" in evidence.details["rates"]
    assert evidence.quantities[-1].value == 0


def test_times_in_no_order_have_none_to_lose():
    def born(rows, seed):
        return {"born": np.datetime64("1980-01-01", "s") + np.random.default_rng(seed).integers(0, 10**9, rows)}

    evidence = measure_data_quality(born(2000, 1), reference_profile(born(10_000, 0)), max_rate=0.01)
    assert evidence.verdict is Verdict.PASS
    assert set(evidence.details["rates"]) == {"born: null", "duplicate rows"}


def test_the_newest_time_has_a_maximum_age_and_is_not_later_than_now():
    profile, window = reference_profile(log(10_000, 0)), log(1440, 1, start="2026-03-08", late=0)

    def findings(now, **options):
        options = {"max_age_s": {"seen": 3600}, "now": now, **options}
        return measure_data_quality(window, profile, max_rate=0.01, **options).findings

    assert findings(datetime(2026, 3, 9, 0, 30, tzinfo=UTC)) == ()
    assert findings(datetime(2026, 3, 10, 12, tzinfo=UTC)) == (
        "column 'seen' ends at 2026-03-08 23:59:00, 36.0 hours before now; at most 60.0 minutes are allowed (max_age_s)",
    )
    assert findings(datetime(2026, 3, 8, 12, tzinfo=UTC)) == (
        "column 'seen' has 2026-03-08 23:59:00, which is later than now, 2026-03-08 12:00:00",
    )
    window["seen"] = np.full(1440, np.datetime64("NaT", "s"))
    assert findings(datetime(2026, 3, 9, tzinfo=UTC)) == (
        "column 'seen' is null in every row",
        "column 'seen' has no time; its newest may be 60.0 minutes old (max_age_s)",
        "'seen' null in 0.0 % → 100.0 % (+100.0 points)",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"closed": "city"}, "closed must be a collection of column names; got a string: pass ('city',)"),
        ({"closed": ("City",)}, "closed: unknown column 'City': did you mean 'city'? Known"),
        ({"closed": ("age",)}, "closed: column 'age' has no categories in the profile"),
        ({"closed": ("street",)}, "closed: column 'street' has more than 100 categories in the profile, or a long one"),
        ({"now": 0}, "max_age_s and now must be given together: ages are measured from a time that you choose"),
        ({"max_age_s": {"age": 60}, "now": 0}, "max_age_s: column 'age' has no times in the profile"),
        ({"max_age_s": {"seen": 0}, "now": 0}, "max_age_s of 'seen' must be a positive number of seconds; got 0"),
        ({"max_age_s": {"seen": 60}, "now": datetime(2026, 3, 1)}, "now must have a time zone"),
        ({"max_age_s": {"seen": 60}, "now": "today"}, "now must be a datetime with a time zone, or seconds since 1970"),
    ],
)
def test_declarations_that_do_not_fit_the_profile_are_refused(people, options, message):
    profile = reference_profile(people(1000, 0) | {"seen": log(1000, 0)["seen"]})
    with pytest.raises(UsageError) as caught:
        measure_data_quality(people(10, 1), profile, max_rate=0.01, **options)
    assert str(caught.value).startswith(message)
