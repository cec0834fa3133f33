"""Every engine counts what is counted in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars
import pytest

from pytest_modelserve.monitoring import ReferenceProfile, reference_profile
from pytest_modelserve.monitoring.column_profile import NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.lazy_profiler import scan
from pytest_modelserve.stats.autocorrelation import LagOne

Engine = Callable[[polars.DataFrame], Any]

pytestmark = pytest.mark.parametrize("engine", ["polars", "duckdb"], indirect=True)
"""PySpark, which takes seconds a query, is asked in test_scan.py."""


def draw(rows: int, seed: int) -> polars.DataFrame:
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


def counted(profile: ReferenceProfile) -> list[ProfiledColumn]:
    """The columns without what needs an order of rows, and with moments as far as engines agree on them."""
    return [_exact(column) for column in profile.columns]


def _exact(column: ProfiledColumn) -> ProfiledColumn:
    if not isinstance(column, NumericColumn):
        return replace(column, lag=LagOne(0.0, 0))
    return replace(column, lag=LagOne(0.0, 0), sums=None, backward=None, mean=0.0, std=0.0)


def moments(profile: ReferenceProfile) -> list[float]:
    numbers = [column for column in profile.columns if isinstance(column, NumericColumn)]
    return [moment for column in numbers for moment in (column.mean, column.std) if column.name != "heavy"]


def test_counts_are_those_in_memory_between_the_edges_of_a_profile(engine: Engine) -> None:
    reference, current = reference_profile(draw(500, seed=1), bins=32), draw(3_000, seed=2)
    scanned, in_memory = scan(engine(current), like=reference), reference_profile(current, like=reference)
    assert counted(scanned) == counted(in_memory)
    assert moments(scanned) == pytest.approx(moments(in_memory), rel=1e-12)
    assert any(column.below and column.above for column in scanned.columns if isinstance(column, NumericColumn))


def test_profile_without_another_has_the_counts_that_its_edges_have_in_memory(engine: Engine) -> None:
    frame = draw(3_000, seed=3)
    scanned = scan(engine(frame), bins=32)
    assert scanned.names == reference_profile(frame).names
    assert counted(scanned) == counted(reference_profile(frame, like=scanned))
    assert ReferenceProfile.from_json(scanned.to_json()) == scanned
    of_zeros = scanned.column("zeros")
    assert isinstance(of_zeros, NumericColumn)
    assert frame["zeros"].eq(0).sum() in of_zeros.counts  # the heavy value has a bin of its own


def test_shards_merge_to_the_profile_of_all_rows(engine: Engine) -> None:
    frame = draw(800, seed=4).select("normal", "count", "city")
    whole = scan(engine(frame))
    shards = [scan(engine(part), like=whole) for part in (frame[:300], frame[300:])]
    assert counted(shards[0].merge(shards[1])) == counted(whole)


def test_columns_that_are_all_null_fit_every_kind(engine: Engine) -> None:
    frame = draw(200, seed=5).select("normal", "member", "street", "time")
    nothing = frame.with_columns(polars.lit(None).cast(kind).alias(name) for name, kind in frame.schema.items())
    reference = reference_profile(frame)
    assert counted(scan(engine(nothing), like=reference)) == counted(reference_profile(nothing, like=reference))
