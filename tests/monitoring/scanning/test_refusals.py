"""What an engine cannot tell is said, and not guessed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars
import pytest

from pytest_modelserve.errors import InputError
from pytest_modelserve.monitoring import lazy_columns, lazy_profiler
from pytest_modelserve.monitoring.column_profile import NumericColumn
from pytest_modelserve.monitoring.lazy_profiler import scan


def refusal(frame: Any) -> str:
    with pytest.raises(InputError) as raised:
        scan(frame, name="the log")
    return str(raised.value)


def test_too_many_texts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy_columns, "MAX_TEXTS", 3)
    assert scan(polars.LazyFrame({"id": ["a", "b", "c", "c", None]})).rows == 5
    assert refusal(polars.LazyFrame({"id": list("abcd")})) == (
        "the log: column 'id' holds more than 3 different texts: remove or group them"
    )


def test_times_in_the_zone_of_a_session_are_refused(tmp_path: Path) -> None:
    times = polars.DataFrame({"time": [datetime(2026, 3, 1, tzinfo=UTC)] * 2})
    times.write_parquet(tmp_path / "times.parquet")
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'Europe/Vienna'")
    assert refusal(connection.read_parquet(str(tmp_path / "times.parquet"))) == (
        "the log: column 'time' has times in the session's time zone, Europe/Vienna: set it to UTC"
    )


def test_a_type_without_a_distribution_is_refused() -> None:
    assert refusal(polars.LazyFrame({"x": [{"a": 1}, {"a": 2}]})) == (
        "the log: column 'x' holds Struct({'a': Int64}), not numbers, text or times: convert or remove it"
    )


def test_a_column_of_infinities_is_refused() -> None:
    assert refusal(polars.LazyFrame({"x": [np.inf, -np.inf, None]})) == (
        "column 'x' is infinite in every non-null row: remove it"
    )


def test_rows_in_memory_are_refused() -> None:
    assert refusal(polars.DataFrame({"x": [1, 2]})) == (
        "frame must be a lazy frame; got DataFrame: use reference_profile"
    )


def test_deviation_of_the_largest_numbers_does_not_overflow() -> None:
    column = scan(polars.LazyFrame({"x": [1e300, 3e300]})).column("x")
    assert isinstance(column, NumericColumn)
    assert (column.mean, column.std) == pytest.approx((2e300, 1e300))


def test_nan_is_seen_where_a_file_states_a_range_without_it(tmp_path: Path) -> None:
    polars.DataFrame({"x": [1.0, np.nan, 2.0, np.nan]}).write_parquet(tmp_path / "rows.parquet")
    column = scan(duckdb.connect().read_parquet(str(tmp_path / "rows.parquet"))).column("x")
    assert isinstance(column, NumericColumn)
    assert (column.nulls, column.maximum) == (2, 2.0)


def test_progress_is_told_of_totals_and_of_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def progress(items: Iterable[Any], description: str) -> Iterable[Any]:
        told.append(description)
        return items

    monkeypatch.setattr(lazy_profiler, "progress", progress)
    scan(polars.LazyFrame({"x": [1, 2]}), name="the log")
    assert told == ["adding up the columns of the log", "counting the columns of the log"]
