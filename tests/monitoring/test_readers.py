"""Data frames and files as columns, and one error for each that cannot be read."""

import datetime
import sys

import numpy as np
import pandas
import polars
import pyarrow
import pytest

from pytest_modelserve.errors import InputError, MissingDependencyError, UsageError
from pytest_modelserve.monitoring import reference_profile
from pytest_modelserve.monitoring.readers import read_table

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
        (pyarrow.table({"a": pyarrow.array([datetime.time(1)])}), "column 'a' holds Time, not numbers, text or times"),
        (polars.DataFrame({"a": [{"b": 1}]}), "column 'a' holds Struct({'b': Int64}), not numbers, text or times"),
        (pandas.DataFrame({"a": pandas.Series(["x", 1], dtype=object)}), "column 'a' holds 'x' in row 0 (text in 1"),
        (pandas.DataFrame({1: [1.0]}), "names of columns must be text; got 1"),
        (pandas.DataFrame([[1, 2]], columns=["a", "a"]), "2 columns are called 'a': give each its own name"),
        (pyarrow.table([[1], [2]], names=["a", "a"]), "2 columns are called 'a': give each its own name"),
        (polars.DataFrame(), "the data: there are no columns"),
        (polars.DataFrame({"a": []}), "the data: there are no rows"),
        (polars.LazyFrame({"a": [1]}), "data is a lazy LazyFrame, whose rows are not in memory: collect it first"),
        (polars.DataFrame({"a": [[1.0, 2.0], [3.0]]}), "column 'a' holds 2 numbers in its first row and array([3.])"),
    ],
)
def test_a_frame_that_cannot_be_read_is_one_clear_error(frame, message):
    with pytest.raises(InputError) as caught:
        read_table(frame)
    assert str(caught.value).startswith(message)


def test_rows_that_lie_elsewhere_are_counted_there(people):
    rows = people(300, 0)
    like = reference_profile(rows)
    profile = reference_profile(polars.LazyFrame(rows), like=like)
    assert [column.counts for column in profile.columns] == [column.counts for column in like.columns]
    with pytest.raises(UsageError, match="sketch_rows needs rows in memory"):
        reference_profile(polars.LazyFrame(rows), sketch_rows=100)


def test_without_narwhals_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "narwhals", None)
    with pytest.raises(MissingDependencyError, match="reading a pandas frame needs narwhals, which is not installed"):
        read_table(pandas.DataFrame({"a": [1]}))


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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "empty.csv: there are no rows"),
        ("bare.csv", b"a,b\n", ": there are no rows"),
        ("twice.csv", b"a,b,a\n1,2,3\n", "twice.csv: 2 columns are called 'a': give each its own name"),
        ("long.csv", b"a,b\n1,2\n3,4,5\n", "long.csv cannot be read as CSV: found more fields"),
        ("latin.csv", "a\ngrün\n".encode("latin-1"), "latin.csv cannot be read as CSV: "),
        ("empty.parquet", b"", "empty.parquet cannot be read as Parquet: "),
        ("text.parquet", b"this is no Parquet file at all", "text.parquet cannot be read as Parquet: "),
        ("table.xlsx", b"", "table.xlsx: unknown kind of file '.xlsx': known: '.csv', '.parquet'"),
        ("table.cvs", b"", "table.cvs: unknown kind of file '.cvs': did you mean '.csv'? Known: '.csv', '.parquet'"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_table(tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_an_empty_folder_and_an_address_are_named(tmp_path):
    (tmp_path / "folder").mkdir()
    for path, message in (
        (tmp_path / "nowhere.csv", f"{tmp_path / 'nowhere.csv'} is not a file"),
        (tmp_path / "folder", f"{tmp_path / 'folder'}: there are no rows"),
        (
            "s3://bucket/day.parquet",
            "s3://bucket/day.parquet is not a local file: pass a query, such as "
            "polars.scan_parquet('s3://bucket/day.parquet')",
        ),
    ):
        with pytest.raises(InputError) as caught:
            read_table(path)
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        (["1970-01-02", "", "1969-12-31"], [86_400, np.nan, -86_400]),
        (["1970-01-02 00:00", "", "1970-01-01 00:01"], [86_400, np.nan, 60]),
        (["1970-01-02T00:00:01.5", "", "1970-01-01T00:00:00.25"], [86_401.5, np.nan, 0.25]),
        (["1970-01-02T00:00:01Z", "", "1970-01-01T00:00:00Z"], [86_401, np.nan, 0]),
        (["1970-01-02T01:00:01+01:00", "", "1970-01-01T00:00:00+00:00"], [86_401, np.nan, 0]),
        (["1970-01-02", "", "1970-02-30"], None),
        (["1970-01-02", "", "never"], None),
        (["02/01/1970", "", "03/01/1970"], None),
    ],
)
def test_iso_dates_of_csv_are_times_and_others_are_text(tmp_path, values, seconds):
    (tmp_path / "log.csv").write_text("x,at\n" + "".join(f"1,{value}\n" for value in values))
    column = read_table(tmp_path / "log.csv").columns[1]
    if seconds is None:
        assert (column.kind, column.values.tolist()) == ("category", [value or None for value in values])
    else:
        assert column.kind == "datetime"
        np.testing.assert_array_equal(column.values, seconds)


