"""Data frames of pandas, Polars and PyArrow: the same columns whoever holds them."""

from __future__ import annotations

import datetime
import sys

import numpy as np
import pandas
import polars
import pyarrow
import pytest

from pytest_modelserve.errors import InputError, MissingDependencyError, UsageError
from pytest_modelserve.monitoring import reference_profile
from pytest_modelserve.monitoring.readers import is_lazy, read_table

DAY = 86_400
ARROW = pyarrow.table(
    {
        "fraction": pyarrow.array([1.5, None, float("nan")]),
        "whole": pyarrow.array([1, 2, 3], type=pyarrow.int16()),
        "holed": pyarrow.array([1, None, 3]),
        "flag": pyarrow.array([True, False, True]),
        "holed flag": pyarrow.array([True, None, False]),
        "text": pyarrow.array(["a", None, "c"]),
        "category": pyarrow.array(["a", "b", None]).dictionary_encode(),
        "amount": pyarrow.array([1, None, 3], type=pyarrow.decimal128(8, 2)),
        "day": pyarrow.array([datetime.date(1970, 1, 2), None, datetime.date(1970, 1, 3)]),
        "time": pyarrow.array([DAY * 1000, None, 0], type=pyarrow.timestamp("ms")),
        "time in Berlin": pyarrow.array([DAY * 10**9, None, 0], type=pyarrow.timestamp("ns", tz="Europe/Berlin")),
        "wait": pyarrow.array([1500, None, 3000], type=pyarrow.duration("ms")),
        "fixed": pyarrow.array([[1.0, 2.0], None, [3.0, 4.0]], type=pyarrow.list_(pyarrow.float32(), 2)),
        "list": pyarrow.array([[1.0, 2.0], None, [3.0, 4.0]]),
        "nothing": pyarrow.nulls(3),
    }
)
EXPECTED = {
    "fraction": ("float", [1.5, np.nan, np.nan]),
    "whole": ("integer", [1, 2, 3]),
    "holed": ("integer", [1, np.nan, 3]),
    "flag": ("boolean", [True, False, True]),
    "holed flag": ("boolean", [1, np.nan, 0]),
    "text": ("category", ["a", None, "c"]),
    "category": ("category", ["a", "b", None]),
    "amount": ("float", [1, np.nan, 3]),
    "day": ("datetime", [DAY, np.nan, 2 * DAY]),
    "time": ("datetime", [DAY, np.nan, 0]),
    "time in Berlin": ("datetime", [DAY, np.nan, 0]),
    "wait": ("float", [1.5, np.nan, 3]),
    "fixed[0]": ("float", [1, np.nan, 3]),
    "fixed[1]": ("float", [2, np.nan, 4]),
    "list[0]": ("float", [1, np.nan, 3]),
    "list[1]": ("float", [2, np.nan, 4]),
    "nothing": (None, [np.nan] * 3),
}


def in_pandas(*, arrow_types):
    if arrow_types:
        return ARROW.to_pandas(types_mapper=pandas.ArrowDtype)
    return ARROW.to_pandas().astype({"holed": "Int64", "holed flag": "boolean", "amount": "float64"})


@pytest.mark.parametrize(
    "frame",
    [ARROW, polars.from_arrow(ARROW), in_pandas(arrow_types=False), in_pandas(arrow_types=True)],
    ids=["pyarrow", "polars", "pandas", "pandas with arrow types"],
)
def test_columns_are_the_same_whoever_holds_them(frame):
    columns = {column.name: column for column in read_table(frame).columns}
    assert {name: column.kind for name, column in columns.items()} == {
        name: kind for name, (kind, _) in EXPECTED.items()
    }
    for name, (_, values) in EXPECTED.items():
        np.testing.assert_array_equal(columns[name].values, np.array(values), err_msg=name)


NUMBERS = np.arange(1000.0)


@pytest.mark.parametrize(
    ("frame", "values"),
    [
        (polars.DataFrame({"x": NUMBERS}), lambda frame: frame["x"].to_numpy()),
        (pandas.DataFrame({"x": NUMBERS}), lambda frame: frame["x"].to_numpy()),
        (pyarrow.table({"x": NUMBERS}), lambda frame: frame["x"].chunk(0).to_numpy()),
    ],
    ids=["polars", "pandas", "pyarrow"],
)
def test_numbers_without_nulls_stay_where_they_are(frame, values):
    read = read_table(frame).columns[0].values
    assert read.__array_interface__["data"][0] == values(frame).__array_interface__["data"][0]


