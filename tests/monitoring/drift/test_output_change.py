"""How far moved columns move a model's outputs."""

import numpy as np
import pandas
import polars
import pytest

import pytest_modelserve as ms

RNG = np.random.default_rng(0)


def people(n, *, shift=0.0, north=0.5):
    return {
        "age": RNG.integers(18, 90, n) + int(20 * shift),
        "income": RNG.normal(size=n) + shift,
        "region": RNG.choice(["north", "south"], n, p=[north, 1 - north]).astype(object),
    }


PROFILE = ms.reference_profile(people(8000), sketch_rows=2000)
SMALL = ms.reference_profile(people(3000), sketch_rows=200)
"""Whole rows are compared faster with fewer rows."""


def by_income(rows):
    return np.asarray(rows["income"], dtype=float)


def by_region(rows):
    return (np.asarray(rows["region"]) == "north").astype(int)


def changes(model, data, **options):
    drift = ms.output_drift(model, data, PROFILE, **options)
    return {each.name: each.change for each in drift.columns}


def test_change_is_the_shift_that_the_model_sees_and_0_for_columns_that_it_does_not_read():
    found = changes(by_income, people(3000, shift=0.5))
    assert found["income"] == pytest.approx(0.5, abs=0.1)
    assert (found["age"], found["region"]) == (0, 0)


def test_as_few_categories_change_as_possible():
    drift = ms.output_drift(by_region, people(3000, north=0.8), PROFILE)
    assert drift.unit == "proportion"
    assert drift.columns[0].name == "region"
    assert drift.columns[0].change == pytest.approx(0.3, abs=0.04)


def test_unchanged_data_change_no_more_than_chance():
    drift = ms.output_drift(by_income, people(3000), PROFILE)
    assert drift.together.interval.low == 0
    assert drift.together.interval.high < 0.2


def test_labels_of_a_threshold_are_compared_with_decode():
    found = changes(
        by_income, people(3000, shift=0.5), output=ms.Output(decode=lambda scores: (scores > 0).astype(int))
    )
    assert found["income"] == pytest.approx(0.19, abs=0.04)  # P(0 < z < 0.5)


@pytest.mark.parametrize("frame", [pandas.DataFrame, polars.DataFrame, dict])
def test_frames_and_mappings_give_the_same_changes(frame):
    data = people(500, shift=0.5)
    assert changes(by_income, frame(data)) == changes(by_income, data)


def test_columns_of_arrays_embeddings_and_integers_keep_their_dtype():
    def model(rows):
        assert rows["n"].dtype == np.int32
        assert rows["x"].dtype == np.float32
        return rows["x"][:, 1] + 0.0 * rows["n"]

    profile = ms.reference_profile({"x": RNG.normal(size=(2000, 2)), "n": RNG.integers(0, 9, 2000)}, sketch_rows=1000)
    data = {"x": RNG.normal(size=(900, 2)).astype(np.float32) + 1, "n": RNG.integers(0, 9, 900).astype(np.int32)}
    drift = ms.output_drift(model, data, profile)
    assert drift.columns[0].name == "x[1]"
    assert drift.columns[0].change == pytest.approx(1, abs=0.15)


def test_table_names_the_columns_with_intervals():
    lines = str(ms.output_drift(by_region, people(1000, north=0.8), PROFILE)).splitlines()
    assert lines[0] == "labels that change, if columns have the profile's distribution (1,000 rows)"
    assert lines[3].endswith("all columns")
    assert lines[4].endswith("region")


def test_moved_column_that_does_not_matter_is_reported_and_not_failed():
    data = people(300, shift=1.0)
    budget = {"max_distance": 0.2, "predictor": by_region, "max_output_change": 0.3}
    evidence = ms.measure_drift(data, SMALL, **budget)
    assert ms.measure_drift(data, SMALL, max_distance=0.2).verdict == "FAIL"
    assert evidence.verdict == "PASS"
    assert evidence.decisive.name == "output change"
    assert any("moved, and changes no output: " in finding and "'income'" in finding for finding in evidence.findings)


def test_moved_column_that_matters_fails_and_is_named():
    data = people(300, shift=1.0)
    evidence = ms.measure_drift(data, SMALL, max_distance=0.1, predictor=by_income, max_output_change=0.2)
    assert evidence.verdict == "FAIL"
    assert evidence.findings[0].startswith("'income', at distance 0.")
    assert evidence.summary == "2 moved columns change the outputs by more than max_output_change"


def test_changed_correlation_still_fails():
    score = RNG.normal(size=(3000, 2))
    profile = ms.reference_profile(score, sketch_rows=200)
    data = np.stack([score[:500, 0], score[:500, 0] + 0.1 * score[:500, 1]], axis=1)
    evidence = ms.measure_drift(data, profile, max_distance=0.1, predictor=lambda x: x[:, 0], max_output_change=1.0)
    assert evidence.verdict == "FAIL"


def test_false_verdicts_at_the_budget_are_rare():
    """A shift of 0.2 against a budget of 0.2: PASS in 5 % of samples at most, FAIL in 1 %; 60 samples."""
    passed = failed = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        profile = ms.reference_profile(rng.normal(size=(500, 1)), sketch_rows=500)
        interval = ms.output_drift(lambda x: x[:, 0], rng.normal(size=(500, 1)) + 0.2, profile).together.interval
        passed, failed = passed + (interval.high < 0.2), failed + (interval.low > 0.2)
    assert passed <= 7
    assert failed <= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"profile": ms.reference_profile(people(100))}, "sketch_rows=2000"),
        ({"data": "rows.csv"}, "in memory"),
        ({"data": people(50), "columns": ["agee"]}, "did you mean 'age'"),
        ({"predictor": lambda rows: np.full(50, np.nan), "data": people(50)}, "holds NaN in 50 of 50 rows"),
        ({"predictor": np.zeros(50), "data": people(50)}, "ready outputs"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    call = {"predictor": by_income, "data": people(50), "profile": PROFILE} | arguments
    with pytest.raises(ms.UsageError, match=message):
        ms.output_drift(**call)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"predictor": by_income}, "belong together"),
        ({"max_output_change": 0.1}, "belong together"),
        ({"predictor": by_income, "max_output_change": 0.0}, "must be a positive number"),
        ({"output": "y"}, "output is an output of predictor"),
    ],
)
def test_arguments_of_the_gate_belong_together(budget, message):
    with pytest.raises(ms.UsageError, match=message):
        ms.measure_drift(people(50), PROFILE, max_distance=0.1, **budget)


def test_outputs_of_another_number_of_rows_are_refused():
    with pytest.raises(ms.InputError, match=r"has shape \(3,\) for 500 rows: return one a row"):
        ms.output_drift(lambda rows: np.ones(3), people(500), SMALL)


@pytest.mark.parametrize("options", [{"max_rows": 2.5}, {"max_rows": 0}, {"seed": -1}])
def test_counts_that_are_none_are_refused(options):
    with pytest.raises(ms.UsageError, match=f"{next(iter(options))} must be an integer"):
        ms.output_drift(by_income, people(500), SMALL, **options)
