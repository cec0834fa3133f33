"""The drift gate: its three verdicts, their messages, and invalid input."""

import math

import numpy as np
import pytest

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Evidence, Verdict
from pytest_modelserve.evidence.failure_text import failure_text
from pytest_modelserve.monitoring import measure_data_quality, measure_drift, reference_profile
from pytest_modelserve.monitoring.decision import Blocks, decide
from pytest_modelserve.monitoring.drift.column_tests import compare_categories, compare_numbers


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_unchanged_data_pass(people):
    evidence = measure_drift(people(3000, 1), reference_profile(people(10_000, 0)), max_distance=0.10)
    assert evidence.verdict is Verdict.PASS
    assert evidence.findings == ()
    assert evidence.advice == ""
    assert evidence.quantities[0].interval.high <= 0.10


def test_a_shift_fails_with_the_golden_failure_text(people, rng):
    profile = reference_profile(people(10_000, 0), name="training")
    window = people(2000, 1, shift=0.5)
    window["member"] = rng.random(2000) < 0.5
    window["city"] = np.where(rng.random(2000) < 0.3, "Wien", window["city"])
    evidence = measure_drift(window, profile, max_distance=0.10, name="last night")
    assert evidence.verdict is Verdict.FAIL
    assert failure_text(evidence) == TOLD.format(digest=profile.digest[:12])
    assert evidence.details["moved"] == ["city", "member", "age"]


TOLD = """\
drift: 3 of 6 columns differ from the profile by more than max_distance

  distance   0.297
  interval   [0.297, 0.330]  low at 99 %, high at 95 %, low end a test of no change (Kolmogorov-Smirnov, Fisher; Holm over 6 columns; normal-score correlations by fourth moments; Holm over 18 pairs), n = 2000 rows
  budget     at most 0.100 (max_distance=0.1)
  verdict    FAIL: the whole interval lies above the budget

  'city' distance 0.297: 'Wien' 0.0 % → 29.7 % (+29.7 points), 'Bern' 50.6 % → 34.8 % (-15.8 points), 'Graz' 29.3 % → 21.4 % (-7.9 points)
  'member' distance 0.211: true in 29.2 % → 50.3 % (+21.1 points)
  'age' distance 0.190: mean 40.08 → 45.84 (+5.76), median 39.89 → 45.72; most gained from 44.3 on: 36.6 % → 55.1 % (+18.5 points)
  candidate  last night
  reference  training  sha256 {digest}…
  next       find the upstream change of these columns; if it is intended, retrain on newer data and profile that data"""


def test_too_few_rows_are_inconclusive_and_say_how_many_would_do(people):
    evidence = measure_drift(people(200, 2), reference_profile(people(10_000, 0)), max_distance=0.10)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert evidence.advice == (
        "provide about 1,012 rows in place of 200 (the 10,000 of the profile are enough), or raise max_distance"
    )
    assert evidence.details["rows"] == 1012
    enough = measure_drift(people(1012, 2), reference_profile(people(10_000, 0)), max_distance=0.10)
    assert enough.verdict is Verdict.PASS


def test_the_budget_that_these_rows_would_have_passed_is_one_that_they_pass(people):
    profile, window = reference_profile(people(10_000, 0)), people(200, 2)
    passed = measure_drift(window, profile, max_distance=0.10).details["passed"]
    assert measure_drift(window, profile, max_distance=math.nextafter(passed, 1)).verdict is Verdict.PASS
    assert measure_drift(window, profile, max_distance=passed - 1e-4).verdict is Verdict.INCONCLUSIVE


def test_planned_rows_pass_unchanged_data_nineteen_times_in_twenty(people):
    """60 unchanged windows of the planned size: a rate of 95 % gives 53 or fewer in 3 % of such tests."""
    profile = reference_profile(people(5000, 0))
    rows = measure_drift(people(200, 1), profile, max_distance=0.10).details["rows"]
    passed = sum(measure_drift(people(rows, seed), profile, max_distance=0.10, block=1).passed for seed in range(2, 62))
    assert passed >= 54


