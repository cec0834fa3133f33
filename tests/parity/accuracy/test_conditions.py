"""Conditions as text, evaluated row by row."""

import numpy as np
import pandas
import polars
import pytest

import pytest_modelserve as ms

PEOPLE = {
    "age": np.array([70.0, 70.0, 30.0, np.nan]),
    "region": np.array(["north", "south", "north", None], dtype=object),
    "hours per week": np.array([1, 50, 3, 60]),
    "day": np.array(["2026-01-01", "2026-03-01", "2026-05-01", "NaT"], dtype="M8[D]"),
    "member": np.array([True, False, True, False]),
    "x": np.arange(8.0).reshape(4, 2),
}


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ('age > 61 and region == "north"', [0]),
        ("18 < age <= 61", [2]),
        ("61 <= age", [0, 1]),
        ("age is missing", [3]),
        ("region is not missing", [0, 1, 2]),
        ('region != "north"', [1]),  # a missing value meets no comparison
        ("`hours per week` > -1 and `hours per week` < 50", [0, 2]),
        ('day >= "2026-03-01"', [1, 2]),
        ("member == True", [0, 2]),
        ("x[1] >= 3 and x[0] < 6", [1, 2]),
    ],
)
def test_condition_holds_for_these_rows(condition, rows):
    assert np.flatnonzero(ms.where(condition)(PEOPLE)).tolist() == rows


@pytest.mark.parametrize("frame", [pandas.DataFrame, polars.DataFrame])
def test_frames_and_arrays_are_read_alike(frame):
    data = frame({name: values for name, values in PEOPLE.items() if values.ndim == 1})
    assert ms.where('age > 61 and region == "north"')(data).tolist() == [True, False, False, False]
    assert ms.where("column_1 > 4")(PEOPLE["x"]).tolist() == [False, False, True, True]


def test_integers_beyond_doubles_are_compared_exactly():
    ids = np.array([2**60, 2**60 + 1])
    assert ms.where(f"id == {2**60}")({"id": ids}).tolist() == [True, False]


def test_condition_is_a_slice_of_a_gate():
    labels = np.arange(400) % 2
    age = np.arange(400) // 10
    predicted = np.where(age >= 30, 1 - labels, labels)
    slices = {"old": ms.where("age >= 30", {"age": age})}
    evidence = ms.measure_accuracy(predicted, labels=labels, min_value=0.5, slices=slices)
    assert evidence.findings == ("worst slice old: 0.0 % of 100 rows",)


@pytest.mark.parametrize(
    "condition", ["age", "age > region", "age ~ 3", "f(age) > 3", "age > 3 or age < 1", "age is 3", "", "1 < 2"]
)
def test_condition_that_cannot_be_read_is_refused_when_it_is_made(condition):
    with pytest.raises(ms.UsageError, match="cannot be read"):
        ms.where(condition)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("agee > 3", "did you mean 'age'"),
        ("age > '3'", "holds numbers"),
        ("region > 'a'", "holds text"),
        ("day > 'May'", "holds dates"),
    ],
)
def test_column_that_does_not_fit_is_an_error(condition, message):
    with pytest.raises(ms.InputError, match=message):
        ms.where(condition)(PEOPLE)
