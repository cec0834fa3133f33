"""Profiles of lazy frames have the counts of the same rows in memory."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import duckdb
import numpy as np
import polars
import polars as pl
import pytest

import pytest_modelserve as ms
from pytest_modelserve.errors import InputError
from pytest_modelserve.monitoring import ReferenceProfile, lazy_columns, reference_profile
from pytest_modelserve.monitoring.column_profile import NumericColumn
from pytest_modelserve.monitoring.dependence import Dependence
from pytest_modelserve.monitoring.lazy_profiler import scan

ROWS = 2_000


def table(seed, rows=ROWS):
    """Every kind of column, with nulls, NaN and infinities."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=rows)
    numbers[::50] = np.nan
    numbers[5] = np.inf
    heavy = 1e6 * rng.lognormal(0, 3, rows)
    heavy[5] = np.inf
    frame = pl.DataFrame(
        {
            "x": numbers,
            "heavy": heavy,
            "whole": rng.integers(-5, 300, rows),
            "flag": rng.random(rows) < 0.2,
            "city": rng.choice(["Aachen", "Bonn", "Köln"], rows, p=[0.6, 0.3, 0.1]),
            "text": [f"{'word ' * (i % 7)}{i}" for i in rng.integers(0, 1000, rows)],
            "at": [datetime(2026, 1, 1) + timedelta(minutes=int(m)) for m in np.sort(rng.integers(0, 50_000, rows))],
        }
    )
    return frame.with_columns(
        pl.when(pl.int_range(rows) % 40 == 3).then(None).otherwise(pl.col("city")).alias("city"),
        pl.when(pl.int_range(rows) % 30 == 7).then(None).otherwise(pl.col("x")).alias("x"),
    )


def comparable(profile):
    """What an engine can tell too: all but what depends on the order of rows, and sums but to rounding."""
    figures = []
    for column in profile.columns:
        of_column = {
            "name": column.name,
            "kind": column.kind,
            "rows": column.rows,
            "nulls": column.nulls,
            "counts": column.counts,
        }
        if isinstance(column, NumericColumn):
            of_column |= {
                name: getattr(column, name) for name in ("edges", "minimum", "maximum", "below", "above", "source")
            }
            of_column |= {
                "infinities": (column.negative_infinities, column.positive_infinities),
                "mean": pytest.approx(column.mean, rel=1e-9),
                "std": pytest.approx(column.std, rel=1e-6),
            }
        else:
            of_column["categories"] = column.categories
        figures.append(of_column)
    return figures


def test_engine_counts_exactly_what_memory_counts(engine, request):
    reference = ms.reference_profile(table(0), name="reference")
    day = table(1)
    if request.node.callspec.params["engine"] == "pyspark":  # which takes seconds a query
        reference = replace(reference, columns=reference.columns[:1] + reference.columns[4:5], associations=None)
        day = day.select(reference.input_names)
    here = ms.reference_profile(day, like=reference, name="day")
    there = ms.reference_profile(engine(day), like=reference, name="day")
    assert comparable(there) == comparable(here)


@pytest.mark.parametrize("engine", ["polars", "duckdb"], indirect=True)
def test_gates_accept_a_lazy_frame(engine):
    reference = ms.reference_profile(table(0).select("whole", "city"), block=1)
    same, now = table(1).select("whole", "city"), table(1).select("city", pl.col("whole") + 100)
    assert ms.measure_drift(engine(same), reference, max_distance=0.15).verdict is ms.Verdict.PASS
    assert ms.measure_drift(engine(now), reference, max_distance=0.15).verdict is ms.Verdict.FAIL
    nulls = same.with_columns(pl.when(pl.int_range(ROWS) % 3 > 0).then("whole").alias("whole"))
    quality = ms.measure_data_quality(engine(nulls), reference, max_rate=0.1)
    assert quality.verdict is ms.Verdict.FAIL
    assert any("'whole'" in finding for finding in quality.findings)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (pl.DataFrame({"x": pl.Series([], dtype=pl.Float64)}), "reference: there are no rows"),
        (pl.DataFrame({"x": [1.0]}), "reference has 1 row: a profile needs at least 2 rows (thousands recommended)"),
        (pl.DataFrame({"x": pl.Series([None, None], dtype=pl.Float64)}), "column 'x' is null in every row"),
        (pl.DataFrame({"x": [[1, 2], [3]]}), "reference: column 'x' holds embeddings"),
    ],
    ids=["no rows", "one row", "all null", "lists"],
)
def test_rows_without_a_distribution_are_refused(rows, expected):
    with pytest.raises(InputError) as raised:
        ms.reference_profile(rows.lazy())
    assert str(raised.value).startswith(expected)


