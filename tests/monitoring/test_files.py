"""CSV and Parquet files: what they hold, and one error naming the file for what they should not."""

from __future__ import annotations

import sys

import numpy as np
import polars
import pytest

from pytest_modelserve.errors import InputError, MissingDependencyError
from pytest_modelserve.monitoring.columns import read_table

CSV = """\
whole,fraction,text,flag,nothing,holed
1,2.5,a,true,,1
2,,b,false,,
3,NaN,,,,3
"""


def test_csv_columns_have_the_kinds_that_their_values_show(tmp_path):
    (tmp_path / "night.csv").write_text(CSV)
    table = read_table(tmp_path / "night.csv")
    kinds = {column.name: column.kind for column in table.columns}
    assert kinds == {
        "whole": "integer",
        "fraction": "float",
        "text": "category",
        "flag": "boolean",
        "nothing": None,
        "holed": "integer",
    }
    values = {column.name: column.values for column in table.columns}
    np.testing.assert_array_equal(values["fraction"], [2.5, np.nan, np.nan])
    np.testing.assert_array_equal(values["flag"], [1, 0, np.nan])
    np.testing.assert_array_equal(values["holed"], [1, np.nan, 3])
    assert values["text"].tolist() == ["a", "b", None]
    assert table.name == "night"


def test_a_fraction_after_a_thousand_whole_numbers_makes_the_column_one_of_fractions(tmp_path):
    (tmp_path / "late.csv").write_text("x\n" + "1\n" * 1000 + "2.5\n")
    assert read_table(str(tmp_path / "late.csv")).columns[0].kind == "float"


def test_whole_numbers_beyond_64_bits_and_decimals_become_doubles(tmp_path):
    (tmp_path / "big.csv").write_text("x\n123456789012345678901234567890\n1\n")
    column = read_table(tmp_path / "big.csv").columns[0]
    assert (column.kind, column.values[0]) == ("integer", pytest.approx(1.2345678901234568e29))
    frame = polars.DataFrame({"x": ["1.5", None]}, schema={"x": polars.String}).cast(polars.Decimal(10, 2))
    frame.write_parquet(tmp_path / "decimal.parquet")
    np.testing.assert_array_equal(read_table(tmp_path / "decimal.parquet").columns[0].values, [1.5, np.nan])


def test_parquet_columns_are_those_that_were_written(tmp_path):
    frame = polars.DataFrame({"a": [1, 2], "b": [0.5, None], "c": ["x", None], "d": [True, False]})
    frame.with_columns(polars.col("c").cast(polars.Categorical).alias("e")).write_parquet(tmp_path / "all.parquet")
    table = read_table(tmp_path / "all.parquet")
    assert [column.kind for column in table.columns] == ["integer", "float", "category", "boolean", "category"]
    assert table.columns[4].values.tolist() == ["x", None]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "empty.csv cannot be read as CSV: empty CSV"),
        ("bare.csv", b"a,b\n", "bare.csv"),
        ("twice.csv", b"a,b,a\n1,2,3\n", "twice.csv: 2 columns are called 'a': give each a name of its own"),
        ("long.csv", b"a,b\n1,2\n3,4,5\n", "long.csv cannot be read as CSV: found more fields"),
        ("latin.csv", "a\ngrün\n".encode("latin-1"), "latin.csv cannot be read as CSV: "),
        ("empty.parquet", b"", "empty.parquet cannot be read as Parquet: "),
        ("text.parquet", b"this is no Parquet file at all", "text.parquet cannot be read as Parquet: "),
        ("table.xlsx", b"", "table.xlsx: unknown kind of file '.xlsx': Known: '.csv', '.parquet'"),
        ("table.cvs", b"", "table.cvs: unknown kind of file '.cvs': did you mean '.csv'? Known: '.csv', '.parquet'"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_table(tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_parquet_file_is_named(tmp_path):
    path = tmp_path / "half.parquet"
    polars.DataFrame({"a": range(1000)}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"half\.parquet cannot be read as Parquet: "):
        read_table(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    for name in ("nowhere.csv", "folder.csv", "*.csv"):
        with pytest.raises(InputError) as caught:
            read_table(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name} is not a file"


def test_a_column_of_dates_is_named(tmp_path):
    path = tmp_path / "dated.parquet"
    polars.DataFrame({"day": ["2020-01-01"]}).with_columns(polars.col("day").str.to_date()).write_parquet(path)
    with pytest.raises(InputError) as caught:
        read_table(path)
    assert str(caught.value) == (
        f"{path}: column 'day' holds Date, which is neither numbers nor text: read the file yourself and give its other "
        "columns as a dict"
    )


def test_without_polars_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "night.csv").write_text(CSV)
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingDependencyError) as caught:
        read_table(tmp_path / "night.csv")
    assert str(caught.value) == (
        f"reading {tmp_path / 'night.csv'} needs polars, which is not installed: pip install 'pytest-modelserve[data]'"
    )
