from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

import pytest_modelserve as ms
from pytest_modelserve.errors import InputError
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn

ROWS = 2_000


def table(seed: int, rows: int = ROWS) -> pl.DataFrame:
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


def comparable(profile: ms.ReferenceProfile) -> list[dict[str, Any]]:
    """What an engine can tell too: all but what depends on the order of rows, and sums but to rounding."""
    told = []
    for column in profile.columns:
        kept = {
            "name": column.name,
            "kind": column.kind,
            "rows": column.rows,
            "nulls": column.nulls,
            "counts": column.counts,
        }
        if isinstance(column, NumericColumn):
            kept |= {
                name: getattr(column, name) for name in ("edges", "minimum", "maximum", "below", "above", "source")
            }
            kept |= {
                "infinities": (column.negative_infinities, column.positive_infinities),
                "mean": pytest.approx(column.mean, rel=1e-9),
                "std": pytest.approx(column.std, rel=1e-6),
            }
        else:
            kept["categories"] = column.categories
        told.append(kept)
    return told


def test_engine_counts_exactly_what_memory_counts(engine: Any, request: pytest.FixtureRequest) -> None:
    reference = ms.reference_profile(table(0), name="reference")
    day = table(1)
    if request.node.callspec.params["engine"] == "pyspark":  # which takes seconds a query
        reference = replace(reference, columns=reference.columns[:1] + reference.columns[2:7:2], associations=None)
        day = day.select(reference.input_names)
    here = ms.reference_profile(day, like=reference, name="day")
    there = ms.reference_profile(engine(day), like=reference, name="day")
    assert comparable(there) == comparable(here)


def test_gates_judge_a_frame_where_it_lies(engine: Any) -> None:
    reference = ms.reference_profile(table(0).select("whole", "city"), block=1)
    same, now = table(1).select("whole", "city"), table(1).select("city", pl.col("whole") + 100)
    assert ms.measure_drift(engine(same), reference, max_distance=0.15).verdict is ms.Verdict.PASS
    assert ms.measure_drift(engine(now), reference, max_distance=0.15).verdict is ms.Verdict.FAIL
    nulls = same.with_columns(pl.when(pl.int_range(ROWS) % 3 > 0).then("whole").alias("whole"))
    quality = ms.measure_data_quality(engine(nulls), reference, max_rate=0.1)
    assert quality.verdict is ms.Verdict.FAIL
    assert any("'whole'" in finding for finding in quality.findings)


def test_edges_chosen_by_an_engine_divide_the_rows_as_evenly_as_those_of_memory() -> None:
    rows = table(0, 20_000).drop("text", "at", "city")
    there, here = ms.reference_profile(rows.lazy()), ms.reference_profile(rows)
    for name in ("x", "heavy"):
        scanned, counted = there.column(name), here.column(name)
        assert isinstance(scanned, NumericColumn)
        assert isinstance(counted, NumericColumn)
        assert sum(scanned.counts) == sum(counted.counts)
        assert max(scanned.counts) <= 4 * max(counted.counts)


def test_scanned_days_merge_with_those_of_memory() -> None:
    reference = ms.reference_profile(table(0))
    days = [table(seed) for seed in (1, 2)]
    scanned = [ms.reference_profile(day.lazy(), like=reference) for day in days]
    together = ms.reference_profile(pl.concat(days), like=reference)
    assert comparable(scanned[0].merge(scanned[1])) == comparable(together)


def test_categories_beyond_the_limit_are_pooled_alike() -> None:
    rows = pl.DataFrame({"name": [f"name {i % 300}" for i in range(3_000)]})
    there, here = ms.reference_profile(rows.lazy()), ms.reference_profile(rows)
    scanned, counted = there.column("name"), here.column("name")
    assert isinstance(scanned, CategoricalColumn)
    assert isinstance(counted, CategoricalColumn)
    assert replace(scanned, lag=counted.lag) == counted


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (pl.DataFrame({"x": pl.Series([], dtype=pl.Float64)}), "reference: there are no rows"),
        (pl.DataFrame({"x": [1.0]}), "reference has 1 row: a profile needs at least 2 rows (thousands recommended)"),
        (
            pl.DataFrame({"x": pl.Series([None, None], dtype=pl.Float64)}),
            "column 'x' is null in every row: remove it",
        ),
        (
            pl.DataFrame({"x": [[1, 2], [3]]}),
            "reference: column 'x' holds embeddings: collect the frame first, or remove the column",
        ),
    ],
    ids=["no rows", "one row", "all null", "lists"],
)
def test_rows_without_a_distribution_are_refused(rows: pl.DataFrame, told: str) -> None:
    with pytest.raises(InputError) as raised:
        ms.reference_profile(rows.lazy())
    assert str(raised.value) == told


def test_a_frame_that_does_not_fit_names_the_columns() -> None:
    reference = ms.reference_profile(table(0).select("x", "whole"))
    other = table(1).select("x").with_columns(extra=1)
    with pytest.raises(InputError, match="column 'whole' is missing"):
        ms.reference_profile(other.lazy(), like=reference)


def test_engine_that_fails_is_told_in_one_error(tmp_path: Any) -> None:
    path = tmp_path / "rows.parquet"
    table(0).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="reference"):
        ms.reference_profile(pl.scan_parquet(path))


def test_a_sketch_of_a_frame_elsewhere_is_refused() -> None:
    with pytest.raises(ms.UsageError, match="sketch_rows"):
        ms.reference_profile(table(0).lazy(), sketch_rows=10)