def test_short_profile_and_short_data_say_both_ways_out(people):
    evidence = measure_drift(people(200, 1), reference_profile(people(1200, 0)), max_distance=0.10)
    assert evidence.advice == (
        "provide about 3,922 rows in place of 200 against this profile of 1,200, or profile about 1,838 rows and test as "
        "many, or raise max_distance"
    )


def test_too_small_a_profile_asks_for_a_larger_one(people):
    evidence = measure_drift(people(5000, 1), reference_profile(people(300, 0)), max_distance=0.10)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert evidence.details["rows"] is None
    assert evidence.advice == (
        "the profile has too few rows (300) for data of any size: profile about 1,838 rows and test as many, or raise "
        "max_distance"
    )


def test_a_small_shift_of_many_rows_passes_and_is_mentioned(rng):
    profile = reference_profile({"x": rng.normal(size=100_000)})
    evidence = measure_drift({"x": rng.normal(0.05, 1, 100_000)}, profile, max_distance=0.10)
    assert evidence.verdict is Verdict.PASS
    assert evidence.findings == ("significant, but within max_distance (1): 'x' 0.024",)


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("age", lambda values: np.full(len(values), 40.0)),
        ("age", lambda values: values + 1000),
        ("age", lambda values: np.where(np.arange(len(values)) % 5 == 0, np.inf, values)),
        ("children", lambda values: np.where(values == 3, 4, values) * 2),
        ("children", lambda values: np.where(np.arange(len(values)) % 5 == 0, 40, values)),
        ("member", lambda values: ~values),
        ("city", lambda values: np.where(values == "Linz", "Lienz", values)),
        ("street", lambda values: np.where(np.arange(len(values)) % 5 == 0, "street 1", values)),
    ],
)
def test_a_planted_fault_in_any_kind_of_column_is_found(people, column, change):
    profile, window = reference_profile(people(10_000, 0)), people(2000, 1)
    window[column] = change(window[column])
    evidence = measure_drift(window, profile, max_distance=0.10)
    assert evidence.verdict is Verdict.FAIL
    assert column in evidence.details["moved"]
    assert set(evidence.details["moved"]) <= {column, f"{column} (length)"}


def test_nulls_are_left_out_and_their_rows_do_not_count(people):
    profile, window = reference_profile(people(10_000, 0)), people(3000, 1)
    window["age"] = np.where(np.arange(3000) % 20 == 0, window["age"], np.nan)
    evidence = measure_drift(window, profile, max_distance=0.10)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert evidence.details["rows"] == pytest.approx(1012 * 20, abs=20)
    assert "'age'" in evidence.findings[0]


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_matched_by_position(rng, order):
    profile = reference_profile(rng.normal(size=(5000, 3)), columns=["a", "b", "c"])
    window = np.array(rng.normal([0, 1, 0], 1, size=(3000, 3)), order=order)
    assert measure_drift(window, profile, max_distance=0.10).details["moved"] == ["b"]
    with pytest.raises(InputError, match=r"^data has 2 columns, expected 3 \(a, b, c\)$"):
        measure_drift(window[:, :2], profile, max_distance=0.10)


def test_a_file_is_called_by_its_stem(tmp_path, rng):
    path = tmp_path / "night_17.csv"
    path.write_text("x\n" + "\n".join(map(str, rng.normal(size=400))))
    profile = reference_profile(path, name="training")
    evidence = measure_drift(path, profile, max_distance=0.2)
    assert (evidence.subject.name, evidence.reference.name, evidence.reference.sha256) == (
        "night_17",
        "training",
        profile.digest,
    )
    assert measure_drift(path, profile, max_distance=0.2, name="last night").subject.name == "last night"