def test_the_text_of_a_frame_is_not_changed():
    frame = pandas.DataFrame({"x": pandas.Series(["a", None, float("nan")], dtype=object)})
    assert read_table(frame).columns[0].values.tolist() == ["a", None, None]
    assert frame["x"].tolist()[0:2] == ["a", None]
    assert np.isnan(frame["x"].tolist()[2])


def test_objects_of_pandas_are_what_they_hold():
    frame = pandas.DataFrame(
        {
            "day": pandas.Series([datetime.date(1970, 1, 2), None], dtype=object),
            "embedding": pandas.Series([np.zeros(2), np.ones(2)]),
            "grade": pandas.Categorical([1, 2]),
        }
    )
    columns = read_table(frame).columns
    kinds = {column.name: column.kind for column in columns}
    assert kinds == {"day": "datetime", "embedding[0]": "float", "embedding[1]": "float", "grade": "category"}
    assert columns[-1].values.tolist() == ["1", "2"]


def test_a_profile_of_a_frame_is_that_of_its_columns(people):
    rows = people(300, 0)
    profiles = [reference_profile(data) for data in (rows, polars.DataFrame(rows), pandas.DataFrame(rows))]
    assert len({profile.digest for profile in profiles}) == 1


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            pyarrow.table({"a": pyarrow.array([datetime.time(1)])}),
            "column 'a' holds Time, not numbers, text or times: convert or remove it",
        ),
        (
            polars.DataFrame({"a": [{"b": 1}]}),
            "column 'a' holds Struct({'b': Int64}), not numbers, text or times: convert or remove it",
        ),
        (
            pandas.DataFrame({"a": pandas.Series(["x", 1], dtype=object)}),
            "column 'a' holds int and str: a column must hold only numbers, only text, only booleans, only dates, or only durations",
        ),
        (pandas.DataFrame({1: [1.0]}), "names of columns must be text; got 1"),
        (
            pandas.DataFrame([[1, 2]], columns=["a", "a"]),
            "2 columns are called 'a': give each its own name",
        ),
        (pyarrow.table([[1], [2]], names=["a", "a"]), "2 columns are called 'a': give each its own name"),
        (polars.DataFrame(), "the data: there are no columns"),
        (polars.DataFrame({"a": []}), "the data: there are no rows"),
        (
            polars.LazyFrame({"a": [1]}),
            "data is a lazy LazyFrame, whose rows are not in memory: collect it first",
        ),
        (
            polars.DataFrame({"a": [[1.0, 2.0], [3.0]]}),
            "column 'a' holds 2 numbers in its first row and array([3.]) in row 1: every row of an embedding needs "
            "as many numbers",
        ),
    ],
)
def test_a_frame_that_cannot_be_read_is_one_clear_error(frame, message):
    with pytest.raises(InputError) as caught:
        read_table(frame)
    assert str(caught.value) == message


def test_rows_that_lie_elsewhere_are_counted_there(people):
    rows = people(300, 0)
    like = reference_profile(rows)
    profile = reference_profile(polars.LazyFrame(rows), like=like)
    assert [column.counts for column in profile.columns] == [column.counts for column in like.columns]
    with pytest.raises(UsageError) as caught:
        reference_profile(polars.LazyFrame(rows), sketch_rows=100)
    assert str(caught.value) == "sketch_rows needs rows in memory: collect some of the lazy frame, or remove it"


def test_frames_whose_rows_lie_elsewhere_are_known():
    assert is_lazy(polars.LazyFrame({"a": [1]}))
    assert not is_lazy(polars.DataFrame({"a": [1]}))
    assert not is_lazy({"a": [1]})
    assert not is_lazy(np.zeros((2, 2)))


def test_without_narwhals_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "narwhals", None)
    with pytest.raises(MissingDependencyError) as caught:
        read_table(pandas.DataFrame({"a": [1]}))
    assert str(caught.value) == (
        "reading a pandas frame needs narwhals, which is not installed: pip install 'pytest-modelserve[data]'"
    )
