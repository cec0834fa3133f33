"""Error rates of the change of outputs under drift, exactly at its budget, and where nothing moved.

    python benchmarks/output_drift.py [--repeats 300] [--seed 0]

"at" has a column that moved so far that the mean change of the outputs is `max_output_change`: an interval whose high
end is below it is a false PASS, and one whose low end is above it a false FAIL, which may occur in 5 % and 1 % of
samples. "null" is unchanged data: the mean high end says which budget unchanged data of as many rows pass.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

import pytest_modelserve as ms
from pytest_modelserve.progress import progress

Rows = NDArray[np.float64]


def linear(rows: Rows) -> Rows:
    """Return a linear score: its mean change is the shift of the first column."""
    return np.asarray(rows[:, 0] + 0.5 * rows[:, 1])


def labels(rows: Rows) -> NDArray[np.int64]:
    """Return the labels of a threshold."""
    return (rows[:, 0] > 0).astype(np.int64)


def intervals(model: object, shift: float, rows: int, kept: int, repeats: int, seed: int) -> list[tuple[float, float]]:
    """Return the interval of all columns together in each of so many samples."""
    rng, found = np.random.default_rng(seed), []
    for _ in progress(range(repeats), "samples"):
        profile = ms.reference_profile(rng.normal(size=(kept, 3)), sketch_rows=kept)
        data = rng.normal(size=(rows, 3)) + np.array([shift, 0, 1.0])  # the third column moves and does not matter
        interval = ms.output_drift(model, data, profile).together.interval
        found.append((interval.low, interval.high))
    return found


def main() -> None:
    """Print the rates."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"{'model':<7} {'rows':>5} {'kept':>5} {'case':<5} {'PASS':>8} {'FAIL':>8} {'high end':>9}")
    for name, model, truth in (("linear", linear, 0.2), ("labels", labels, 0.0793)):  # P(0 < z < 0.2) = 0.0793
        for rows, kept in ((500, 500), (2000, 2000)):
            for case, shift in (("null", 0.0), ("at", 0.2)):
                lows, highs = np.array(intervals(model, shift, rows, kept, args.repeats, args.seed)).T
                limit = truth if shift else 0.0
                passed = f"{100 * (highs < limit).mean():.1f} %" if shift else ""
                failed = f"{100 * (lows > limit).mean():.2f} %" if shift else ""
                print(
                    f"{name:<7} {rows:>5} {kept:>5} {case:<5} {passed:>8} {failed:>8} {highs.mean():>9.4f}", flush=True
                )


if __name__ == "__main__":
    main()
