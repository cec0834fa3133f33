"""What is read from arrays and dicts, and one clear error for what cannot be."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest

from pytest_modelserve.errors import InputError
from pytest_modelserve.monitoring.columns import as_column, read_table


def test_columns_of_an_array_are_views_with_default_or_given_names():
    data = np.arange(6.0).reshape(3, 2)
    table = read_table(data)
    assert [column.name for column in table.columns] == ["column_0", "column_1"]
    assert np.shares_memory(table.columns[1].values, data)
    assert [column.name for column in read_table(data, names=["a", "b"]).columns] == ["a", "b"]
    assert (table.rows, table.name, read_table(data, name="night").name) == (3, "data", "night")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([1.5, np.nan]), "float"),
        (np.array([1, 2], dtype=np.uint8), "integer"),
        (np.array([True, False]), "boolean"),
        (np.array(["a", "b"]), "category"),
        (np.array(["a", "b"], dtype=np.dtypes.StringDType()), "category"),
        (["a", None], "category"),
        ([1, None, 3], "integer"),
        ([1, None, 2.5], "float"),
        ([True, None], "boolean"),
        ([None, float("nan")], None),
        (np.array([np.nan, np.nan]), None),
        (np.ma.masked_array([1, 2], mask=[True, False]), "integer"),
    ],
)
def test_kind_of_a_column(values, kind):
    assert as_column("x", values).kind == kind


def test_null_is_nan_among_numbers_and_none_among_text():
    np.testing.assert_array_equal(as_column("x", [1, None, 3]).values, [1, np.nan, 3])
    np.testing.assert_array_equal(as_column("x", np.ma.masked_array([1, 2], mask=[True, False])).values, [np.nan, 2])
    assert as_column("x", ["a", float("nan"), None]).values.tolist() == ["a", None, None]


class NeitherEqualNorUnequal:
    """As pandas.NA is."""

    def __ne__(self, other):
        return self

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")

    __hash__ = None


def test_a_null_that_refuses_comparison_is_null():
    assert as_column("x", np.array(["a", NeitherEqualNorUnequal()], dtype=object)).values.tolist() == ["a", None]


FRAME = (
    "data are an array (n, features), a dict of columns or the path of a .csv or .parquet file, not {}; of a data frame "
    "give the columns by name, as in {{'age': frame['age']}}"
)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros(3), FRAME.format("an array of shape (3,)")),
        ([[1.0, 2.0]], FRAME.format("list")),
        (np.zeros((3, 0)), "there are no columns in the data"),
        ({}, "there are no columns in the data"),
        (np.zeros((0, 3)), "there are no rows in the data"),
        ({"a": []}, "there are no rows in the data"),
        (
            {"a": [1, 2], "b": [1, 2, 3]},
            "column 'b' has 3 rows and column 'a' 2: all columns need one value for each row",
        ),
        ({1: [1, 2]}, "names of columns are text, not 1"),
        ({"a": np.zeros((2, 2))}, "column 'a' has the shape (2, 2): a column has one axis"),
        ({"a": 5.0}, "column 'a' has the shape (): a column has one axis"),
        (
            {"a": np.array(["2020-01-01"], dtype="datetime64[D]")},
            "column 'a' holds datetime64[D], which is neither numbers nor text: turn it into one of them, or leave it out",
        ),
        (
            {"a": [1j, 2j]},
            "column 'a' holds complex128, which is neither numbers nor text: turn it into one of them, or leave it out",
        ),
        (
            {"a": np.array(["x", 1, None], dtype=object)},
            "column 'a' holds int and str: a column holds numbers, text or booleans, one of them alone",
        ),
        (
            {"a": ["x", 1]},
            "column 'a' holds int and str: a column holds numbers, text or booleans, one of them alone",
        ),
        (
            {"a": np.array([True, 2], dtype=object)},
            "column 'a' holds bool and int: a column holds numbers, text or booleans, one of them alone",
        ),
        (
            {"a": [Decimal(1), Decimal(2)]},
            "column 'a' holds Decimal: a column holds numbers, text or booleans, one of them alone",
        ),
    ],
)
def test_data_that_cannot_be_read_are_one_clear_error(data, message):
    with pytest.raises(InputError) as caught:
        read_table(data)
    assert str(caught.value) == message


def test_names_of_an_array_fit_and_differ():
    with pytest.raises(InputError, match=r"^an array of 3 columns does not fit 2 names of columns$"):
        read_table(np.zeros((2, 3)), names=["a", "b"])
    with pytest.raises(InputError, match=r"^two columns are called 'a': give each a name of its own$"):
        read_table(np.zeros((2, 2)), names=["a", "a"])
