"""Error rates of the gate on gaps between groups, exactly at its budget.

    python benchmarks/group_gap.py [--repeats 1000] [--seed 0]

One group is worse than all others by exactly `max_gap`: PASS and FAIL are then both wrong, and may occur in 5 % and
0.1 % of samples. "accuracy" has bounds from exact binomial ones, "families" groups of five rows that err together, "F1"
and "MAE" the delta method.
"""

from __future__ import annotations

import argparse

import numpy as np

import pytest_modelserve as ms
from pytest_modelserve.progress import progress

GAP = 0.1


def verdict(rng: np.random.Generator, metric: str, groups: int, rows: int) -> str:
    """Return the verdict on one sample of so many groups with so many rows each."""
    group = np.repeat(np.arange(groups), rows)
    worse = group == groups - 1
    options: dict[str, object] = {"groups": group, "max_gap": GAP}
    if metric == "MAE":
        labels = np.zeros(group.size)
        scale = np.where(worse, 0.6, 0.5)  # the mean of an exponential
        return str(ms.measure_group_gap(rng.exponential(scale), labels=labels, metric="mae", **options).verdict)
    labels = np.arange(group.size) % 2
    wrong = np.where(worse, 0.2, 0.1)
    if metric == "families":
        draws = np.repeat(rng.random(group.size // 5), 5)
        options["sampling"] = ms.Sampling(groups=np.arange(group.size) // 5)
    else:
        draws = rng.random(group.size)
    if metric == "F1":  # errors of both classes alike: F1 is about the accuracy
        options["metric"] = "f1"
    return str(ms.measure_group_gap(np.where(draws < wrong, 1 - labels, labels), labels=labels, **options).verdict)


def main() -> None:
    """Print the rates of both wrong verdicts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    print(f"{'metric':<10} {'groups':>6} {'rows':>6} {'PASS':>8} {'FAIL':>8}")
    for metric in ("accuracy", "families", "F1", "MAE"):
        for groups, rows in ((2, 50), (2, 1000), (6, 200)):
            found = [verdict(rng, metric, groups, rows) for _ in progress(range(args.repeats), metric)]
            passed, failed = (100 * found.count(name) / args.repeats for name in ("PASS", "FAIL"))
            print(f"{metric:<10} {groups:>6} {rows:>6} {passed:>6.1f} % {failed:>6.2f} %", flush=True)


if __name__ == "__main__":
    main()
