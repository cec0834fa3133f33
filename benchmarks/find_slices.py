"""Regions found by `find_slices`: two planted ones, and none where the candidate loses nowhere more than elsewhere.

    python benchmarks/find_slices.py [--planted 100] [--null 200] [--rows 10000] [--seed 0]

Twelve columns: numbers, whole numbers, categories and missing values. The models differ on 6 % of the rows; in two
regions, of 10 and 7 % of the rows, the candidate errs 15 points more often. "both found" counts searches that found a
region with a Jaccard index of 0.5 or more with each of them; "other" those that also found one of which more than half
of the rows are in neither. Under "null" any found region is false; the upper limit is Clopper and Pearson's
at 95 %. The last lines time one search of 100,000 rows of 50 columns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

import pytest_modelserve as ms
from pytest_modelserve.progress import progress
from pytest_modelserve.stats import binomial_bounds

Columns = dict[str, NDArray[np.generic]]
PLANTED = ('age > 61 and region == "north"', "income is missing and 20 < hours <= 40")


def people(rng: np.random.Generator, n: int) -> Columns:
    """Return the features of `n` rows."""
    columns: Columns = {f"x{index}": rng.normal(size=n) for index in range(5)}
    columns["age"] = rng.integers(18, 90, n)
    columns["hours"] = rng.integers(0, 60, n)
    columns["income"] = np.where(rng.random(n) < 0.2, np.nan, rng.lognormal(size=n))
    columns["region"] = rng.choice(["north", "south", "east", "west"], n, p=[0.25, 0.25, 0.3, 0.2])
    columns["job"] = rng.choice([f"job {index}" for index in range(12)], n)
    columns["member"] = rng.random(n) < 0.4
    columns["visits"] = rng.poisson(2, n)
    return columns


def flipped(
    rng: np.random.Generator, labels: NDArray[np.int64], rate: NDArray[np.float64] | float
) -> NDArray[np.int64]:
    """Return binary predictions that are wrong at this rate."""
    return np.where(rng.random(labels.size) < rate, 1 - labels, labels)


def classifiers(rng: np.random.Generator, n: int, *, more: NDArray[np.float64] | float = 0.0) -> dict[str, object]:
    """Return labels and two models that differ on 6 % of the rows; the candidate errs `more` often."""
    labels = rng.integers(0, 2, n)
    shared = rng.random(n) < 0.07
    old = np.where(shared, 1 - labels, flipped(rng, labels, 0.03))
    new = np.where(shared, 1 - labels, flipped(rng, labels, 0.03 + more))
    return {"candidate": new, "reference": old, "labels": labels}


def equal(rng: np.random.Generator, n: int) -> dict[str, object]:
    """Return two models of equal accuracy."""
    return classifiers(rng, n)


def worse(rng: np.random.Generator, n: int) -> dict[str, object]:
    """Return a candidate that loses 2 points in every region."""
    return classifiers(rng, n, more=0.02)


def heavy_tails(rng: np.random.Generator, n: int) -> dict[str, object]:
    """Return forecasts with errors of Student's t with 3 degrees of freedom, by mean absolute error."""
    labels = rng.normal(size=n)
    old, new = (labels + rng.standard_t(3, n) for _ in range(2))
    return {"candidate": new, "reference": old, "labels": labels, "metric": "mae"}


def grouped(rng: np.random.Generator, n: int) -> dict[str, object]:
    """Return models that err on whole groups of ten rows."""
    labels, groups = rng.integers(0, 2, n), np.arange(n) // 10
    old, new = (np.where((rng.random(n // 10) < 0.05)[groups], 1 - labels, labels) for _ in range(2))
    return {"candidate": new, "reference": old, "labels": labels, "sampling": ms.Sampling(groups=groups)}


def ranked(rng: np.random.Generator, n: int) -> dict[str, object]:
    """Return scores of equal quality, by the area under the ROC curve."""
    labels = rng.integers(0, 2, n)
    old, new = (labels + rng.normal(size=n) for _ in range(2))
    return {"candidate": new, "reference": old, "labels": labels, "metric": "roc_auc"}


def planted_search(seed: int, n: int) -> tuple[bool, bool]:
    """Return whether both planted regions are found, and whether another one is."""
    rng = np.random.default_rng(seed)
    columns = people(rng, n)
    planted = [ms.where(text)(columns) for text in PLANTED]
    models = classifiers(rng, n, more=0.15 * (planted[0] | planted[1]))
    search = ms.find_slices(**models, features=columns, seed=seed)
    found = [region.condition(None) for region in search.found]
    both = all(any((rows & each).sum() >= 0.5 * (rows | each).sum() for rows in found) for each in planted)
    return both, any((rows & ~planted[0] & ~planted[1]).sum() > 0.5 * rows.sum() for rows in found)


def null_search(seed: int, n: int, draw: Callable[..., dict[str, object]]) -> bool:
    """Return whether any region is found."""
    rng = np.random.default_rng(seed)
    columns = people(rng, n)
    return bool(ms.find_slices(**draw(rng, n), features=columns, seed=seed).found)


def timed(rng: np.random.Generator, depth: int) -> tuple[float, float]:
    """Return the seconds and the CPU seconds that a search of 100,000 rows of 50 columns takes."""
    n = 100_000
    rows = rng.normal(size=(n, 50))
    models = classifiers(rng, n, more=0.1 * ((rows[:, 3] > 0.8) & (rows[:, 7] < 0)))
    start = time.perf_counter(), time.process_time()
    ms.find_slices(**models, inputs=rows, depth=depth)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def main() -> None:
    """Print the rates and times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--planted", type=int, default=100)
    parser.add_argument("--null", type=int, default=200)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    seeds = [args.seed + index for index in range(args.planted)]
    both, other = zip(*(planted_search(seed, args.rows) for seed in progress(seeds, "planted")), strict=True)
    print(f"planted: both found {sum(both)} of {args.planted}, other {sum(other)}")
    for draw in (equal, worse, heavy_tails, grouped, ranked):
        seeds = [args.seed + index for index in range(args.null)]
        found = sum(null_search(seed, args.rows, draw) for seed in progress(seeds, draw.__name__))
        high = binomial_bounds(found, args.null, low_level=0.95, high_level=0.95).high
        print(f"null {draw.__name__:<12} found {found} of {args.null}, rate at most {100 * high:.1f} %")
    for depth in (1, 2, 3):
        print(f"100,000 rows × 50 columns, depth {depth}: {{:.1f}} s, {{:.1f}} s of CPU".format(*timed(rng, depth)))


if __name__ == "__main__":
    main()
