import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given

import pytest_modelserve as ms


def training(rows, seed):
    """Correlated numbers, an integer, a category that depends on a number, nulls, a boolean, many names, and times."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=rows)
    b = np.exp(0.8 * a + 0.6 * rng.normal(size=rows))
    site = np.where(a + rng.normal(size=rows) > 0.5, "east", np.where(rng.random(rows) < 0.3, "north", "west"))
    return pd.DataFrame(
        {
            "a": a,
            "b": np.where(rng.random(rows) < 0.1, np.nan, b),
            "count": rng.poisson(3, rows),
            "site": site,
            "paid": rng.random(rows) < 0.2,
            "name": [f"person {number}" for number in rng.integers(0, 5000, rows)],
            "at": pd.Timestamp("2026-01-01") + pd.to_timedelta(np.sort(rng.random(rows)) * 86_400, unit="s"),
        }
    )


@pytest.fixture(scope="module")
def profile():
    return ms.reference_profile(training(20_000, 0), exclude=["at"])


def test_drawn_rows_have_the_distribution_of_the_profile(profile):
    """Oracle: the gates on data, which compare columns, pairs of columns and rates."""
    drawn = ms.strategies.rows(profile, max_rows=5000).at(rows=5000, seed=1)
    assert ms.measure_drift(drawn, profile, max_distance=0.05).verdict is ms.Verdict.PASS
    assert ms.measure_data_quality(drawn, profile, max_rate=0.02).verdict is not ms.Verdict.FAIL


def test_drawn_pairs_depend_on_each_other_as_in_the_training_data(profile):
    drawn = ms.strategies.rows(profile, max_rows=50_000).at(rows=50_000, seed=2)
    data = training(50_000, 3)

    def association(columns):
        known = ~np.isnan(np.asarray(columns["b"], float))
        ranks = pd.Series(np.asarray(columns["a"])[known]).rank(), pd.Series(np.asarray(columns["b"])[known]).rank()
        east = np.asarray(columns["site"]) == "east"
        return np.corrcoef(*ranks)[0, 1], np.corrcoef(np.asarray(columns["a"]), east)[0, 1]

    np.testing.assert_allclose(association(drawn), association(data), atol=0.05)


def test_values_keep_the_types_and_ranges_of_the_profile(profile):
    drawn = ms.strategies.rows(profile).at(rows=500, seed=4)
    assert set(drawn["site"]) <= {"east", "north", "west"}
    assert drawn["count"].dtype == np.int64
    assert drawn["paid"].dtype == np.bool_
    assert 0 < np.isnan(drawn["b"]).mean() < 0.3
    low, high = profile.column("a").minimum, profile.column("a").maximum
    assert low <= drawn["a"].min() <= drawn["a"].max() <= high
    assert repr(drawn) == "ROWS.at(rows=500, seed=4)"
    again = ms.strategies.rows(profile).at(rows=500, seed=4)
    assert all(np.array_equal(drawn[name], again[name], equal_nan=drawn[name].dtype.kind == "f") for name in drawn)


def test_times_rise_from_row_to_row():
    profile = ms.reference_profile(training(500, 5)[["at", "a"]])
    drawn = ms.strategies.rows(profile).at(rows=50, seed=0)["at"]
    assert drawn.dtype.kind == "M"
    assert (np.diff(drawn) >= np.timedelta64(0)).all()


def test_batches_fit_the_inputs_of_the_model(profile):
    numbers = ms.reference_profile(training(2000, 6)[["a", "count"]])
    seen = []
    model = ms.serve(lambda x: seen.append(x.shape) or x.sum(axis=1))

    @ms.strategies.settings(max_examples=20, database=None)
    @given(batch=ms.strategies.batches(numbers, model, max_batch=5))
    def run(batch):
        model.predict(batch)

    run()
    assert {shape[1] for shape in seen} == {2}
    assert {shape[0] for shape in seen} <= set(range(1, 6))
    with pytest.raises(
        ms.InputError, match="column 'site' of the profile holds no numbers, and the model has one input"
    ):
        ms.strategies.batches(profile, model)


def test_a_failing_window_shrinks_to_few_rows(profile):
    @ms.strategies.settings(max_examples=30, database=None, derandomize=True, report_multiple_bugs=False)
    @given(window=ms.strategies.rows(profile, max_rows=50))
    def no_row_is_paid(window):
        assert not window["paid"].any()

    with pytest.raises(AssertionError) as caught:
        no_row_is_paid()
    assert re.search(r"ROWS.at\(rows=\d, seed=\d\)", "".join(caught.value.__notes__))


@pytest.mark.parametrize("limits", [{"min_rows": 0}, {"min_rows": 5, "max_rows": 4}])
def test_numbers_of_rows_that_are_no_range_are_refused(profile, limits):
    with pytest.raises(ms.UsageError, match="min_rows and max_rows must be a range from 1 on"):
        ms.strategies.rows(profile, **limits)


def test_a_profile_of_an_embedding_is_refused():
    profile = ms.reference_profile({"text": np.random.default_rng(0).normal(size=(50, 3))})
    with pytest.raises(ms.InputError, match="column 'text' of the profile is an embedding"):
        ms.strategies.rows(profile)
