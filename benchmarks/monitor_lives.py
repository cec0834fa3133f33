"""Error rates and delays of a monitor over simulated lives, and the cost of a step.

    python benchmarks/monitor_lives.py [--lives 4000] [--seed 0] [--only quiet delays plan step kills] [--ville PYTHON]

A life has 20 numeric columns and 90 nights, and is looked at every night. Columns are simulated as counts in bins with
equally many rows of the profile. For any continuous distribution (normal, t3, lognormal), the true rates of the bins
are then Dirichlet distributed and the counts of a night multinomial. Discrete columns are drawn for both: eight values,
a boolean of 30 % and one of 1 %, and a count with mean 0.05. All streams of a column but nulls and range are simulated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, ndtr, ndtri

import pytest_modelserve as ms
from pytest_modelserve.monitoring.monitor.column_streams import number_scores, stream_shares
from pytest_modelserve.monitoring.monitor.stream import Stream, shift_rate
from pytest_modelserve.monitoring.monitor.stream_evidence import Evaluator
from pytest_modelserve.progress import progress
from pytest_modelserve.stats import binomial_bounds
from pytest_modelserve.stats.e_process import Starts, mean_log_e, mixture_log_e

NIGHTS, COLUMNS, BINS, LIFE, ALPHA = 90, 20, 64, 365, 0.05
BATCH = 10
VALUES = np.array([0.3, 0.25, 0.2, 0.1, 0.08, 0.04, 0.02, 0.01])
DISCRETE = (VALUES, np.array([0.7, 0.3]), np.array([0.99, 0.01]), np.array([0.951, 0.0477, 0.0012, 0.0001]))

Floats = NDArray[np.float64]


def streams_of(counts: Floats, max_shift: float) -> tuple[list[Stream], Floats]:
    """Return the streams of a column, with their shares of the evidence, and their scores in each bin."""
    names, scores = number_scores(counts)
    n, shares = counts.sum(), stream_shares(names)
    found = []
    for name, share, values in zip(names, shares, scores.T, strict=True):
        weight = share / COLUMNS
        if name == "cut":
            found.append(shift_rate(name, float(counts @ values), n, max_shift, weight))
        else:
            found.append(Stream(name, "mean", n, max_shift, "", weight=weight))
    return found, scores


class Lives:
    """Lives side by side: the evaluators of each life, and the totals of a night."""

    def __init__(self, rng: np.random.Generator, lives: int, *, profile_rows: int, max_shift: float, kind: str) -> None:
        self.rng, self.lives = rng, lives
        self.rates, self.scores, evaluators, self.owner = [], [], [], []
        for life in range(lives):
            streams: list[Stream] = []
            for column in range(COLUMNS):
                if kind == "continuous":
                    counts, rates = np.full(BINS, profile_rows / BINS), rng.gamma(profile_rows / BINS, size=BINS)
                    rates /= rates.sum()
                else:
                    rates = DISCRETE[column % len(DISCRETE)]
                    counts = rng.multinomial(profile_rows, rates).astype(np.float64)
                of_column, scores = streams_of(counts, max_shift)
                streams += of_column
                self.rates.append(rates)
                self.scores.append(scores)
            evaluators.append(Evaluator(streams, alpha=ALPHA, life=LIFE))
            self.owner += [life] * len(streams)
        self.evaluator = evaluators[0]
        for name in (
            "log_weights",
            "is_mean",
            "reference_rows",
            "sd",
            "tolerated",
            "tolerated_sd",
            "side",
            "upper",
            "lower",
        ):
            setattr(self.evaluator, name, np.concatenate([getattr(each, name) for each in evaluators]))

    def shifted(self, shift: float, columns: int) -> list[Floats]:
        """Return the rates of all bins with the first columns of each life moved by `shift` in their first stream."""
        moved = []
        for place, rates in enumerate(self.rates):
            if place % COLUMNS >= columns or not shift:
                moved.append(rates)
            elif rates.size == BINS:
                below = np.clip(np.concatenate([[0.0], np.cumsum(rates)]), 0.0, 1.0)
                moved.append(np.maximum(np.diff(ndtr(ndtri(below) - shift)), 0.0))
            else:
                moved.append(self._tilted(rates, self.scores[place][:, 0], shift))
        return [rates / rates.sum() for rates in moved]

    @staticmethod
    def _tilted(rates: Floats, scores: Floats, shift: float) -> Floats:
        center = rates @ scores
        scores = (scores - center) / np.sqrt(rates @ (scores - center) ** 2)
        tilt = shift
        for _ in range(5):
            tilted = rates * np.exp(tilt * scores)
            tilted /= tilted.sum()
            tilt += shift - tilted @ scores
        return tilted

    def night(self, rates: list[Floats], rows: int) -> Floats:
        """Return the totals of a night (streams,)."""
        return np.concatenate(
            [self.rng.multinomial(rows, each) @ scores for each, scores in zip(rates, self.scores, strict=True)]
        )

    def alarms(self, totals: Floats, rows: int, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the position in `order` at which each life first alarms; NIGHTS if never."""
        first = np.full(self.lives, NIGHTS)
        owner = np.array(self.owner)
        edges = np.flatnonzero(np.diff(owner, prepend=-1))
        for arrived in range(1, NIGHTS + 1):
            seen = order[:arrived]
            starts = Starts.of(int(seen.max()), life=LIFE)
            blocks = starts.block_of(seen)
            pooled = np.zeros((starts.slots.size, totals.shape[1]))
            np.add.at(pooled, blocks, totals[seen])
            n = np.bincount(blocks, minlength=starts.slots.size)[:, np.newaxis] * np.full(totals.shape[1], float(rows))
            log_e = mixture_log_e(self.evaluator.log_e_by_start(pooled, n), starts) + self.evaluator.log_weights
            whole = np.array([logsumexp(part) for part in np.split(log_e, edges[1:])])
            first = np.where((first == NIGHTS) & (whole >= self.evaluator.log_limit), arrived - 1, first)
        return first