SHORT = "line {} has {} fields, expected 3 as in the header: write an empty field as nothing between two commas"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n1,2,3\n4,5\n6,7,8\n", SHORT.format(3, 2)),
        ("a,b,c\n1,2,3\n4,5\n6,7,\n", SHORT.format(3, 2)),
        ('a,b,c\n"x,\ny",2,\n4,5\n', SHORT.format(4, 2)),
        ("a,b,c\n1,2,3\n\n6,7,8\n", SHORT.format(3, 0)),
        ("a,b,c\n1,2,3\n4", SHORT.format(3, 1)),
    ],
)
def test_a_line_that_is_too_short_is_named(tmp_path, text, message):
    (tmp_path / "short.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        read_table(tmp_path / "short.csv")
    assert str(caught.value) == f"{tmp_path / 'short.csv'}: {message}"


@pytest.mark.parametrize("text", ["a,b\n1,\n2,\n", 'a,b\n"x, y",\n"z",3\n', "a,b\r\n1,\r\n2,3\r\n", "a\n1\n\n2\n"])
def test_a_last_column_with_empty_fields_is_whole(tmp_path, text):
    (tmp_path / "whole.csv").write_text(text)
    assert read_table(tmp_path / "whole.csv").rows in (2, 3)


def test_files_that_match_are_one_data_set_in_the_order_of_their_names(tmp_path):
    polars.DataFrame({"x": [3], "t": ["c"]}).write_parquet(tmp_path / "2026-02.parquet")
    polars.DataFrame({"t": ["a", None], "x": [1.5, None]}).write_parquet(tmp_path / "2026-01.parquet")
    polars.DataFrame({"x": [4], "t": [None]}).write_parquet(tmp_path / "2026-03.parquet")
    (tmp_path / "2025-12.csv").write_text("x,t\n0.5,z\n")
    table = read_table(tmp_path / "2026-*.parquet")
    assert table.name == "2026-*"
    assert [(column.name, column.kind) for column in table.columns] == [("t", "category"), ("x", "float")]
    assert table.columns[0].values.tolist() == ["a", None, "c", None]
    np.testing.assert_array_equal(table.columns[1].values, [1.5, np.nan, 3, 4])
    np.testing.assert_array_equal(read_table(tmp_path / "202*").columns[0].values, [0.5, 1.5, np.nan, 3, 4])


def test_what_is_the_name_of_a_file_is_no_pattern(tmp_path):
    (tmp_path / "night[1].csv").write_text("x\n1\n")
    (tmp_path / "night1.csv").write_text("x\n2\n")
    assert read_table(tmp_path / "night[1].csv").columns[0].values.tolist() == [1]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("x,t\n1,a\n", "{two} has no column 'y', but {one} has"),
        ("x,y,t,z\n1,1,a,1\n", "{two} has a column 'z', but {one} has not"),
        ("x,y,t\n1,1,2026-01-01\n", "column 't' holds categories in {one} and dates in {two}"),
        ("x,y,t\nb,1,a\n", "column 'x' holds whole numbers in {one} and categories in {two}"),
        ("x,y,t\n1,true,a\n", "column 'y' holds numbers in {one} and booleans in {two}"),
        (
            "x,y,t\n1,2\n",
            "{two}: line 2 has 2 fields, expected 3 as in the header: write an empty field as nothing between two commas",
        ),
    ],
)
def test_files_that_differ_are_reported_by_name(tmp_path, second, message):
    one, two = tmp_path / "1.csv", tmp_path / "2.csv"
    one.write_text("x,y,t\n1,1.5,a\n")
    two.write_text(second)
    with pytest.raises(InputError) as caught:
        read_table(str(tmp_path / "*.csv"))
    assert str(caught.value) == message.format(one=one, two=two)


def test_a_pattern_that_matches_nothing_or_another_kind_of_file_is_named(tmp_path):
    with pytest.raises(InputError) as caught:
        read_table(tmp_path / "2026-*.parquet")
    assert str(caught.value) == f"no file matches {tmp_path / '2026-*.parquet'}"
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError) as caught:
        read_table(tmp_path / "*")
    assert str(caught.value) == f"{tmp_path / 'notes.txt'}: unknown kind of file '.txt': known: '.csv', '.parquet'"