def test_evidence_travels_even_with_a_thousand_columns(rng):
    window = {f"a column with a rather long name {index}": rng.normal(size=60) for index in range(1000)}
    evidence = measure_drift(window, reference_profile(window), max_distance=0.1)
    assert Evidence.from_json(evidence.to_json()).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("distances", "p_values", "verdict", "headline"),
    [
        ([0.05, 0.02], [0.5, 0.9], Verdict.PASS, "a"),
        ([0.05, 0.02], [1e-9, 0.9], Verdict.PASS, "a"),
        ([0.09, 0.02], [1e-9, 0.9], Verdict.INCONCLUSIVE, "a"),
        ([0.20, 0.02], [0.006, 0.9], Verdict.INCONCLUSIVE, "a"),
        ([0.20, 0.02], [0.004, 0.9], Verdict.FAIL, "a"),
        ([0.30, 0.15], [0.2, 0.001], Verdict.FAIL, "b"),
    ],
)
def test_the_interval_of_the_headline_gives_the_verdict_of_all(distances, p_values, verdict, headline):
    class Seen:
        def __init__(self, name, distance, p_value):
            self.name, self.distance, self.p_value, self.upper = name, distance, p_value, distance + 0.04

    result = decide(
        [(1.0, [Seen(*seen) for seen in zip("ab", distances, p_values, strict=True)])], budget=0.1, alpha=0.01
    )
    from pytest_modelserve.evidence import Budget

    assert Budget("at_most", 0.1).verdict(result.headline.distance, result.interval) is verdict
    assert result.headline.name == headline


def test_a_p_value_that_is_nan_is_an_error():
    class Broken:
        distance, p_value, upper = 0.0, math.nan, 0.0

    with pytest.raises(UsageError, match="p_values"):
        decide([(1.0, [Broken()])], budget=0.1, alpha=0.01)


def test_blocks_count_rows_by_their_number():
    then, now = np.full(10, 1000), np.full(10, 300)
    plain = compare_numbers("x", then, now, blocks=Blocks())
    blocked = compare_numbers("x", then, now, blocks=Blocks(reference=10, current=30))
    assert (plain.n_effective, blocked.n_effective) == (10_000 * 3000 / 13_000, 1000 * 100 / 1100)
    categories = compare_categories("x", [500, 500], [90, 10], blocks=Blocks(reference=10, current=10))
    alone = compare_categories("x", [50, 50], [9, 1], blocks=Blocks())
    assert categories.p_value == alone.p_value
    assert categories.distance == pytest.approx(0.4)


@pytest.mark.parametrize("budget", [0, 1, -0.1, math.nan])
def test_a_budget_out_of_range_is_refused(people, budget):
    rows = people(50, 0)
    with pytest.raises(UsageError, match=r"max_distance must lie between 0 and 1 \(0\.1, for example\); got"):
        measure_drift(rows, reference_profile(rows), max_distance=budget)


def _unreadable(window):
    window["age"] = window["age"].astype(object)
    window["age"][7] = "forty"


FAULTS = {
    "unreadable": (_unreadable, "column 'age' holds 'forty' in row 7 (text in 1 of 2,000 rows) and numbers in others"),
    "missing": (lambda w: w.pop("age"), "column 'age' is missing"),
    "extra": (lambda w: w.update(more=w["age"]), "column 'more' is not in the profile"),
    "renamed": (lambda w: w.update(Age=w.pop("age")), "is the new column 'Age' its new name?"),
    "retyped": (lambda w: w.update(age=w["city"]), "'age' holds categories, the profile numbers"),
    "all null": (lambda w: w.update(age=np.full(2000, np.nan)), "column 'age' is null in every row"),
    "all infinite": (lambda w: w.update(age=np.full(2000, -np.inf)), "column 'age' is infinite in every non-null row"),
}


@pytest.mark.parametrize(("fault", "message"), FAULTS.values(), ids=FAULTS)
def test_a_column_that_cannot_be_compared_fails_and_the_others_are_judged(people, fault, message):
    profile = reference_profile(people(10_000, 0), name="training", sketch_rows=200)
    window = people(2000, 1)
    del window["member"]
    window["member"] = np.random.default_rng(0).random(2000) < 0.6
    fault(window)
    evidence = measure_drift(window, profile, max_distance=0.1, name="last night")
    faulty, distance = evidence.quantities
    assert evidence.verdict is Verdict.FAIL
    assert (faulty.name, faulty.value, faulty.budget.limit) == ("faulty columns", 1, 0)
    assert message in evidence.findings[0]
    assert "'member' distance 0.3" in evidence.findings[1]
    assert distance.value == pytest.approx(0.31, abs=0.03)
    assert evidence.reference.sha256 == profile.digest
    assert evidence.advice == "repair what writes these columns, or leave them out with exclude=; then test again"


