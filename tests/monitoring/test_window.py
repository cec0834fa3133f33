"""The data under test, from rows and from counts."""

import tracemalloc

import numpy as np
import pytest

from pytest_modelserve.errors import InputError
from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring import measure_data_quality, measure_drift, reference_profile
from pytest_modelserve.monitoring.column_profile import NumericColumn
from pytest_modelserve.monitoring.window import read_window


@pytest.fixture
def both(people):
    """A profile, a window of rows that hold every kind of fault, and the same rows counted elsewhere in two shards."""
    profile, rows = reference_profile(people(3000, 0), name="training"), people(2000, 1)
    rows["age"][:7] = 1000.0
    rows["age"][7:9] = -1000.0
    rows["age"][9] = np.inf
    rows["age"][10:30] = np.nan
    rows["city"] = rows["city"].astype(object)
    rows["city"][:5] = "Wien"
    rows["city"][5:11] = None
    shards = [
        reference_profile({name: values[part] for name, values in rows.items()}, like=profile, name="night")
        for part in (slice(0, 700), slice(700, None))
    ]
    return profile, read_window(rows, profile), read_window(shards[0].merge(shards[1]), profile)


def test_rows_and_their_merged_counts_give_the_same_figures(both):
    _, rows, counted = both
    assert (rows.rows, counted.rows, counted.name) == (2000, 2000, "night")
    for (one, reference), (other, _) in zip(rows.pairs, counted.pairs, strict=True):
        assert (one.name, one.rows) == (other.name, other.rows)
        if isinstance(reference, NumericColumn):
            assert one.counts(reference).tolist() == other.counts(reference).tolist()
            assert one.summary(reference) == other.summary(reference)
            assert one.mean() == pytest.approx(other.mean())
            assert one.median() == pytest.approx(other.median(), abs=0.3)
        else:
            assert one.align(reference)[1:] == other.align(reference)[1:]
            if not reference.hashed:
                assert one.categories() == other.categories()


def test_drift_of_counts_is_that_of_the_rows(people):
    profile, rows = reference_profile(people(10_000, 0)), people(3000, 1, shift=0.5)
    of_rows = measure_drift(rows, profile, max_distance=0.1)
    of_counts = measure_drift(reference_profile(rows, like=profile), profile, max_distance=0.1)
    assert of_rows.verdict is of_counts.verdict is Verdict.FAIL
    assert of_rows.details["distances"] == of_counts.details["distances"]


def test_a_profile_of_other_edges_says_how_to_make_it(people):
    profile = reference_profile(people(3000, 0), name="training")
    with pytest.raises(InputError, match="profile 'night' counts column 'age' between other edges than 'training'"):
        measure_drift(reference_profile(people(3000, 1), name="night"), profile, max_distance=0.1)


def test_extremes_beyond_another_range_are_at_least_one_row(people):
    training = reference_profile({"x": np.arange(1000.0)})
    day = reference_profile({"x": np.arange(100.0, 500.0)}, like=training)
    night = reference_profile({"x": np.arange(50.0, 400.0)}, like=training)
    facts = read_window(night, day).pairs[0][0].summary(day.column("x"))
    assert (facts.below, facts.above) == (1, 0)


def test_a_query_is_counted_where_it_is_and_compared_like_its_rows(people):
    polars = pytest.importorskip("polars")
    profile, rows = reference_profile(people(10_000, 0)), people(3000, 1, shift=0.5)
    of_rows = measure_drift(rows, profile, max_distance=0.1, block=1)
    query = polars.DataFrame(rows).lazy()
    of_query = measure_drift(query, profile, max_distance=0.1, block=1, name="night")
    assert of_query.details["distances"] == of_rows.details["distances"]
    assert "correlations were not compared: night has none" in of_query.method.assumptions
    without_age = measure_drift(query.drop("age"), profile, max_distance=0.1, block=1, name="night")
    assert without_age.findings[0] == "column 'age' is missing"
    assert without_age.details["distances"] == {k: v for k, v in of_rows.details["distances"].items() if k != "age"}


def test_a_check_of_four_million_numbers_takes_little_memory_beyond_them():
    rng = np.random.default_rng(0)
    columns = {f"x{index}": rng.normal(size=200_000) for index in range(20)}
    columns["x7"][5] = np.nan
    profile = reference_profile({name: values[:20_000] for name, values in columns.items()})
    tracemalloc.start()
    try:
        measure_drift(columns, profile, max_distance=0.1)
        measure_data_quality(columns, profile, max_rate=0.01)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10e6
