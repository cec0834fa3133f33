"""Arrays and mappings as columns, and embeddings."""

import datetime
from decimal import Decimal

import numpy as np
import pytest

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.monitoring.columns import as_column, with_embedding
from pytest_modelserve.monitoring.readers import read_table
from pytest_modelserve.serving import serve


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
        (np.array(["2020-01-01", "NaT"], dtype="datetime64[D]"), "datetime"),
        (np.array(["NaT"], dtype="datetime64[ns]"), None),
        ([datetime.date(2020, 1, 1), None], "datetime"),
        (np.array([90], dtype="timedelta64[s]"), "float"),
        ([datetime.timedelta(seconds=90), None], "float"),
        ([np.timedelta64(90, "s"), None], "float"),
        ([Decimal("1.50"), None, Decimal("NaN"), Decimal("sNaN")], "float"),
        ([Decimal(1), 2, 2.5], "float"),
    ],
)
def test_kind_of_a_column(values, kind):
    assert as_column("x", values).kind == kind


def test_null_is_nan_among_numbers_and_none_among_text():
    np.testing.assert_array_equal(as_column("x", [1, None, 3]).values, [1, np.nan, 3])
    np.testing.assert_array_equal(as_column("x", np.ma.masked_array([1, 2], mask=[True, False])).values, [np.nan, 2])
    assert as_column("x", ["a", float("nan"), None]).values.tolist() == ["a", None, None]


def test_decimals_are_numbers():
    values = as_column("x", [Decimal("1.50"), None, Decimal("NaN"), 2]).values
    np.testing.assert_array_equal(values, [1.5, np.nan, np.nan, 2])


@pytest.mark.parametrize(
    "values",
    [
        [None, 2**62 + 1, -(2**63)],
        [None, 2**64 - 1, 2**53 + 1],
        np.ma.masked_array([0, 2**53 + 1, 2**53], mask=[True, False, False]),
    ],
)
def test_integers_with_nulls_are_kept_to_64_bits(values):
    column = as_column("x", values)
    assert column.kind == "integer"
    assert np.isnan(column.values[0])
    assert column.exact.tolist()[1:] == [int(value) for value in list(values)[1:]]


def test_small_integers_with_nulls_need_no_second_array():
    assert as_column("x", [None, 3, 2**53]).exact is None


IN_BERLIN = datetime.timezone(datetime.timedelta(hours=1))


@pytest.mark.parametrize(
    "values",
    [
        np.array(["1970-01-02T00:00:01.5", "NaT", "1969-12-31"], dtype="datetime64[ms]"),
        np.array(["1970-01-02T00:00:01.5", "NaT", "1969-12-31"], dtype="datetime64[ns]"),
        [datetime.datetime(1970, 1, 2, 0, 0, 1, 500_000), None, datetime.date(1969, 12, 31)],
        [datetime.datetime(1970, 1, 2, 1, 0, 1, 500_000, IN_BERLIN), None, np.datetime64("1969-12-31")],
    ],
    ids=["ms", "ns", "naive", "with a time zone"],
)
def test_times_are_seconds_since_1970_in_utc(values):
    column = as_column("x", values)
    assert column.kind == "datetime"
    np.testing.assert_array_equal(column.values, [86_401.5, np.nan, -86_400])


def test_durations_are_seconds():
    values = [datetime.timedelta(hours=1), None, datetime.timedelta(microseconds=-1)]
    np.testing.assert_array_equal(as_column("x", values).values, [3600, np.nan, -1e-6])
    np.testing.assert_array_equal(as_column("x", np.array([1, "NaT"], dtype="timedelta64[m]")).values, [60, np.nan])
    # In microseconds this year would overflow.
    assert as_column("x", np.array(["300000-01-01"], dtype="datetime64[D]")).values[0] == 9_404_918_380_800


@pytest.mark.parametrize(
    "values",
    [
        np.array([[1.0, 2.0], [np.nan, np.nan], [3.0, 4.0]]),
        [[1.0, 2.0], None, [3.0, 4.0]],
        np.ma.masked_array([[1, 2], [9, 9], [3, 4]], mask=[[0, 0], [1, 1], [0, 0]]),
    ],
    ids=["array", "lists", "masked"],
)
def test_an_embedding_is_one_column_a_number(values):
    columns = read_table({"e": values, "x": [1, 2, 3]}).columns
    assert [(column.name, column.source) for column in columns] == [("e[0]", "e"), ("e[1]", "e"), ("x", None)]
    np.testing.assert_array_equal(columns[1].values, [2, np.nan, 4])


def test_the_numbers_of_an_embedding_stay_where_they_are():
    embedding = np.zeros((5, 3), dtype=np.float32)
    assert all(np.shares_memory(column.values, embedding) for column in read_table({"e": embedding}).columns)


class NeitherEqualNorUnequal:
    """As pandas.NA is."""

    def __ne__(self, other):
        return self

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")

    __hash__ = None


def test_a_null_that_refuses_comparison_is_null():
    assert as_column("x", np.array(["a", NeitherEqualNorUnequal()], dtype=object)).values.tolist() == ["a", None]


