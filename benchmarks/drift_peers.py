"""Alarms and time of the drift and data-quality gates and of other tools: `python -m benchmarks.drift_peers`.

    python -m benchmarks.drift_peers [--worlds 40] [--peer evidently=PYTHON --peer alibi-detect=PYTHON ...]

Every tool tests the same worlds: a reference of 10,000 rows and a current data set of 2,000, 15 columns of
numbers and 5 of categories, with one change; and digits without one class. scipy's tests are the baseline: one test a
column at 5 %, without and with Bonferroni's correction. Each peer is optional and runs with its defaults in a separate
environment, a Python that has it.

Ours is `measure_drift(max_distance=0.03)` and `measure_data_quality(max_rate=0.003)`, half of 5 % each, with a
profile without rows and with one that stores 2,000 (`sketch_rows`). The time of a tool runs from the columns in memory
to its result, and includes the profile or fit of the reference.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, ks_2samp

import pytest_modelserve as ms
from benchmarks.drift_peer import LEVEL, TOOLS, Peer, Result
from fixtures.digits import DATA
from pytest_modelserve.progress import progress

REFERENCE_ROWS, CURRENT_ROWS, NUMBERS, CATEGORIES = 10_000, 2_000, 15, 5
CITIES = np.array(["Aachen", "Bonn", "Celle", "Dachau", "Essen", "Fulda"])
PROPORTIONS = np.array([0.5, 0.2, 0.1, 0.1, 0.06, 0.04])
MAX_DISTANCE, MAX_RATE = 0.03, 0.003

Columns = dict[str, NDArray[Any]]


def table(rng: np.random.Generator, rows: int) -> Columns:
    """Return independent columns of both kinds."""
    numbers = {f"x{index}": rng.normal(size=rows) for index in range(NUMBERS)}
    return numbers | {f"c{index}": rng.choice(CITIES, rows, p=PROPORTIONS) for index in range(CATEGORIES)}


def shifted(_: np.random.Generator, data: Columns) -> Columns:
    return data | {name: data[name] + 0.2 for name in ("x0", "x1")}


def shifted_with_nan(rng: np.random.Generator, data: Columns) -> Columns:
    data = shifted(rng, data)
    for name in list(data)[:NUMBERS]:
        data[name][0] = np.nan
    return data


def category(rng: np.random.Generator, data: Columns) -> Columns:
    return data | {"c0": rng.choice(CITIES, len(data["c0"]), p=PROPORTIONS + np.array([-0.05, 0.05, 0, 0, 0, 0]))}


def correlated(rng: np.random.Generator, data: Columns) -> Columns:
    return data | {"x1": 0.5 * data["x0"] + np.sqrt(0.75) * rng.normal(size=len(data["x0"]))}


def with_nulls(rng: np.random.Generator, data: Columns) -> Columns:
    return data | {"x0": np.where(rng.random(len(data["x0"])) < 0.01, np.nan, data["x0"])}


def slipped(rng: np.random.Generator, data: Columns) -> Columns:
    return data | {"x0": np.where(rng.random(len(data["x0"])) < 0.005, 100 * data["x0"], data["x0"])}


def by_a_hundredth(_: np.random.Generator, data: Columns) -> Columns:
    return data | {f"x{index}": data[f"x{index}"] + 0.01 for index in range(4)}


@dataclass(frozen=True, slots=True)
class World:
    """A generator of two data sets, and the fraction of `--worlds` for which it is used."""

    draw: Callable[[np.random.Generator, int], tuple[Columns, Columns]]
    fraction: float = 1.0


def changed(change: Callable[[np.random.Generator, Columns], Columns], rows: int | None = None) -> World:
    def draw(rng: np.random.Generator, _: int) -> tuple[Columns, Columns]:
        return table(rng, rows or REFERENCE_ROWS), change(rng, table(rng, rows or CURRENT_ROWS))

    return World(draw, 1.0 if rows is None else 0.05)


def without_a_class(rng: np.random.Generator, index: int) -> tuple[Columns, Columns]:
    """Return 1,200 shuffled digits, and the other 597 without one class."""
    with np.load(DATA) as file:
        images, labels = file["images"], file["labels"]
    order = rng.permutation(len(images))
    pixels = images.reshape(len(images), -1)[order].astype(float)
    rest = pixels[1200:][labels[order][1200:] != index % 10]
    reference, current = ({f"p{i}": rows[:, i] for i in range(pixels.shape[1])} for rows in (pixels[:1200], rest))
    return reference, current


WORLDS = {
    "nothing changed": changed(lambda _, data: data),
    "+0.2 sd in 2 columns": changed(shifted),
    "the same, one row NaN": changed(shifted_with_nan),
    "category +5 points": changed(category),
    "correlation 0 → 0.5": changed(correlated),
    "1 % nulls in one": changed(with_nulls),
    "× 100 in 0.5 % of one": changed(slipped),
    "digits less a class": World(without_a_class),
    "1M rows, 0.01 sd in 4": changed(by_a_hundredth, 1_000_000),
}


def ours(reference: Columns, current: Columns, sketch_rows: int = 0) -> bool:
    profile = ms.reference_profile(reference, sketch_rows=sketch_rows)
    drift = ms.measure_drift(current, profile, max_distance=MAX_DISTANCE, alpha=LEVEL / 2, block=1)
    quality = ms.measure_data_quality(current, profile, max_rate=MAX_RATE, alpha=LEVEL / 2)
    return ms.Verdict.FAIL in (drift.verdict, quality.verdict)


def p_values(reference: Columns, current: Columns) -> list[float]:
    found = []
    for name, then in reference.items():
        if then.dtype.kind == "U":
            names = sorted(set(then.tolist()) | set(current[name].tolist()))
            counts = [[int((values == each).sum()) for each in names] for values in (then, current[name])]
            found.append(chi2_contingency(counts).pvalue)
        else:
            found.append(ks_2samp(then, current[name], method="asymp", nan_policy="omit").pvalue)
    return found


def timed(tool: Callable[[Columns, Columns], bool]) -> Callable[[Columns, Columns], Result]:
    def call(reference: Columns, current: Columns) -> Result:
        start = time.perf_counter()
        alarm = bool(tool(reference, current))
        return Result(alarm, time.perf_counter() - start)

    return call


HERE = {
    "ours": timed(ours),
    "ours, with sketch": timed(functools.partial(ours, sketch_rows=2000)),
    "scipy, any column": timed(lambda then, now: min(p_values(then, now)) < LEVEL),
    "scipy, Bonferroni": timed(lambda then, now: min(p_values(then, now)) < LEVEL / len(then)),
}


def run_worlds(
    world: World, rng: np.random.Generator, worlds: int, peers: dict[str, Peer]
) -> Iterator[tuple[str, Result]]:
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder, "reference.npz"), Path(folder, "current.npz")
        for index in range(max(round(worlds * world.fraction), 2)):
            data = world.draw(rng, index)
            for name, tool in HERE.items():
                yield name, tool(*data)
            if peers:
                for path, columns in zip(paths, data, strict=True):
                    np.savez(path, **columns)
            for name, peer in peers.items():
                yield name, peer.compare(*paths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=40, help="worlds of each kind (default: 40)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--peer", action="append", default=[], metavar="TOOL=PYTHON", help=f"one of {', '.join(TOOLS)}, and a Python"
    )
    given = parser.parse_args()
    pythons = dict(peer.split("=", 1) for peer in given.peer)
    rng = np.random.default_rng(given.seed)
    with contextlib.ExitStack() as stack:
        peers = {tool: stack.enter_context(Peer.of(tool, Path(python))) for tool, python in pythons.items()}
        tools = [*HERE, *peers]
        print("alarms in %".ljust(24) + "worlds" + "".join(tool.rjust(19) for tool in tools))
        seconds: dict[str, list[float]] = defaultdict(list)
        for what, world in progress(WORLDS.items(), "worlds"):
            alarms: dict[str, list[bool]] = defaultdict(list)
            for tool, result in run_worlds(world, rng, given.worlds, peers):
                alarms[tool].append(result.alarm)
                if world.fraction == 1 and world.draw is not without_a_class:
                    seconds[tool].append(result.seconds)
            figures = "".join(f"{100 * statistics.mean(alarms[tool]):19.1f}" for tool in tools)
            print(f"{what:<24}{len(alarms['ours']):6}{figures}", flush=True)
        each = {tool: statistics.median(seconds[tool]) for tool in tools}
        print("ms, 20 columns".ljust(30) + "".join(f"{1e3 * each[tool]:19.1f}" for tool in tools))
        print("relative to ours".ljust(30) + "".join(f"{each[tool] / each['ours']:19.2f}" for tool in tools))


if __name__ == "__main__":
    main()