def simulate(
    seed: int,
    lives: int,
    *,
    profile_rows: int,
    rows: int,
    max_shift: float,
    kind: str = "continuous",
    shift: float = 0.0,
    columns: int = 1,
    since: int = 0,
    in_order: bool = True,
    title: str = "",
) -> NDArray[np.int64]:
    """Return the number of the window at whose arrival each life alarms; NIGHTS if it never does."""
    rng = np.random.default_rng(seed)
    found = []
    for done in progress(range(0, lives, BATCH), title):
        world = Lives(rng, min(BATCH, lives - done), profile_rows=profile_rows, max_shift=max_shift, kind=kind)
        moved = world.shifted(shift, columns)
        totals = np.stack([world.night(moved if night >= since else world.rates, rows) for night in range(NIGHTS)])
        found.append(world.alarms(totals, rows, np.arange(NIGHTS) if in_order else rng.permutation(NIGHTS)))
    return np.concatenate(found)


def upper_limit(alarms: int, lives: int) -> float:
    return binomial_bounds(alarms, lives, low_level=0.95, high_level=0.95).high


def quiet(lives: int, seed: int) -> None:
    print(f"\n{lives} lives of {NIGHTS} nights x {COLUMNS} columns, none beyond the tolerance, profile of 10,000 rows")
    print("columns      rows    tolerated  true shift   order      alarms   upper 95 % limit")
    for kind, rows, max_shift, shift, in_order in (
        ("continuous", 10_000, 0.0, 0.0, True),
        ("continuous", 300, 0.0, 0.0, True),
        ("continuous", 10_000, 0.03, 0.03, True),
        ("continuous", 300, 0.03, 0.03, True),
        ("continuous", 10_000, 0.0, 0.0, False),
        ("discrete", 10_000, 0.0, 0.0, True),
        ("discrete", 300, 0.0, 0.0, True),
        ("discrete", 300, 0.03, 0.03, True),
    ):
        found = simulate(
            seed, lives, profile_rows=10_000, rows=rows, max_shift=max_shift, kind=kind, shift=shift, columns=COLUMNS,
            in_order=in_order, title=f"{kind} {rows}",
        )  # fmt: skip
        alarms = int((found < NIGHTS).sum())
        order = "of time" if in_order else "random"
        print(
            f"{kind:<12} {rows:>6,} {max_shift:>8.2f} {shift:>10.2f}     {order:<8} {alarms:>5} of {lives} "
            f"{100 * upper_limit(alarms, lives):>8.2f} %",
            flush=True,
        )


def delays(lives: int, seed: int) -> None:
    print(f"\nnights to the alarm, one of {COLUMNS} columns shifted, {lives} lives")
    print("profile   rows  tolerated  shift  starts in   median   90 %   found in 90 nights")
    for profile_rows, rows, max_shift, shift, since in (
        (10_000, 10_000, 0.0, 0.1, 1),
        (10_000, 10_000, 0.0, 0.05, 1),
        (10_000, 10_000, 0.0, 0.05, 45),
        (20_000, 10_000, 0.0, 0.05, 1),
        (10_000, 10_000, 0.03, 0.1, 1),
        (10_000, 10_000, 0.03, 0.1, 45),
        (10_000, 10_000, 0.03, 0.05, 1),
        (10_000, 300, 0.0, 0.1, 1),
    ):
        found = simulate(
            seed, lives, profile_rows=profile_rows, rows=rows, max_shift=max_shift, shift=shift, since=since,
            title=f"{shift} since {since}",
        )  # fmt: skip
        delay = np.where(found < NIGHTS, found - since + 1, np.inf)
        middle, most = np.quantile(delay, [0.5, 0.9], method="higher")
        print(
            f"{profile_rows:>7,} {rows:>6,} {max_shift:>8.2f} {shift:>8.2f} {since:>8} {middle:>10.0f} {most:>7.0f} "
            f"{100 * (found < NIGHTS).mean():>12.0f} %",
            flush=True,
        )


