"""Time and memory of a profile of 20 million rows × 10 columns in a Parquet file, by engine and written by hand.

    python benchmarks/drift_scale.py [--rows 20_000_000] [--spark-rows 2_000_000] [--rounds 3] [--data FILE]

Each measurement is a separate process: wall time and CPU time of the profile alone, and peak memory (VmHWM; for PySpark
of the Python process only). It prints medians over rounds.

    polars        `reference_profile` of the lazy frame, which chooses its own edges
    polars, like  the same with the edges of a profile of the first 10,000 rows, as in a nightly check
    by hand       Polars only: nulls, infinities, range, mean and deviation of every column, then counts, minimum and
                  maximum in 8,192 equal cells, and counts by category

Goals for Polars: 15 s, 600 MB, and 1.5 × the CPU time of the version by hand.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pytest_modelserve.monitoring import reference_profile

GOAL_S, GOAL_MB, GOAL_RATIO = 15, 600, 1.5
CELLS = 8_192
CITIES = np.array(["Bern", "Genf", "Graz", "Linz", "Wien"])


def write_rows(path: Path, rows: int, *, part: int = 500_000) -> None:
    """Write ten columns of ten shapes, one part at a time."""
    from pyarrow import parquet  # type: ignore[import-untyped]

    rng, writer = np.random.default_rng(0), None
    for start in range(0, rows, part):
        n = min(part, rows - start)
        ratio = rng.beta(2, 5, n)
        frame = pl.DataFrame(
            {
                "normal": rng.normal(size=n),
                "single": rng.normal(40, 12, n).astype(np.float32),
                "income": rng.lognormal(3, 2, n),
                "ratio": pl.Series(ratio).set(pl.Series(rng.random(n) < 0.01), None),
                "heavy": rng.standard_t(2, n),
                "zeros": np.where(rng.random(n) < 0.3, 0, rng.lognormal(0, 1, n)),
                "count": rng.poisson(4, n),
                "number": rng.integers(0, 10**9, n),
                "city": CITIES[rng.integers(0, len(CITIES), n)],
                "time": (1_700_000_000_000_000 + 1_000 * np.arange(start, start + n)).astype("datetime64[us]"),
            }
        ).to_arrow()
        writer = writer or parquet.ParquetWriter(path, frame.schema)
        writer.write_table(frame)
    assert writer is not None
    writer.close()


def by_hand(path: Path) -> int:
    """Aggregate in Polars, and return the number of cells and categories."""
    frame = pl.scan_parquet(path)
    names = [name for name in frame.collect_schema().names() if name not in ("city", "time")]
    numbers = {name: pl.col(name).cast(pl.Float64) for name in names}
    numbers["time"] = pl.col("time").dt.timestamp("us") / 1e6
    expressions = [pl.len().alias("rows"), pl.col("city").null_count()]
    for name, values in numbers.items():
        finite = pl.when(values.is_finite()).then(values)
        expressions += [
            values.null_count().alias(f"{name} nulls"),
            values.is_nan().sum().alias(f"{name} nan"),
            (values == np.inf).sum().alias(f"{name} positive"),
            (values == -np.inf).sum().alias(f"{name} negative"),
            finite.min().alias(f"{name} minimum"),
            finite.max().alias(f"{name} maximum"),
            finite.mean().alias(f"{name} mean"),
            finite.std(ddof=0).alias(f"{name} std"),
        ]
    totals = frame.select(expressions).collect(engine="streaming").row(0, named=True)
    found = len(frame.group_by("city").len().collect(engine="streaming"))
    for name, values in numbers.items():
        low, high = totals[f"{name} minimum"], totals[f"{name} maximum"]
        cell = ((pl.col("x") - low) * (CELLS / (high - low))).floor().cast(pl.Int64)
        query = frame.select(values.alias("x")).filter(pl.col("x").is_finite()).group_by(cell.alias("cell"))
        least, largest = pl.col("x").min().alias("low"), pl.col("x").max().alias("high")
        found += len(query.agg(pl.len(), least, largest).collect(engine="streaming"))
    return found


def spark_frame(path: Path) -> Any:
    warnings.simplefilter("ignore")
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2]").config("spark.driver.memory", "2g")
    for name, value in {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "2",
        "spark.log.level": "OFF",
    }.items():
        builder = builder.config(name, value)
    return builder.getOrCreate().read.parquet(str(path))


def duckdb_frame(path: Path) -> Any:
    import duckdb

    return duckdb.connect().read_parquet(str(path))


FRAMES: dict[str, Callable[[Path], Any]] = {
    "polars": pl.scan_parquet,
    "duckdb": duckdb_frame,
    "pyspark": spark_frame,
}


def run_once(way: str, path: Path) -> None:
    """Measure one way in this process, and print wall time, CPU time and megabytes."""
    engine, _, like = way.partition(", ")
    reference_profile(pl.LazyFrame({"warm": [0.0, 1.0], "up": ["a", "b"]}))
    if engine == "by hand":
        call: Callable[[], object] = lambda: by_hand(path)  # noqa: E731
    else:
        frame = FRAMES[engine](path)
        first = reference_profile(pl.scan_parquet(path).head(10_000).collect()) if like else None
        call = lambda: reference_profile(frame, like=first)  # noqa: E731
    wall, processor = time.perf_counter(), time.process_time()
    call()
    took = time.perf_counter() - wall, time.process_time() - processor
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]
    print(*took, int(peak) / 1024)


def measured(way: str, path: Path) -> tuple[float, float, float]:
    command = [sys.executable, __file__, "--once", way, "--data", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    seconds, processor, megabytes = map(float, done.stdout.split()[-3:])
    return seconds, processor, megabytes


def table(ways: list[str], path: Path, rounds: int, rows: int) -> dict[str, tuple[float, float, float]]:
    runs: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            runs[way].append(measured(way, path))
    print(f"\n{rows:,} rows × 10 columns, {path.stat().st_size / 1e6:.0f} MB of Parquet, median of {rounds}")
    print(f"{'':20}{'wall s':>9}{'CPU s':>12}{'peak MB':>9}")
    medians = {}
    for way, taken in runs.items():
        seconds, processor, megabytes = (statistics.median(values) for values in zip(*taken, strict=True))
        medians[way] = seconds, processor, megabytes
        cpu = "in Java" if way.startswith("pyspark") else f"{processor:.1f}"
        print(f"{way:20}{seconds:9.1f}{cpu:>12}{megabytes:9.0f}")
    return medians


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--spark-rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="a Parquet file to read; written, and removed, without")
    parser.add_argument("--once", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.once:
        run_once(chosen.once, chosen.data)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = chosen.data or Path(folder) / "rows.parquet"
        if chosen.data is None:
            write_rows(path, chosen.rows)
        rows = pl.scan_parquet(path).select(pl.len()).collect().item()
        ways = ["by hand", "polars", "polars, like", "duckdb", "duckdb, like"]
        medians = table(ways, path, chosen.rounds, rows)
        if shutil.which("java") is None:
            print("\npyspark: skipped, because Java is not installed")
        else:
            fewer = Path(folder) / "fewer.parquet"
            write_rows(fewer, chosen.spark_rows)
            table(["polars, like", "pyspark, like"], fewer, 1, chosen.spark_rows)
    good = True
    print()
    for way in ("polars", "polars, like"):
        seconds, processor, megabytes = medians[way]
        ratio = processor / medians["by hand"][1]
        good &= (met := seconds <= GOAL_S and megabytes <= GOAL_MB and ratio <= GOAL_RATIO)
        print(
            f"{way}: {seconds:.1f} of {GOAL_S} s, {megabytes:.0f} of {GOAL_MB} MB, "
            f"{ratio:.2f} of {GOAL_RATIO} × by hand (by wall time {seconds / medians['by hand'][0]:.2f}): "
            f"{'met' if met else 'MISSED'}"
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
