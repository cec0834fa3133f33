"""Alarms of a monitor on unchanged rows that are unusual, or that depend on their neighbors.

    python -m benchmarks.monitor_data [--worlds 1000] [--lives 100] [--seed 0]

An unusual world has a profile of 50 to 10,000 rows and 3 to 24 windows of 1 to 1,000 rows, of one to three columns
whose kinds are drawn from `benchmarks.unusual_data`. A chain is an autoregression that is cut into a profile and
windows. Both are judged after each window without any tolerance; at most 5 % may alarm.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.signal import lfilter

import pytest_modelserve as ms
from benchmarks import unusual_data as kinds
from pytest_modelserve.errors import ModelServeError
from pytest_modelserve.monitoring.monitor.stream_evidence import Evaluator
from pytest_modelserve.progress import progress
from pytest_modelserve.stats import binomial_bounds
from pytest_modelserve.stats.e_process import Starts

KINDS = (
    kinds.few_values, kinds.boolean, kinds.heavy_ties, kinds.rounded, kinds.counts, kinds.rare_infinities,
    kinds.rare_nulls, kinds.constant, kinds.nearly_constant, kinds.heavy_tail, kinds.categories, kinds.texts,
    kinds.identifiers,
)  # fmt: skip

Rows = dict[str, np.ndarray]


def alarm(profile: Rows, windows: list[Rows]) -> str:
    """Return the stream that alarms first; "" if none does."""
    columns = ms.streams.columns(ms.reference_profile(profile), max_shift=0.0, max_increase=0.0)
    evaluator = Evaluator(columns.streams, alpha=0.05, life=365)
    measured = [columns.measure(window) for window in windows]
    for night in range(len(measured)):
        starts = Starts.of(night, life=365)
        pooled = np.zeros((2, starts.slots.size, len(columns.streams)))
        for part, values in zip(pooled, zip(*measured[: night + 1], strict=True), strict=True):
            np.add.at(part, starts.block_of(np.arange(night + 1)), np.stack(values))
        found = evaluator.evaluate(*pooled, starts)
        if found.alarmed:
            return found.changes[0].stream.name
    return ""


def unusual(seed: int) -> str | None:
    """Return the alarm of one unusual world; None if its columns cannot be profiled."""
    rng = np.random.default_rng(seed)
    draws = {f"c{place}": KINDS[rng.integers(len(KINDS))](rng) for place in range(rng.integers(1, 4))}
    profile_rows, rows = (int(np.exp(rng.uniform(*np.log(limits)))) for limits in ((50, 10_000), (1, 1_000)))
    nights = int(rng.integers(3, 25))
    try:
        return alarm(
            {name: draw(rng, profile_rows) for name, draw in draws.items()},
            [{name: draw(rng, rows) for name, draw in draws.items()} for _ in range(nights)],
        )
    except ModelServeError:
        return None


def chain(seed: int, *, memory: float, profile_rows: int, rows: int, nights: int) -> str:
    """Return the alarm of one chain."""
    noise = np.random.default_rng(seed).normal(size=profile_rows + nights * rows + 200)
    values = lfilter([np.sqrt(1 - memory**2)], [1, -memory], noise)[200:]
    windows = np.split(values[profile_rows:], nights)
    return alarm({"x": values[:profile_rows]}, [{"x": window} for window in windows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=1_000)
    parser.add_argument("--lives", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    seeds = range(arguments.seed, arguments.seed + arguments.worlds)
    report("unusual data", [unusual(seed) for seed in progress(seeds, "unusual data")])
    for memory, profile_rows, rows, nights in (
        (0.3, 1_000, 100, 20),
        (0.7, 2_000, 300, 15),
        (0.7, 2_000, 20, 30),
        (0.9, 5_000, 500, 15),
    ):
        title = f"chains of {memory}, profile of {profile_rows:,} rows, {nights} windows of {rows}"
        found = [
            chain(seed, memory=memory, profile_rows=profile_rows, rows=rows, nights=nights)
            for seed in progress(range(arguments.seed, arguments.seed + arguments.lives), title)
        ]
        report(title, found)


def report(title: str, alarms: list[str | None]) -> None:
    """Print how many of the lives alarm, with the upper 95 % limit, and by which streams."""
    judged = [found for found in alarms if found is not None]
    named = sorted(filter(None, judged))
    limit = binomial_bounds(len(named), len(judged), low_level=0.95, high_level=0.95).high
    print(f"{title}: {len(named)} of {len(judged)} alarm, at most {100 * limit:.2f} % {named[:5]}", flush=True)


if __name__ == "__main__":
    main()