def plan() -> None:
    rng = np.random.default_rng(0)
    profile = ms.reference_profile({f"x{place}": rng.normal(size=10_000) for place in range(COLUMNS)})
    monitor = ms.Monitor("planned", [ms.streams.columns(profile)], state=Path(tempfile.mkdtemp()) / "state")
    print(f"\nplanned for {COLUMNS} columns, 10,000 rows a night, tolerated 0.03 sd, found with 90 % (not simulated)")
    for shift in (0.05, 0.1, 0.2):
        found = monitor.plan(shift, rows=10_000)
        nights = "out of reach of a profile of 10,000 rows" if found.slots is None else f"{found.slots} nights"
        print(f"shift {shift:.2f} sd: {nights}; smallest profile {found.reference_rows:,} rows")


def step(seed: int) -> None:
    """Print the time of a step beyond its gates, and the size of the state, over 1,000 windows."""
    rng = np.random.default_rng(seed)
    profile = ms.reference_profile({f"x{place}": rng.normal(size=10_000) for place in range(COLUMNS)})
    windows = [
        ms.reference_profile({f"x{place}": rng.normal(size=1_000) for place in range(COLUMNS)}, like=profile)
        for _ in range(20)
    ]
    state = Path(tempfile.mkdtemp()) / "state"
    columns = ms.streams.columns(profile)
    measured = [columns.measure(window) for window in windows]
    without_gate = replace(columns, measure=lambda window: measured[window])
    monitor = ms.Monitor("stepped", [without_gate], state=state, life=1_000, start="2026-01-01")
    beyond = []
    for night in progress(range(1_000), "steps"):
        started = time.process_time(), time.perf_counter()
        monitor.check(str(np.datetime64("2026-01-01") + night), data=night % len(windows))
        beyond.append((1000 * (time.process_time() - started[0]), 1000 * (time.perf_counter() - started[1])))
    print(f"\nsteps of {COLUMNS} columns ({len(columns.streams)} streams), beyond the gates, medians of 100 windows")
    for first in (0, 400, 900):
        cpu, wall = np.median(beyond[first : first + 100], axis=0)
        print(f"windows {first} to {first + 99}: {cpu:.2f} ms of CPU, {wall:.2f} ms with the disk")
    print(f"state after 1,000 windows: {state.stat().st_size / 1000:.0f} KB")


def kills(seed: int, points: int = 200) -> None:
    """Kill a job at random points, and print the windows that it had returned and the state has not."""
    rng = np.random.default_rng(seed)
    profile = ms.reference_profile({"x": rng.normal(size=500)})
    window = ms.reference_profile({"x": rng.normal(size=20)}, like=profile)
    groups, path = [ms.streams.columns(profile)], Path(tempfile.mkdtemp()) / "state"
    lost = 0
    for _ in progress(range(points), "kills"):
        first = len(ms.Monitor("killed", groups, state=path).history())
        read, write = os.pipe()
        if not (child := os.fork()):
            monitor = ms.Monitor("killed", groups, state=path)
            for slot in itertools.count(first):
                monitor.check(slot, data=window)
                os.write(write, b".")
        os.close(write)
        returned = len(os.read(read, 1))
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with open(read, "rb") as rest:
            returned += len(rest.read())
        lost += max(first + returned - ms.Monitor("killed", groups, state=path).check().n, 0)
    print(f"\n{points} kills: {lost} windows lost of {ms.Monitor('killed', groups, state=path).check().n}")


_VILLE = """
import json, sys
import numpy as np, ville
found = []
for seed in range(20):
    test = ville.MSPRT(sigma=1.0, tau=0.1)
    for value in np.random.default_rng(seed).normal(0.1 * (seed % 3), 1, 300):
        test.update(value)
    found.append(float(test.log_e_values_[-1]))
print(json.dumps(found))
"""


def oracle(python: str) -> None:
    """Print the largest difference of log e-values from those of the library ville, for an exact reference."""
    done = subprocess.run([python, "-c", _VILLE], capture_output=True, text=True, check=True)
    differences = []
    for seed, expected in enumerate(json.loads(done.stdout)):
        values = np.random.default_rng(seed).normal(0.1 * (seed % 3), 1, 300)
        found = mean_log_e([[values.sum()]], [[300.0]], reference_rows=[1e15], tolerated=[0.0], side=[0])
        differences.append(abs(float(found[0, 0]) - expected))
    print(f"\n20 samples, largest difference of the log e-value from ville's MSPRT: {max(differences):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lives", type=int, default=4_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=["quiet", "delays", "plan", "step", "kills"])
    parser.add_argument("--ville", metavar="PYTHON", help="interpreter with the library ville, for a comparison")
    arguments = parser.parse_args()
    if "plan" in arguments.only:
        plan()
    if "step" in arguments.only:
        step(arguments.seed)
    if "kills" in arguments.only:
        kills(arguments.seed)
    if arguments.ville:
        oracle(arguments.ville)
    if "delays" in arguments.only:
        delays(min(arguments.lives, 200), arguments.seed)
    if "quiet" in arguments.only:
        quiet(arguments.lives, arguments.seed)


if __name__ == "__main__":
    main()
