"""Cost of a drift check, and the accuracy of its distances compared with those of the rows.

    python benchmarks/drift.py [--rounds 31] [--worlds 30] [--rows 200000] [--columns 20]

Speed: `measure_drift` of 200,000 × 20 floats, everything included, against `np.sort` of the same columns, in rounds
whose order is shuffled. np.sort is timed twice: with each result dropped, so that the next one reuses its memory, and
with all results stored, as a test that needs the sorted columns would. Medians; the goal is 0.25. If numpy sorts with
AVX-512, in 5 ns a value, the goal leaves a check 1.2 ns; the same figures without vector instructions (65 ns) by

    NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4 AVX512_ICL" python benchmarks/drift.py

Memory: the peak of what Python and numpy allocate during the check, beyond the data.

Accuracy: the Kolmogorov-Smirnov distance at the edges of the profile against scipy's from the rows.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from pytest_modelserve.monitoring import ReferenceProfile, measure_data_quality, measure_drift, reference_profile
from pytest_modelserve.monitoring.histogram import CellTable, choose_edges, count_values
from pytest_modelserve.stats.two_sample_tests import distribution_distance

PROFILE_ROWS = 10_000
GOAL, GOAL_MB = 0.25, 50

Floats = NDArray[np.float64]
Sampler = Callable[[np.random.Generator, int, float], Floats]

SHAPES: dict[str, Sampler] = {
    "normal": lambda rng, n, s: rng.normal(s, 1, n),
    "exponential": lambda rng, n, s: rng.exponential(1 + s, n),
    "Cauchy": lambda rng, n, s: rng.standard_cauchy(n) + s,
    "Student t, 0.5 d.f.": lambda rng, n, s: rng.standard_t(0.5, n) * (1 + s),
    "lognormal(2) × 1e6": lambda rng, n, s: 1e6 * rng.lognormal(s, 2, n),
    "lognormal(5)": lambda rng, n, s: rng.lognormal(5 * s, 5, n),
    "30 % zeros": lambda rng, n, s: np.where(rng.random(n) < 0.3, 0, rng.lognormal(s, 2, n)),
    "Poisson(4)": lambda rng, n, s: rng.poisson(4 + s, n).astype(float),
    "Poisson(4000)": lambda rng, n, s: rng.poisson(4000 * (1 + s / 50), n).astype(float),
    "1e9 + normal": lambda rng, n, s: 1e9 + rng.normal(s, 1, n),
    "clipped normal": lambda rng, n, s: np.clip(rng.normal(s, 1, n), -1, 1),
    "two spikes": lambda rng, n, s: np.where(rng.random(n) < 0.5, 0, 1000) + 1e-3 * rng.normal(s, 1, n),
}


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median duration of each call in milliseconds; the order is shuffled in every round."""
    order, times = random.Random(0), {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name in order.sample(list(calls), len(calls)):
            start = time.perf_counter_ns()
            calls[name]()
            times[name].append((time.perf_counter_ns() - start) / 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def drop_sorted(columns: dict[str, Floats]) -> None:
    for values in columns.values():
        np.sort(values)


def speed(rng: np.random.Generator, rounds: int, size: tuple[int, int]) -> float:
    data = rng.normal(size=size)
    columns = {f"x{index}": np.ascontiguousarray(data[:, index]) for index in range(size[1])}
    profile = reference_profile({name: values[:PROFILE_ROWS] for name, values in columns.items()})
    heavy = {name: np.exp(2 * values) * 1e6 for name, values in columns.items()}
    heavy_profile = reference_profile({name: values[:PROFILE_ROWS] for name, values in heavy.items()})
    spikes = {name: np.where(values > 0, 1000 + values / 1e3, values / 1e3) for name, values in columns.items()}
    spikes_profile = reference_profile({name: values[:PROFILE_ROWS] for name, values in spikes.items()})
    edges = [column.edges for column in profile.columns]
    without_pairs = replace(profile, associations=None)
    times = interleaved(
        {
            "np.sort, results dropped": lambda: drop_sorted(columns),
            "np.sort, results stored": lambda: [np.sort(values) for values in columns.values()],
            "np.sort of the array, axis 0": lambda: np.sort(data, axis=0),
            "drift, columns alone": lambda: measure_drift(columns, without_pairs, max_distance=0.1),
            "drift, columns and pairs": lambda: measure_drift(columns, profile, max_distance=0.1),
            "drift, lognormal × 1e6": lambda: measure_drift(heavy, heavy_profile, max_distance=0.1),
            "drift, no table fits": lambda: measure_drift(spikes, spikes_profile, max_distance=0.1),
            "drift, array (n, features)": lambda: measure_drift(data, profile, max_distance=0.1),
            "counting alone": lambda: [count_values(c, e) for c, e in zip(columns.values(), edges, strict=True)],
            "data quality, columns": lambda: measure_data_quality(columns, profile, max_rate=0.01),
        },
        rounds,
    )
    dropped, stored = times["np.sort, results dropped"], times["np.sort, results stored"]
    print(f"{size[0]:,} × {size[1]} floats, {rounds} rounds     ms   ns a value   of np.sort dropped   stored")
    for name, value in times.items():
        each = 1e6 * value / size[0] / size[1]
        print(f"  {name:<30} {value:8.2f} {each:12.2f} {value / dropped:19.3f} {value / stored:6.3f}")
    memory(columns, profile)
    return times["drift, columns alone"] / dropped


def memory(columns: dict[str, Floats], profile: ReferenceProfile) -> None:
    tracemalloc.start()
    measure_drift(columns, profile, max_distance=0.1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"memory beyond the data: {peak / 1e6:.1f} MB (goal ≤ {GOAL_MB} MB)")
    fifty = {f"x{index}": columns[f"x{index % len(columns)}"] * 3.7**index for index in range(50)}
    size = len(reference_profile(fifty).to_json().encode())
    print(f"profile of 50 columns: {size / 1000:.0f} KB (goal ≤ 500 KB)")


def accuracy(rng: np.random.Generator, worlds: int) -> None:
    print(f"\ndistance at the edges, {PROFILE_ROWS:,} against 2,000 rows, {worlds} worlds each")
    print(f"{'shape':<20} {'cells':<14} {'edges':>5}  {'shift':>5} {'of rows':>8} {'at edges':>8} {'largest loss':>12}")
    for name, draw in SHAPES.items():
        for shift in (0.0, 0.3):
            exact, binned = [], []
            for _ in range(worlds):
                then = np.sort(draw(rng, PROFILE_ROWS, 0.0))
                now, edges = draw(rng, 2000, shift), choose_edges(then, bins=256)
                exact.append(ks_2samp(then, now, method="asymp").statistic)
                binned.append(distribution_distance(count_values(then, edges), count_values(now, edges)))
            table = CellTable.of(edges)
            cells = "sorted" if table is None else type(table.cells).__name__
            loss = max(e - b for e, b in zip(exact, binned, strict=True))
            means = f"{np.mean(exact):8.4f} {np.mean(binned):8.4f}"
            print(f"{name:<20} {cells:<14} {len(edges):5}  {shift:5.1f} {means} {loss:12.4f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31, help="rounds of the timing (default 31)")
    parser.add_argument("--worlds", type=int, default=30, help="samples a row of the accuracy table (default 30)")
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the timing (default 200000)")
    parser.add_argument("--columns", type=int, default=20, help="columns of the timing (default 20)")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"numpy {np.__version__}, one thread")
    ratio = speed(rng, arguments.rounds, (arguments.rows, arguments.columns))
    accuracy(rng, arguments.worlds)
    print(f"\ncheck / np.sort = {ratio:.3f} (goal ≤ {GOAL}): {'met' if ratio <= GOAL else 'not met'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