def test_an_error_of_the_engine_is_one_input_error(tmp_path):
    path = tmp_path / "rows.parquet"
    table(0).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="reference"):
        ms.reference_profile(pl.scan_parquet(path))


in_process = pytest.mark.parametrize("engine", ["polars", "duckdb"], indirect=True)
"""Without PySpark, which takes seconds a query."""


def draw(rows, seed):
    """Columns of every kind, with all that makes counting hard: nulls, NaN, infinities, heavy values and heavy tails."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=rows)
    normal[rng.random(rows) < 0.02] = np.nan
    heavy = rng.standard_t(1, rows)
    heavy[:6] = [np.inf, -np.inf, np.inf, 1e300, -0.0, 5e-324]
    seconds = rng.integers(-2_000_000_000, 2_000_000_000, rows)
    frame = polars.DataFrame(
        {
            "normal": normal,
            "single": rng.normal(40, 12, rows).astype(np.float32),
            "heavy": heavy,
            "zeros": np.where(rng.random(rows) < 0.3, 0, rng.lognormal(0, 3, rows)),
            "count": rng.poisson(4, rows),
            "large": rng.integers(0, 2**62, rows),
            "member": rng.random(rows) < 0.3,
            "city": rng.choice(["Bern", "Graz", "Linz"], rows),
            "street": [f"street {number}" for number in rng.geometric(0.01, rows)],
            "time": (seconds * 1_000_000 + rng.integers(0, 10**6, rows)).astype("datetime64[us]"),
            "day": (seconds // 86_400).astype("datetime64[D]"),
        }
    )
    known = polars.lit(polars.Series(rng.random(rows) > 0.05))
    some_null = [polars.when(known).then(polars.col(name)) for name in ("zeros", "count", "member", "street", "time")]
    return frame.with_columns(some_null).with_columns(polars.col("time").dt.replace_time_zone("UTC").alias("zoned"))


def counted(profile):
    """The columns without what needs an order of rows, and with moments as far as engines agree on them."""
    return [_exact(column) for column in profile.columns]


def _exact(column):
    if not isinstance(column, NumericColumn):
        return replace(column, dependence=Dependence())
    ends = {"at_minimum": 0, "at_maximum": 0}
    return replace(column, dependence=Dependence(), sums=None, backward=None, mean=0.0, std=0.0, **ends)


def moments(profile):
    numbers = [column for column in profile.columns if isinstance(column, NumericColumn)]
    return [moment for column in numbers for moment in (column.mean, column.std) if column.name != "heavy"]


@in_process
def test_counts_are_those_in_memory_between_the_edges_of_a_profile(engine):
    reference, current = reference_profile(draw(500, seed=1), bins=32), draw(3_000, seed=2)
    scanned, in_memory = scan(engine(current), like=reference), reference_profile(current, like=reference)
    assert counted(scanned) == counted(in_memory)
    assert moments(scanned) == pytest.approx(moments(in_memory), rel=1e-12)
    assert any(column.below and column.above for column in scanned.columns if isinstance(column, NumericColumn))


@in_process
def test_profile_without_another_has_the_counts_that_its_edges_have_in_memory(engine):
    frame = draw(3_000, seed=3)
    scanned = scan(engine(frame), bins=32)
    assert scanned.names == reference_profile(frame).names
    assert counted(scanned) == counted(reference_profile(frame, like=scanned))
    assert ReferenceProfile.from_json(scanned.to_json()) == scanned
    of_zeros = scanned.column("zeros")
    assert isinstance(of_zeros, NumericColumn)
    assert frame["zeros"].eq(0).sum() in of_zeros.counts  # the heavy value has a bin of its own


@in_process
def test_shards_merge_to_the_profile_of_all_rows(engine):
    frame = draw(800, seed=4).select("normal", "count", "city")
    whole = scan(engine(frame))
    shards = [scan(engine(part), like=whole) for part in (frame[:300], frame[300:])]
    assert counted(shards[0].merge(shards[1])) == counted(whole)


@in_process
def test_columns_that_are_all_null_fit_every_kind(engine):
    frame = draw(200, seed=5).select("normal", "member", "street", "time")
    nothing = frame.with_columns(polars.lit(None).cast(kind).alias(name) for name, kind in frame.schema.items())
    reference = reference_profile(frame)
    assert counted(scan(engine(nothing), like=reference)) == counted(reference_profile(nothing, like=reference))


def refusal(frame):
    with pytest.raises(InputError) as raised:
        scan(frame, name="the log")
    return str(raised.value)


def test_too_many_texts_are_refused(monkeypatch):
    monkeypatch.setattr(lazy_columns, "MAX_TEXTS", 3)
    assert scan(polars.LazyFrame({"id": ["a", "b", "c", "c", None]})).rows == 5
    assert refusal(polars.LazyFrame({"id": list("abcd")})) == (
        "the log: column 'id' holds more than 3 different texts: remove or group them"
    )


def test_times_in_the_zone_of_a_session_are_refused(tmp_path):
    times = polars.DataFrame({"time": [datetime(2026, 3, 1, tzinfo=UTC)] * 2})
    times.write_parquet(tmp_path / "times.parquet")
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'Europe/Vienna'")
    assert refusal(connection.read_parquet(str(tmp_path / "times.parquet"))) == (
        "the log: column 'time' has times in the session's time zone, Europe/Vienna: set it to UTC"
    )


def test_a_type_without_a_distribution_is_refused():
    assert refusal(polars.LazyFrame({"x": [{"a": 1}, {"a": 2}]})) == (
        "the log: column 'x' holds Struct({'a': Int64}), not numbers, text or times: convert or remove it"
    )


def test_a_type_that_cannot_be_read_fails_its_column_and_all_others_are_judged(engine):
    rows = polars.DataFrame({"x": np.arange(100.0), "y": np.arange(100.0)})
    profile = ms.reference_profile(rows)
    today = rows.with_columns(polars.struct("x").alias("x"), polars.when(polars.col("y") > 50).then("y").alias("y"))
    evidence = ms.measure_data_quality(engine(today), profile, max_rate=0.1)
    assert evidence.verdict is ms.Verdict.FAIL
    assert "column 'x' holds " in evidence.findings[0]
    assert evidence.findings[1].startswith("'y' null in 0.0 %")


def test_a_column_of_infinities_is_refused():
    assert refusal(polars.LazyFrame({"x": [np.inf, -np.inf, None]})) == (
        "column 'x' is infinite in every non-null row: exclude=('x',) leaves it out"
    )


def test_rows_in_memory_are_refused():
    assert refusal(polars.DataFrame({"x": [1, 2]})) == (
        "frame must be a lazy frame; got DataFrame: use reference_profile"
    )


def test_deviation_of_the_largest_numbers_does_not_overflow():
    column = scan(polars.LazyFrame({"x": [1e300, 3e300]})).column("x")
    assert isinstance(column, NumericColumn)
    assert (column.mean, column.std) == pytest.approx((2e300, 1e300))


def test_nan_is_seen_where_a_file_states_a_range_without_it(tmp_path):
    polars.DataFrame({"x": [1.0, np.nan, 2.0, np.nan]}).write_parquet(tmp_path / "rows.parquet")
    column = scan(duckdb.connect().read_parquet(str(tmp_path / "rows.parquet"))).column("x")
    assert isinstance(column, NumericColumn)
    assert (column.nulls, column.maximum) == (2, 2.0)
