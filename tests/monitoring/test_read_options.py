"""Options of reading: numbers in text, declared kinds, excluded columns, and data of the day read like the profile's."""

import json

import duckdb
import numpy as np
import pandas
import polars
import pyarrow
import pytest

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring import ReferenceProfile, measure_data_quality, measure_drift, reference_profile
from pytest_modelserve.monitoring.read_options import ReadOptions

FORMATS = {
    "thousands": (lambda v, i: f'"{v:,.2f}"', ",", {"thousands": ","}),
    "decimal comma": (lambda v, i: f'"{v:.2f}"'.replace(".", ","), ",", {"decimal": ","}),
    "German": (lambda v, i: f"{v:,.2f}".translate(str.maketrans(",.", ".,")), ";", {"separator": ";", "decimal": ",", "thousands": "."}),
    "markers": (lambda v, i: "NA" if i % 33 == 0 else f"{v:.2f}", ",", {"null_values": ("NA",)}),
    "semicolons": (lambda v, i: f"{v:.2f}", ";", {"separator": ";"}),
    "tabs": (lambda v, i: f"{v:.2f}", "\t", {"separator": "\t"}),
}  # fmt: skip


def amounts(path, form, separator, *, seed, factor=1.0):
    rng = np.random.default_rng(seed)
    values, channels = rng.normal(5000, 1000, 3000).clip(1000) * factor, rng.choice(["a", "b"], 3000)
    lines = [separator.join((form(v, i), c)) for i, (v, c) in enumerate(zip(values, channels, strict=True))]
    path.write_text("\n".join([separator.join(("amount", "channel")), *lines]) + "\n")
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_amounts_in_any_declared_format_are_numbers_and_their_rise_is_found(tmp_path, name):
    form, separator, options = FORMATS[name]
    profile = reference_profile(amounts(tmp_path / "training.csv", form, separator, seed=0), **options)
    assert profile.kinds == {"amount": "float", "channel": "category"}
    assert profile.column("amount").mean == pytest.approx(5000, rel=0.02)
    same = amounts(tmp_path / "same.csv", form, separator, seed=1)
    higher = amounts(tmp_path / "higher.csv", form, separator, seed=2, factor=1.3)
    assert measure_drift(same, profile, max_distance=0.1).verdict is Verdict.PASS
    assert measure_drift(higher, profile, max_distance=0.1).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("form", "shown", "remedy"),
    [
        (lambda v, i: f'"{v:,.2f}"', "'5,125.73' in row 0", "thousands=','"),
        (lambda v, i: f'"{v:.2f}"'.replace(".", ","), "'5125,73' in row 0", "decimal=','"),
        (lambda v, i: f"${v:.2f}", "'$5125.73' in row 0", "remove the sign"),
        (lambda v, i: f"{v:.2f} %", "'5125.73 %' in row 0", "remove the sign"),
        (lambda v, i: "NA" if i % 33 == 1 else f"{v:.2f}", "'NA' in row 1", "null_values=('NA',)"),
        (lambda v, i: "?" if i == 7 else f"{v:.2f}", "'?' in row 7", "null_values=('?',)"),
    ],
)
def test_text_that_is_nearly_all_numbers_is_refused_with_a_row_and_what_to_do(tmp_path, form, shown, remedy):
    path = amounts(tmp_path / "training.csv", form, ",", seed=0)
    with pytest.raises(InputError) as caught:
        reference_profile(path)
    assert str(caught.value).startswith(
        f"column 'amount' is text, but nearly all of it are numbers; it holds {shown}: "
    )
    assert remedy in str(caught.value)
    assert reference_profile(path, types={"amount": "category"}).kinds["amount"] == "category"


@pytest.mark.parametrize(
    "data",
    [
        {"x": ["1", "2.5", "3"] * 100},
        pandas.DataFrame({"x": ["1", "2.5", "3"] * 100}),
        polars.DataFrame({"x": ["1,000", "2,500", "3"] * 100}),
        polars.LazyFrame({"x": ["1", "2.5", "3"] * 100}),
    ],
    ids=["dict", "pandas", "polars", "lazy"],
)
def test_text_of_numbers_is_refused_whoever_holds_it(data):
    with pytest.raises(InputError, match="column 'x' is text, but nearly all of it are numbers"):
        reference_profile(data)


