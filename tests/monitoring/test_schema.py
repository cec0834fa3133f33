"""The match of the columns of data with those of a profile."""

import datetime

import numpy as np
import pytest

from pytest_modelserve.monitoring import reference_profile
from pytest_modelserve.monitoring.readers import read_table
from pytest_modelserve.monitoring.schema import match_columns

PROFILE = {
    "width": [1.5, 2.5, 3.5],
    "count": [1, 2, 3],
    "flag": [True, False, True],
    "city": ["Bern", "Graz", "Linz"],
    "when": np.array(["2026-01-01", "2026-01-02", "2026-01-03"], dtype="datetime64[D]"),
    "note": ["a" * 101, "b" * 150, "c"],
    "face": np.arange(6.0).reshape(3, 2),
}


def faults(**changed):
    columns = {name: values for name, values in {**PROFILE, **changed}.items() if values is not None}
    profile = reference_profile(PROFILE)
    return match_columns(read_table(columns).with_lengths_of(profile.length_sources), profile).errors


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"width": [1, 2, 3]},
        {"width": [True, False, True]},
        {"count": [1.0, np.nan, 3.0]},
        {"count": [1.0, np.inf, 3.0]},
        {"count": [True, False, True]},
        {"flag": [1, 0, 0]},
        {"flag": [1.0, np.nan, 0.0]},
        {"city": [None, None, None]},
        {"when": [None, None, None]},
        {"when": [datetime.date(2027, 1, 1), None, None]},
        {"note": [None, None, None]},
        {"note": ["x", "y", "z"]},
        {"face": np.full((3, 2), np.nan)},
        {"face": [None, None, None]},
        {"face": [[1, 2], None, [3, 4]]},
        {"width": [None, None, None]},
    ],
    ids=str,
)
def test_columns_that_fit(changed):
    assert faults(**changed) == ()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"width": None}, ["column 'width' is missing"]),
        ({"extra": [1, 2, 3]}, ["column 'extra' is not in the profile"]),
        (
            {"width": None, "Width ": [1.0, 2.0, 3.0]},
            ["column 'width' is missing; is the new column 'Width ' its new name?"],
        ),
        (
            {"width": None, "breadth": [1.0, 2.0, 3.0]},
            ["column 'width' is missing; is the new column 'breadth' its new name?"],
        ),
        (
            {"width": None, "count": None, "counts": [1, 2, 3], "x": [1, 2, 3]},
            [
                "column 'width' is missing",
                "column 'count' is missing; is the new column 'counts' its new name?",
                "column 'x' is not in the profile",
            ],
        ),
        ({"width": ["a", "b", "c"]}, ["column 'width' holds categories, the profile numbers"]),
        ({"city": [1, 2, 3]}, ["column 'city' holds whole numbers, the profile categories"]),
        ({"count": [1.0, 2.5, 3.0]}, ["column 'count' holds 2.5 in row 1, the profile whole numbers"]),
        ({"flag": [0, 1, 2]}, ["column 'flag' holds 2 in row 2, the profile booleans"]),
        ({"flag": [0.5, 1, 1]}, ["column 'flag' holds 0.5 in row 0, the profile booleans"]),
        ({"when": [1.7e9, 1.8e9, 1.9e9]}, ["column 'when' holds numbers, the profile dates"]),
        ({"when": ["monday", "tuesday", "friday"]}, ["column 'when' holds categories, the profile dates"]),
        ({"width": [datetime.date(2027, 1, 1)] * 3}, ["column 'width' holds dates, the profile numbers"]),
        ({"city": [datetime.date(2027, 1, 1)] * 3}, ["column 'city' holds dates, the profile categories"]),
        ({"note": None}, ["column 'note' is missing"]),
        ({"note": [1, 2, 3]}, ["column 'note' holds whole numbers, the profile categories"]),
        ({"face": None}, ["column 'face' is missing"]),
        (
            {"face": None, "faces": np.zeros((3, 2))},
            ["column 'face' is missing; is the new column 'faces' its new name?"],
        ),
        (
            {"face": np.zeros((3, 5))},
            ["column 'face' holds embeddings of 5 numbers, the profile embeddings of 2 numbers"],
        ),
        ({"face": [1.0, 2.0, 3.0]}, ["column 'face' holds one value a row, the profile embeddings of 2 numbers"]),
        ({"width": np.zeros((3, 2))}, ["column 'width' holds embeddings of 2 numbers, the profile one value a row"]),
        ({"mouth": np.zeros((3, 2))}, ["column 'mouth' is not in the profile"]),
    ],
    ids=str,
)
def test_columns_that_do_not_fit_are_reported(changed, expected):
    assert list(faults(**changed)) == expected


def test_pairs_come_in_the_order_of_the_profile():
    profile = reference_profile(PROFILE)
    table = read_table(dict(reversed(PROFILE.items()))).with_lengths_of(profile.length_sources)
    pairs = match_columns(table, profile).pairs
    assert [(column.name, reference.name) for column, reference in pairs] == [(name, name) for name in profile.names]
