"""Error rates and power of the whole drift gate: columns, pairs of columns, and whole rows.

    python benchmarks/drift_families.py [--worlds 10000] [--seed 0] [--only null rare detection digits rows]

null: unchanged data of 5 to 2,000 columns, independent and equicorrelated (Gaussian copula, and a t copula of 3 degrees
of freedom), simulated as bin counts. FAIL is counted at a budget of almost 0, where significance alone decides, and
INCONCLUSIVE at a budget of 0.10. The upper limit is that of Clopper and Pearson at 95 %.

rare: unchanged booleans, counts and mostly zeros, whose p-value is Fisher's, in the same sizes.

detection: 10,000 against 2,000 rows of 15 numeric and 5 categorical columns, through the gate as a user calls it.

digits: 1,200 against 597 shuffled digits, one class removed from the latter, with and without a sketch.

rows: unchanged data and whole-row comparisons alone; 50 rows; a million against a million with a hundredth of a
standard deviation.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr

from pytest_modelserve.evidence import Budget, Verdict
from pytest_modelserve.monitoring import measure_drift, reference_profile
from pytest_modelserve.monitoring.column_profile import NumericColumn
from pytest_modelserve.monitoring.columns import as_column
from pytest_modelserve.monitoring.correlations import Associations, Feature, choose_features, pair_sums
from pytest_modelserve.monitoring.decision import Blocks, decide
from pytest_modelserve.monitoring.drift.column_tests import compare_numbers
from pytest_modelserve.monitoring.drift.groups import DriftTests
from pytest_modelserve.monitoring.drift.multivariate_tests import compare_associations
from pytest_modelserve.monitoring.profiler import profile_column
from pytest_modelserve.progress import progress
from pytest_modelserve.stats import binomial_bounds

BINS, ALPHA = 128, 0.05
PROFILE_ROWS, ROWS = 5_000, 2_000
DIGITS = Path(__file__).parents[1] / "fixtures" / "data" / "digits.npz"

Floats = NDArray[np.float64]
Columns = dict[str, NDArray[np.generic]]


def uniforms(rng: np.random.Generator, rows: int, columns: int, copula: str) -> Floats:
    """Return rows of uniform columns with the correlation 0.5 for every pair, or independent."""
    noise = rng.standard_normal((rows, columns), dtype=np.float32)
    if copula == "independent":
        return ndtr(noise)
    common = np.sqrt(np.float32(0.5)) * (noise + rng.standard_normal((rows, 1), dtype=np.float32))
    if copula == "normal, 0.5":
        return ndtr(common)
    return stdtr(3, common / np.sqrt(rng.chisquare(3, size=(rows, 1)) / 3))


def uniform_feature() -> tuple[int, ...]:
    column = profile_column(as_column("u", (np.arange(BINS * 20) + 0.5) / BINS / 20), bins=BINS)
    other = profile_column(as_column("v", (np.arange(BINS * 20) + 0.5) / BINS / 20), bins=BINS)
    assert isinstance(column, NumericColumn)
    return choose_features([column, other])[0].scores


def null_world(rng: np.random.Generator, columns: int, copula: str, scores: tuple[int, ...]) -> DriftTests:
    counts, sums = [], []
    for rows in (PROFILE_ROWS, ROWS):
        bins = np.minimum((uniforms(rng, rows, columns, copula) * len(scores)).astype(np.int64), len(scores) - 1)
        flat = bins + len(scores) * np.arange(columns)
        counts.append(np.bincount(flat.ravel(), minlength=columns * len(scores)).reshape(columns, -1))
        scored = np.array(scores, dtype=np.float64)[bins[:, :64]]
        sums.append(tuple(pair_sums(scored, np.ones_like(scored)).ravel().tolist()))
    features = tuple(Feature(f"x{index}", None, scores) for index in range(min(columns, 64)))
    then, now = Associations(features, PROFILE_ROWS, sums[0]), Associations(features, ROWS, sums[1])
    return DriftTests(
        {
            "column": tuple(compare_numbers("x", *pair, blocks=Blocks()) for pair in zip(*counts, strict=True)),
            "pair": compare_associations(then, now),
        }
    )


def verdict(tests: DriftTests, budget: float) -> Verdict:
    result = decide(tests.weighted(), budget=budget, alpha=ALPHA)
    return Budget("at_most", budget).verdict(result.headline.distance, result.interval)


def null_rows(rng: np.random.Generator, worlds: int) -> Iterator[str]:
    scores = uniform_feature()
    for columns in (5, 20, 200, 2_000):
        for copula in ("independent", "normal, 0.5", "t3, 0.5"):
            failed = undecided = pairs_alone = 0
            for _ in range(worlds):
                tests = null_world(rng, columns, copula, scores)
                failed += verdict(tests, 1e-9) is Verdict.FAIL
                undecided += verdict(tests, 0.10) is Verdict.INCONCLUSIVE
                pairs_alone += verdict(DriftTests({"column": tests.of("pair")}), 1e-9) is Verdict.FAIL
            high = binomial_bounds(failed, worlds, low_level=0.95, high_level=0.95).high
            yield (
                f"{columns:5} columns, {copula:<12}  FAIL {failed / worlds:.4f} (at most {high:.4f})  "
                f"pairs alone {pairs_alone / worlds:.4f}  INCONCLUSIVE at 0.10 {undecided / worlds:.4f}"
            )


def rare_rows(rng: np.random.Generator, worlds: int) -> Iterator[str]:
    cases = {
        "booleans, 0.2 %": [0.998, 0.002],
        "booleans, 30 %": [0.7, 0.3],
        "counts of mean 0.05": [0.9512, 0.0476, 0.0012],
        "zeros in 60 %, 100 bins": [0.6, *[0.004] * 100],
        "zeros in 95 %, 100 bins": [0.95, *[0.0005] * 100],
    }
    for label, shares in cases.items():
        failed = 0
        for _ in range(worlds):
            counts = [(rng.multinomial(PROFILE_ROWS, shares), rng.multinomial(ROWS, shares)) for _ in range(5)]
            tests = DriftTests({"column": tuple(compare_numbers("x", *pair, blocks=Blocks()) for pair in counts)})
            failed += verdict(tests, 1e-9) is Verdict.FAIL
        high = binomial_bounds(failed, worlds, low_level=0.95, high_level=0.95).high
        yield f"5 columns, {label:<24}  FAIL {failed / worlds:.4f} (at most {high:.4f})"


def table(rng: np.random.Generator, rows: int) -> Columns:
    factor = np.linalg.cholesky(np.full((15, 15), 0.3) + 0.7 * np.eye(15))
    numbers = rng.normal(size=(rows, 15)) @ factor.T
    columns: Columns = {f"x{index}": numbers[:, index] for index in range(15)}
    names = np.array(list("abcde"), dtype=object)
    for index in range(5):
        columns[f"c{index}"] = names[rng.choice(5, rows, p=[0.35, 0.3, 0.2, 0.1, 0.05])]
    return columns


def shifted(_: np.random.Generator, columns: Columns) -> None:
    for name in ("x0", "x1"):
        columns[name] = columns[name] + 0.2


def five_points(rng: np.random.Generator, columns: Columns) -> None:
    names = np.array(list("abcde"), dtype=object)
    columns["c0"] = names[rng.choice(5, len(columns["c0"]), p=[0.30, 0.3, 0.2, 0.1, 0.10])]


def uncorrelated(rng: np.random.Generator, columns: Columns) -> None:
    columns["x1"] = rng.permutation(columns["x1"])


def detection_rows(rng: np.random.Generator, worlds: int) -> Iterator[str]:
    cases: list[tuple[str, Callable[[np.random.Generator, Columns], None] | None, int]] = [
        ("unchanged", None, 2_000),
        ("+0.2 sd in 2 of 20 columns", shifted, 2_000),
        ("a category's share +5 points", five_points, 2_000),
        ("a category's share +5 points", five_points, 3_000),
        ("one column's correlations gone", uncorrelated, 2_000),
    ]
    for what, change, rows in cases:
        found = Counter[str]()
        for _ in range(worlds):
            profile, window = reference_profile(table(rng, 10_000)), table(rng, rows)
            if change is not None:
                change(rng, window)
            found[measure_drift(window, profile, max_distance=0.03, alpha=ALPHA, block=1).verdict.name] += 1
        yield f"{what}, {rows} rows".ljust(46) + "  ".join(f"{k} {v / worlds:.4f}" for k, v in sorted(found.items()))


def digits_rows(rng: np.random.Generator, worlds: int) -> Iterator[str]:
    with np.load(DIGITS) as archive:
        images, labels = archive["images"].reshape(-1, 64).astype(np.float64), archive["labels"]
    for sketch_rows in (0, 1_200):
        found = {"one class removed": 0, "unchanged": 0}
        for world in range(worlds):
            order = rng.permutation(len(images))
            profile = reference_profile(images[order[:1200]], sketch_rows=sketch_rows)
            rest = order[1200:]
            for what, rows in (("one class removed", rest[labels[rest] != world % 10]), ("unchanged", rest)):
                evidence = measure_drift(images[rows], profile, max_distance=0.03, alpha=ALPHA, block=1)
                found[what] += evidence.verdict is Verdict.FAIL
        text = "  ".join(f"{what}: FAIL {count / worlds:.3f}" for what, count in found.items())
        yield f"digits, sketch of {sketch_rows} rows, {worlds} splits: {text}"


def row_rows(rng: np.random.Generator, worlds: int) -> Iterator[str]:
    for rows, sketch_rows in ((50, 0), (50, 500), (500, 500)):
        found = Counter[str]()
        for _ in range(worlds):
            profile = reference_profile(table(rng, 2_000), sketch_rows=sketch_rows)
            found[measure_drift(table(rng, rows), profile, max_distance=0.10, alpha=ALPHA, block=1).verdict.name] += 1
        text = "  ".join(f"{k} {v / worlds:.4f}" for k, v in sorted(found.items()))
        yield f"unchanged, {rows} rows, sketch of {sketch_rows}".ljust(46) + text
    alarms, edges = 0, np.linspace(-3, 3, 255)
    shares = [np.diff(np.concatenate(([0.0], ndtr(edges - shift), [1.0]))) for shift in (0.0, 0.01)]
    for _ in range(worlds):
        counts = [rng.multinomial(1_000_000, share) for share in shares]
        tests = DriftTests({"column": (compare_numbers("x", *counts, blocks=Blocks()),) * 5})
        alarms += verdict(tests, 0.03) is Verdict.FAIL
    yield f"1,000,000 against 1,000,000 rows, 0.01 sd, budget 0.03: FAIL {alarms / worlds:.4f}"


STUDIES = {
    "null": (null_rows, 1),
    "rare": (rare_rows, 1),
    "detection": (detection_rows, 20),
    "digits": (digits_rows, 50),
    "rows": (row_rows, 20),
}
"""Each study with the divisor of its number of worlds, by its cost."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=10_000, help="simulated worlds a row of null (default 10000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulations (default 0)")
    parser.add_argument("--only", nargs="+", choices=list(STUDIES), default=list(STUDIES), help="studies to run")
    arguments = parser.parse_args()
    print(f"alpha {ALPHA}; {arguments.worlds:,} worlds a row, fewer where a row says so; seed {arguments.seed}")
    for name in progress(arguments.only, "drift families"):
        study, cost = STUDIES[name]
        rng = np.random.default_rng(arguments.seed)
        worlds = max(arguments.worlds // cost, 10)
        print(f"\n{name}: {worlds:,} worlds a row")
        for line in study(rng, worlds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