@pytest.mark.parametrize(
    "texts",
    [["12.05.2026", "1.6.2026"], ["192.168.0.1", "10.0.0.7"], ["street 1", "street 2"], ["A1", "7"], ["1-2", "3-4"]],
)
def test_text_that_is_no_numbers_stays_text(texts):
    assert reference_profile({"x": texts * 50}).kinds == {"x": "category"}


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_another_separator_is_refused_with_the_option_that_it_needs(tmp_path, separator):
    path = amounts(tmp_path / "training.csv", lambda v, i: f"{v:.2f}", separator, seed=0)
    with pytest.raises(InputError) as caught:
        reference_profile(path)
    assert f"profile with separator={separator!r}" in str(caught.value)


def test_leading_zeros_make_text_where_they_are_declared_to(tmp_path):
    (tmp_path / "zip.csv").write_text("zip,n\n" + "01067,1\n80331,2\n" * 50)
    assert reference_profile(tmp_path / "zip.csv").kinds == {"zip": "integer", "n": "integer"}
    profile = reference_profile(tmp_path / "zip.csv", leading_zeros="text")
    assert profile.kinds == {"zip": "category", "n": "integer"}
    assert profile.column("zip").categories == ("01067", "80331")
    (tmp_path / "today.csv").write_text("zip,n\n" + "80331,1\n" * 20 + "01067,2\n" * 20)
    assert measure_data_quality(tmp_path / "today.csv", profile, max_rate=0.5).quantities[-1].value == 0


def test_the_kinds_of_the_profile_decide_how_a_file_of_the_day_is_read(tmp_path):
    (tmp_path / "training.csv").write_text("code,flag,at\n" + "a1,true,2026-01-01\n77,false,2026-01-02\n" * 50)
    (tmp_path / "today.csv").write_text("code,flag,at\n" + "77,1,2026-01-03\n78,0,2026-01-04\n" * 50)
    profile = reference_profile(tmp_path / "training.csv")
    assert profile.kinds == {"code": "category", "flag": "boolean", "at": "datetime"}
    evidence = measure_data_quality(tmp_path / "today.csv", profile, max_rate=0.9)
    assert evidence.quantities[-1].value == 0


def test_a_value_of_another_kind_fails_with_row_and_value_and_all_other_columns_are_judged(tmp_path):
    rng = np.random.default_rng(0)
    training = pandas.DataFrame({"age": rng.integers(18, 90, 3000).astype(float), "income": rng.lognormal(10, 1, 3000)})
    training.to_csv(tmp_path / "training.csv", index=False)
    today = training.astype({"age": object})
    today.loc[7, "age"] = "N/A"
    today["income"] = np.where(np.arange(3000) < 300, np.nan, today["income"])
    today.to_csv(tmp_path / "today.csv", index=False)
    for now, before in ((today, training), (tmp_path / "today.csv", tmp_path / "training.csv")):
        evidence = measure_data_quality(now, reference_profile(before), max_rate=0.02)
        assert evidence.verdict is Verdict.FAIL
        assert evidence.findings[0].startswith("column 'age' holds 'N/A' in row 7 (")
        assert evidence.findings[1].startswith("'income' null in 0.0 % → 10.0 %")


