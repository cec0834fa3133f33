"""What profiling rows where they lie costs: `python -m benchmarks.drift_scale [--rows 20000000] [--slow-rows 1000000]`.

A Parquet file of ten columns (numbers of several shapes, whole numbers, a category, a time) is written once, then
profiled by Polars, by DuckDB and by PySpark through the same code, each in a process of its own that has done nothing
else. Beside it a query written by hand in Polars: totals of all columns, and how many values lie in each of 8,192 cells
of a column's range, which is what edges and counts need at the least. Time is from opening the file to the profile
(without starting the interpreter or Spark), memory the most that the process had resident (VmHWM; Linux alone).

The order is shuffled, medians of `--rounds`. PySpark and its Java read `--slow-rows`; it is left out where Java is not.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

GOAL_S, GOAL_MB, GOAL_RATIO = 15.0, 600, 1.5
STEP = 500_000


def write(path: Path, rows: int) -> None:
    """The columns, a step of rows at a time."""
    import numpy as np
    import polars as pl
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    writer = None
    for start in range(0, rows, STEP):
        n = min(STEP, rows - start)
        ratio = pl.Series(rng.beta(2, 5, n))
        part = pl.DataFrame(
            {
                "normal": rng.normal(size=n),
                "float32": rng.normal(40, 12, size=n).astype(np.float32),
                "income": rng.lognormal(3, 2, n),
                "ratio": ratio.scatter(np.flatnonzero(rng.random(n) < 0.01), None),
                "heavy": rng.standard_t(2, n),
                "zeros": np.where(rng.random(n) < 0.3, 0, rng.lognormal(0, 1, n)),
                "count": rng.poisson(4, n),
                "id": rng.integers(0, 10**9, n),
                "city": rng.choice(["Bern", "Graz", "Linz", "Genf", "Wien"], n),
                "time": (1_700_000_000_000_000 + 1000 * np.arange(start, start + n)).astype("datetime64[us]"),
            }
        ).to_arrow()
        writer = writer or pq.ParquetWriter(path, part.schema)
        writer.write_table(part)
    assert writer is not None
    writer.close()


def with_polars(path: str) -> Callable[[], object]:
    import polars as pl

    import pytest_modelserve as ms

    return lambda: ms.reference_profile(pl.scan_parquet(path))


def with_duckdb(path: str) -> Callable[[], object]:
    import duckdb

    import pytest_modelserve as ms

    return lambda: ms.reference_profile(duckdb.connect().read_parquet(path))


def with_pyspark(path: str) -> Callable[[], object]:
    from pyspark.sql import SparkSession

    import pytest_modelserve as ms

    builder = SparkSession.builder.master("local[2]").config("spark.driver.host", "127.0.0.1")
    for name, value in {
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.session.timeZone": "UTC",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
    }.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    return lambda: ms.reference_profile(session.read.parquet(path))


def by_hand(path: str) -> Callable[[], object]:
    """Polars alone: one query for totals, one a column for cells."""
    import polars as pl

    def profile() -> object:
        frame = pl.scan_parquet(path)
        schema = frame.collect_schema()
        numbers = [name for name in schema if schema[name] != pl.String]
        values = {name: pl.col(name).cast(pl.Float64) for name in numbers}
        finite = {name: pl.when(value.is_finite()).then(value) for name, value in values.items()}
        totals = frame.select(
            *[pl.col(name).null_count().alias(f"{name} nulls") for name in schema],
            *[value.is_nan().sum().alias(f"{name} nan") for name, value in values.items()],
            *[value.min().alias(f"{name} min") for name, value in finite.items()],
            *[value.max().alias(f"{name} max") for name, value in finite.items()],
            *[value.mean().alias(f"{name} mean") for name, value in finite.items()],
            *[value.std().alias(f"{name} std") for name, value in finite.items()],
        ).collect(engine="streaming")
        counts: dict[str, pl.DataFrame] = {}
        for name in schema:
            key = pl.col(name)
            if name in values:
                low, high = totals[f"{name} min"][0], totals[f"{name} max"][0]
                key = ((values[name] - low) * (8192 / (high - low))).floor().cast(pl.Int32).alias("cell")
            counts[name] = frame.group_by(key).agg(pl.len()).collect(engine="streaming")
        return totals, counts

    return profile


WAYS = {"by hand": by_hand, "Polars": with_polars, "DuckDB": with_duckdb, "PySpark": with_pyspark}


def measured(way: str, path: Path) -> dict[str, float]:
    """Seconds and megabytes of one way in a fresh process."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.drift_scale", "--one", way, str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def one(way: str, path: str) -> None:
    profile = WAYS[way](path)
    start = time.perf_counter()
    profile()
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) / 1000 for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "megabytes": peak}))


def table(path: Path, rows: int, ways: list[str], rounds: int) -> dict[str, tuple[float, float]]:
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    order = random.Random(0)
    for _ in range(rounds):
        for way in order.sample(ways, len(ways)):
            found[way].append(measured(way, path))
    print(f"{rows:,} rows × 10 columns, {path.stat().st_size / 1e6:,.0f} MB of Parquet, {rounds} rounds, medians")
    told = {}
    for way, each in found.items():
        seconds, peak = (statistics.median(one[what] for one in each) for what in ("seconds", "megabytes"))
        told[way] = seconds, peak
        print(
            f"  {way:<10} {seconds:8.2f} s {peak:8.0f} MB   {seconds / max(told['by hand'][0], 1e-9):6.2f} of by hand"
        )
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--slow-rows", type=int, default=1_000_000, help="rows for PySpark (default: a million)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "PATH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(*given.one)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.parquet")
        write(path, given.rows)
        (seconds, peak), (alone, _) = map(
            table(path, given.rows, ["by hand", "Polars", "DuckDB"], given.rounds).__getitem__, ("Polars", "by hand")
        )
        print(f"  goal: Polars at most {GOAL_S:.0f} s, {GOAL_MB} MB and {GOAL_RATIO} of by hand")
        met = seconds <= GOAL_S and peak <= GOAL_MB and seconds <= GOAL_RATIO * alone
        print(f"  {'met' if met else 'not met'}")
        if shutil.which("java") is None:
            print("PySpark is left out: Java is not installed")
            return
        write(path, given.slow_rows)
        table(path, given.slow_rows, list(WAYS), given.rounds)


if __name__ == "__main__":
    main()