def test_the_columns_beside_a_faulty_one_have_the_distances_that_they_have_without_it(people):
    training, window = people(10_000, 0), people(2000, 1, shift=0.1)
    broken = measure_drift(
        {**window, "city": [None] * 2000}, reference_profile(training, sketch_rows=200), max_distance=0.1
    )
    for rows in (training, window):
        del rows["city"]
    alone = measure_drift(window, reference_profile(training, sketch_rows=200), max_distance=0.1)
    assert broken.details["distances"] == alone.details["distances"]
    assert broken.details["pairs"] == alone.details["pairs"]
    assert broken.details["rows_as_a_whole"] == alone.details["rows_as_a_whole"]
    assert broken.details["faulty_columns"] == ["column 'city' is null in every row"]
    assert broken.summary == f"1 column cannot be compared with the profile; of the others, {alone.summary}"


def test_only_faulty_columns_are_an_error(people):
    profile, window = reference_profile({"age": people(200, 0)["age"]}, name="training"), {"Age": people(50, 1)["age"]}
    with pytest.raises(InputError, match=r"^last night has no column to compare with 'training': column 'age' is miss"):
        measure_drift(window, profile, max_distance=0.1, name="last night")


def test_one_row_is_an_error(people):
    with pytest.raises(InputError, match=r"^last night has one row: drift needs at least 2 rows$"):
        measure_drift(people(1, 1), reference_profile(people(200, 0)), max_distance=0.1, name="last night")


def test_a_counter_is_named_as_one_to_leave_out(people):
    training, window = people(10_000, 0), people(2000, 1)
    training["order"], window["order"] = np.arange(10_000), np.arange(10_000, 12_000)
    profile = reference_profile(training)
    leave_out = "; if it is an identifier or a counter, leave it out with exclude=('order',)"
    assert leave_out in measure_drift(window, profile, max_distance=0.1, block=1).findings[0]
    assert leave_out in measure_data_quality(window, profile, max_rate=0.01).findings[0]
    quality = measure_data_quality(window, profile, max_rate=0.02, exclude=["order"])
    assert quality.verdict is Verdict.PASS


def test_a_block_of_no_rows_is_refused(people):
    rows = people(50, 0)
    with pytest.raises(UsageError, match=r"^block must be a number of rows, at least 1; got 0$"):
        measure_drift(rows, reference_profile(rows), max_distance=0.1, block=0)


def test_times_move_on_and_are_no_drift(people):
    def with_times(day, seed):
        hours = np.datetime64("2026-01-01") + np.timedelta64(day, "D") + np.arange(3000).astype("timedelta64[s]")
        return {**people(3000, seed), "at": hours}

    profile = reference_profile(with_times(0, 1), sketch_rows=500)
    evidence = measure_drift(with_times(1, 2), profile, max_distance=0.15)
    assert evidence.verdict is Verdict.PASS
    assert "times were not compared, because they always advance: 'at'" in evidence.method.assumptions
    only = reference_profile({"at": with_times(0, 1)["at"]})
    with pytest.raises(InputError, match="data has only columns of times, which are not compared: add other columns"):
        measure_drift({"at": with_times(1, 1)["at"]}, only, max_distance=0.15)


def test_a_profile_is_also_given_by_the_path_of_its_file(people, tmp_path):
    profile = reference_profile(people(3000, 0))
    profile.save(tmp_path / "people.json")
    for path in (tmp_path / "people.json", str(tmp_path / "people.json")):
        drift = measure_drift(people(3000, 1), path, max_distance=0.1)
        assert drift.interval == measure_drift(people(3000, 1), profile, max_distance=0.1).interval
        assert measure_data_quality(people(3000, 1), path, max_rate=0.1).passed
        assert reference_profile(people(50, 1), like=path).columns[0].name == profile.columns[0].name


def test_a_profile_that_is_none_is_refused_with_the_right_call(people):
    with pytest.raises(
        UsageError, match=r"profile must be a ReferenceProfile; got dict: pass reference_profile\(...\)"
    ):
        measure_drift(people(50, 0), people(50, 0), max_distance=0.1)