def test_markers_of_the_profile_are_null_in_frames_too():
    profile = reference_profile({"x": [1.0, "N/A", 3.0] * 20, "c": ["a", "b", "N/A"] * 20}, null_values=["N/A"])
    assert [column.nulls for column in profile.columns] == [20, 20]
    evidence = measure_data_quality(pandas.DataFrame({"x": [1.0, "N/A"], "c": ["N/A", "a"]}), profile, max_rate=0.9)
    assert evidence.quantities[-1].value == 0


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["1", "2.5", None], "float", [1, 2.5, np.nan]),
        (["1", "2", None], "integer", [1, 2, np.nan]),
        (["True", "0", None], "boolean", [1, 0, np.nan]),
        (["1970-01-02", "1970-01-01T00:00:05", None], "datetime", [86_400, 5, np.nan]),
        ([0, 1, None], "boolean", [0, 1, np.nan]),
        ([1.0, 2.0], "integer", [1, 2]),
        ([True, False], "float", [1, 0]),
    ],
)
def test_a_declared_kind_is_the_kind_of_the_column(values, kind, expected):
    from pytest_modelserve.monitoring.readers import read_table

    column = read_table({"x": values}, options=ReadOptions(types={"x": kind})).columns[0]
    assert column.kind == kind
    np.testing.assert_array_equal(column.values.astype(float), expected)


def test_whole_numbers_declared_as_categories_are_text():
    profile = reference_profile({"zip": [80331, 1067, 80331, 1067]}, types={"zip": "category"})
    assert profile.column("zip").categories == ("1067", "80331")


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (["1", "x", "y"], "float", "column 'a' holds 'x' in row 1 (2 of 3 rows), expected numbers"),
        ([1.0, 2.5], "integer", "column 'a' holds 2.5 in row 1 (1 of 2 rows), expected whole numbers"),
        ([0, 2], "boolean", "column 'a' holds 2 in row 1 (1 of 2 rows), expected booleans"),
        (["03/04/2026"], "datetime", "column 'a' holds '03/04/2026' in row 0 (1 of 1 rows), expected dates"),
    ],
)
def test_a_value_that_is_not_of_the_declared_kind_is_named(values, kind, message):
    with pytest.raises(InputError) as caught:
        reference_profile({"a": values}, types={"a": kind})
    assert str(caught.value) == message


def test_excluded_columns_are_left_out_here_and_in_later_data(tmp_path):
    rng = np.random.default_rng(0)

    def day(seed):
        return pandas.DataFrame({"x": np.random.default_rng(seed).normal(size=3000), "legacy": [None] * 3000})

    profile = reference_profile(day(0), exclude=["legacy", "request_id"])
    assert ReferenceProfile.from_json(profile.to_json()) == profile
    assert profile.names == ("x",)
    today = day(1).assign(request_id=rng.integers(0, 2**40, 3000))
    today.to_parquet(tmp_path / "today.parquet")
    frames = (today, tmp_path / "today.parquet", polars.from_pandas(today).lazy(), dict(today.items()))
    for data in frames:
        assert measure_data_quality(data, profile, max_rate=0.02).verdict is Verdict.PASS


def test_all_null_and_all_infinite_columns_say_how_to_leave_them_out():
    with pytest.raises(InputError, match=r"exclude=\('legacy',\) leaves it out"):
        reference_profile({"x": [1.0, 2.0], "legacy": [None, None]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": "x"}, "exclude must be a collection of texts; got 'x': pass ('x',)"),
        ({"exclude": ["legcy"]}, "exclude: unknown column 'legcy': did you mean 'legacy'? Known: 'legacy'"),
        ({"types": {"y": "float"}}, "types: unknown column 'y': known: 'legacy'"),
        ({"types": {"legacy": "number"}}, "types: column 'legacy': unknown kind 'number': known"),
        ({"separator": ";;"}, "separator must be one character (';', for example); got ';;'"),
        ({"decimal": ";"}, "decimal must be '.' or ','; got ';'"),
        ({"thousands": "."}, "thousands must be one character that no number has and that differs from decimal"),
        ({"null_values": "NA"}, "null_values must be a collection of texts; got 'NA': pass ('NA',)"),
        ({"leading_zeros": "keep"}, "unknown leading_zeros 'keep': known: 'number', 'text'"),
    ],
)
def test_an_invalid_option_is_one_clear_error(options, message):
    with pytest.raises(UsageError) as caught:
        reference_profile({"legacy": [1.0, 2.0]}, **options)
    assert str(caught.value).startswith(message)