def test_a_truncated_file_among_many_is_named(tmp_path):
    for name in ("1.parquet", "2.parquet"):
        polars.DataFrame({"a": range(1000)}).write_parquet(tmp_path / name)
    (tmp_path / "2.parquet").write_bytes((tmp_path / "2.parquet").read_bytes()[:-200])
    with pytest.raises(InputError, match=r"2\.parquet cannot be read as Parquet: "):
        read_table(tmp_path / "*.parquet")


def test_without_polars_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "night.csv").write_text(CSV)
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingDependencyError, match="needs polars, which is not installed"):
        read_table(tmp_path / "night.csv")


# Folders, Hive partitions, empty parts, blank lines, and the index of pandas.


def test_a_folder_is_all_its_files_and_its_partitions_are_columns(tmp_path):
    for day, rows in (("2026-01-01", [1, 2]), ("2026-01-02", [3])):
        folder = tmp_path / f"day={day}" / "region=a%20b"
        folder.mkdir(parents=True)
        polars.DataFrame({"x": rows}).write_parquet(folder / "part-0.parquet")
        (folder / "_SUCCESS").write_text("")
        (folder / ".part-0.parquet.crc").write_text("")
    polars.DataFrame({"x": [4]}).write_parquet(tmp_path / "day=2026-01-02" / "region=a%20b" / "_temporary.parquet")
    table = read_table(tmp_path)
    assert [(column.name, column.kind) for column in table.columns] == [
        ("x", "integer"),
        ("day", "datetime"),
        ("region", "category"),
    ]
    assert table.columns[0].values.tolist() == [1, 2, 3]
    assert np.diff(table.columns[1].values).tolist() == [0, DAY]
    assert table.columns[2].values.tolist() == ["a b"] * 3
    one = read_table(tmp_path / "day=2026-01-02" / "region=a%20b" / "part-0.parquet")
    assert [column.name for column in one.columns] == ["x", "day", "region"]


def test_a_null_partition_and_numbers_of_partitions_are_read(tmp_path):
    for month in ("1", "12", "__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / f"month={month}").mkdir()
        (tmp_path / f"month={month}" / "a.csv").write_text("x\n5\n")
    month = read_table(tmp_path / "month=*").columns[1]
    assert month.kind == "integer"
    np.testing.assert_array_equal(month.values, [1, 12, np.nan])


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_part_without_rows_adds_nothing(tmp_path, suffix):
    for index, rows in enumerate(([1.5, 2.5], [], [3.5])):
        frame = polars.DataFrame({"x": polars.Series(rows, dtype=polars.Float64)})
        getattr(frame, f"write_{suffix}")(tmp_path / f"{index}.{suffix}")
    if suffix == "csv":
        (tmp_path / "3.csv").write_text("")
    assert read_table(tmp_path / f"*.{suffix}").columns[0].values.tolist() == [1.5, 2.5, 3.5]


@pytest.mark.parametrize("end", ["\n", "\n\n", "\n\n\n", "\r\n\r\n", ""])
@pytest.mark.parametrize("names", ["x,y", "x"])
def test_blank_lines_at_the_end_are_no_rows(tmp_path, end, names):
    rows = ["1,2", "3,"] if "y" in names else ["1", "3"]
    (tmp_path / "t.csv").write_text("\n".join([names, *rows]) + end, newline="")
    assert read_table(tmp_path / "t.csv").columns[0].values.tolist() == [1, 3]


@pytest.mark.parametrize("name", [None, "order"])
def test_the_index_of_pandas_is_no_column(tmp_path, name):
    frame = pandas.DataFrame({"x": [1.0, 2.0, 3.0]}, index=pandas.Index([7, 3, 5], name=name))
    frame.to_parquet(tmp_path / "t.parquet")
    assert [column.name for column in read_table(tmp_path / "t.parquet").columns] == ["x"]
    assert [column.name for column in read_table(pyarrow.Table.from_pandas(frame)).columns] == ["x"]
    assert [column.name for column in read_table(frame).columns] == ["x"]


def test_the_unnamed_index_of_pandas_is_no_column_of_an_engine(tmp_path):
    frame = pandas.DataFrame({"x": [1.0, 2.0, 3.0]}, index=[7, 3, 5])
    frame.to_parquet(tmp_path / "t.parquet")
    for data in (polars.scan_parquet(tmp_path / "t.parquet"), polars.read_parquet(tmp_path / "t.parquet")):
        assert reference_profile(data).names == ("x",)


def test_decimals_are_numbers_in_pandas_too():
    table = pyarrow.table({"price": pyarrow.array(["1.50", None, "2.75"]).cast(pyarrow.decimal128(8, 2))})
    for frame in (table, table.to_pandas(), {"price": table["price"].to_pylist()}):
        column = read_table(frame).columns[0]
        assert column.kind == "float"
        np.testing.assert_array_equal(column.values, [1.5, np.nan, 2.75])