DATA = (
    "data must be an array (n, features), a dict of columns, a pandas, Polars or PyArrow frame, or the path of a .csv or "
    ".parquet file; got {}"
)
AXES = (
    "column 'a' has shape {}, expected (n,) for a column or (n, d) for an embedding: turn images and texts into "
    "embeddings with `with_embedding`"
)
ALONE = "a column must hold only numbers, only text, only booleans, only dates, or only durations: repair it, or leave it out with exclude="


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros(3), DATA.format("an array of shape (3,)")),
        ([[1.0, 2.0]], DATA.format("list")),
        (np.zeros((3, 0)), "the data: there are no columns"),
        ({}, "the data: there are no columns"),
        (np.zeros((0, 3)), "the data: there are no rows"),
        ({"a": []}, "the data: there are no rows"),
        ({"a": [1, 2], "b": [1, 2, 3]}, "column 'b' has 3 rows, and column 'a' has 2"),
        ({1: [1, 2]}, "names of columns must be text; got 1"),
        ({"a": np.zeros((2, 2, 2))}, AXES.format("(2, 2, 2)")),
        ({"a": np.zeros((2, 0))}, AXES.format("(2, 0)")),
        ({"a": np.array([["x", "y"]])}, AXES.format("(1, 2)")),
        ({"a": 5.0}, AXES.format("()")),
        ({"a": np.array([["x", "y"], ["z", None]], dtype=object)}, "column 'a' has two axes and holds text, expected"),
        ({"a": [[1.0, 2.0], [3.0]]}, "column 'a' holds 2 numbers in its first row and [3.0] in row 1"),
        ({"a": [[1.0, 2.0], 3.0]}, "column 'a' holds 2 numbers in its first row and 3.0 in row 1"),
        ({"a": [[1.0], ["x", 2.0]]}, "column 'a' holds a row that is not numbers: ['x', 2.0]"),
        ({"a": np.zeros((3, 2)), "a[1]": [1, 2, 3]}, "2 columns are called 'a[1]': give each its own name"),
        ({"a": [1j, 2j]}, "column 'a' holds complex128, not numbers, text or times: convert or remove it"),
        (
            {"a": np.array([2, "x", None, 3.5], dtype=object)},
            f"column 'a' holds 'x' in row 1 (text in 1 of 4 rows) and numbers in others: {ALONE}",
        ),
        ({"a": ["x", 1]}, f"column 'a' holds 'x' in row 0 (text in 1 of 2 rows) and numbers in others: {ALONE}"),
        (
            {"a": ["x", "y", None, 5]},
            f"column 'a' holds 5 in row 3 (numbers in 1 of 4 rows) and text in others: {ALONE}",
        ),
        (
            {"a": [datetime.date(2020, 1, 1), 1.5, 2]},
            f"column 'a' holds datetime.date(2020, 1, 1) in row 0 (dates in 1 of 3 rows) and numbers in others: {ALONE}",
        ),
        (
            {"a": [datetime.timedelta(1), datetime.timedelta(2), datetime.datetime(2020, 1, 1)]},
            f"column 'a' holds datetime.datetime(2020, 1, 1, 0, 0) in row 2 (dates in 1 of 3 rows) and durations in "
            f"others: {ALONE}",
        ),
        (
            {"a": np.array([2, 3, True], dtype=object)},
            f"column 'a' holds True in row 2 (booleans in 1 of 3 rows) and numbers in others: {ALONE}",
        ),
        ({"a": [Decimal(1), {}]}, f"column 'a' holds Decimal and dict ({{}} in row 1): {ALONE}"),
        ({"late \ud83d": [1, 2]}, "the name of column 'late \\ud83d' has half of a character (a surrogate): rename it"),
    ],
)
def test_data_that_cannot_be_read_are_one_clear_error(data, message):
    with pytest.raises(InputError) as caught:
        read_table(data)
    assert str(caught.value).startswith(message)


def test_names_of_an_array_fit_and_differ():
    with pytest.raises(InputError, match=r"^data has 3 columns, expected 2 \(a, b\)$"):
        read_table(np.zeros((2, 3)), names=["a", "b"])
    with pytest.raises(InputError, match=r"^2 columns are called 'a': give each its own name$"):
        read_table(np.zeros((2, 2)), names=["a", "a"])


def brightness(images):
    """The mean of each quarter (n, 4) and the overall mean (n,)."""
    quarters = images.reshape(len(images), 2, 4, 2, 4).mean(axis=(2, 4)).reshape(len(images), 4)
    return {"quarters": quarters, "mean": quarters.mean(axis=1)}


IMAGES = np.random.default_rng(0).random((500, 8, 8))


def test_embeddings_are_those_of_all_items_at_once_whatever_the_batch():
    expected = brightness(IMAGES)
    for batch_size in (1, 7, 500, 1000):
        found = with_embedding(IMAGES, brightness, batch_size=batch_size)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)


def test_a_served_model_and_its_callable_encode_alike():
    with serve(brightness) as predictor:
        found = with_embedding(IMAGES, predictor)
    np.testing.assert_array_equal(found["quarters"], with_embedding(IMAGES, brightness)["quarters"])


def test_texts_come_as_they_are_and_one_output_has_a_name():
    def counted(texts):
        return np.array([[len(text), text.count("b")] for text in texts])

    found = with_embedding(["a", "bb", "ccc"], counted, batch_size=2)
    assert found["output"].tolist() == [[1, 0], [2, 2], [3, 0]]


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda images: images, "encoder returned 'output' with shape (256, 8, 8) for 256 items, expected (items, d)"),
        (lambda images: images.mean(axis=0), "encoder returned 'output' with shape (8, 8) for 256 items, expected"),
        (
            lambda images: {"a" if len(images) == 256 else "b": np.zeros((len(images), 2))},
            "encoder returned 'a' for some batches and not for others",
        ),
    ],
)
def test_an_output_that_is_no_embedding_is_one_clear_error(encoder, message):
    with pytest.raises(InputError) as caught:
        with_embedding(IMAGES, encoder)
    assert str(caught.value).startswith(message)


def test_nothing_to_encode_and_no_batch_are_refused():
    with pytest.raises(InputError, match=r"^items is empty: there is nothing to encode$"):
        with_embedding([], brightness)
    with pytest.raises(UsageError, match=r"^batch_size must be at least 1; got 0$"):
        with_embedding(IMAGES, brightness, batch_size=0)