def test_options_with_like_and_of_lazy_frames_are_refused():
    profile = reference_profile({"x": [1.0, 2.0]})
    with pytest.raises(UsageError, match=r"^like= reads data as the profile was read: remove the other options"):
        reference_profile({"x": [1.0, 2.0]}, like=profile, exclude=("y",))
    with pytest.raises(UsageError, match=r"^a lazy frame takes only exclude= and types= of categories"):
        reference_profile(polars.LazyFrame({"x": [1.0]}), decimal=",")
    with pytest.raises(UsageError, match=r"^columns and exclude cannot be given together"):
        reference_profile(np.zeros((3, 2)), columns=["a", "b"], exclude=("a",))


CUT = json.loads('"late \\ud83d"')
"""Text cut inside an emoji."""


def test_half_of_a_character_is_escaped_in_categories_sketches_and_messages(tmp_path):
    reasons = ["ok", "late", CUT] * 100
    profile = reference_profile({"reason": reasons}, sketch_rows=50)
    assert profile.column("reason").categories == ("late", r"late \ud83d", "ok")
    assert ReferenceProfile.load(profile.save(tmp_path / "profile.json")) == profile
    for data in ({"reason": reasons}, pandas.DataFrame({"reason": pandas.Series(reasons, dtype=object)})):
        assert measure_data_quality(data, profile, max_rate=0.1).verdict is Verdict.PASS
        assert measure_drift(data, profile, max_distance=0.5).verdict is Verdict.PASS
    evidence = measure_data_quality(
        {"reason": ["ok", CUT] * 50},
        reference_profile({"reason": ["ok", "late"] * 50}),
        max_rate=0.1,
        closed=["reason"],
    )
    assert r"\ud83d" in evidence.findings[0]
    evidence.findings[0].encode()


IDS = (10**17 + np.arange(3000)).tolist()
STATUS = np.random.default_rng(0).choice(["paid", "open"], 3000).tolist()


def frames_of(ids):
    arrow = pyarrow.table({"order_id": pyarrow.array(ids, pyarrow.int64()), "status": STATUS})
    nullable = pandas.DataFrame({"order_id": pandas.array(ids, dtype="Int64"), "status": STATUS})
    return {
        "dict": {"order_id": ids, "status": STATUS},
        "polars": polars.from_arrow(arrow),
        "pandas": nullable,
        "pandas with arrow types": arrow.to_pandas(types_mapper=pandas.ArrowDtype),
        "pyarrow": arrow,
        "duckdb": duckdb.from_arrow(arrow),
    }


@pytest.mark.parametrize("kind", ["dict", "polars", "pandas", "pandas with arrow types", "pyarrow", "duckdb"])
def test_long_identifiers_with_a_null_are_exact_whoever_holds_them(kind):
    profile = reference_profile(frames_of(IDS)[kind])
    assert measure_data_quality(frames_of([None, *IDS[1:]])[kind], profile, max_rate=0.02).verdict is Verdict.PASS


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("first", [10**17, 2**63 + 10])
def test_long_identifiers_of_files_are_exact_also_in_parts(tmp_path, suffix, first):
    ids = [first + index for index in range(2000)]
    for folder, values in (("training", ids), ("today", [None, *ids[1:]])):
        (tmp_path / folder).mkdir()
        for part in range(2):
            rows = values[1000 * part : 1000 * (part + 1)]
            frame = polars.DataFrame({"id": polars.Series(rows, dtype=polars.UInt64), "status": STATUS[:1000]})
            getattr(frame, f"write_{suffix}")(tmp_path / folder / f"{part}.{suffix}")
    evidence = measure_data_quality(tmp_path / "today", reference_profile(tmp_path / "training"), max_rate=0.02)
    assert evidence.verdict is Verdict.PASS


def test_a_marker_of_digits_is_null_in_csv_files(tmp_path):
    (tmp_path / "training.csv").write_text("age,city\n" + "40,Bern\n999,Graz\n50,Bern\n" * 30)
    age = reference_profile(tmp_path / "training.csv", null_values=("999",)).column("age")
    assert (age.kind, age.nulls, age.maximum) == ("integer", 30, 50)
