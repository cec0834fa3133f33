"""Error rates and decision rates of the drift and data-quality gates in simulated worlds.

    python benchmarks/drift_error_rates.py [--worlds 10000] [--seed 0]

A world is a profile of 10,000 rows and a window. Numbers are simulated as counts in 256 bins with equally many rows of
the profile, because its edges are quantiles. For any distribution, the true rates of the bins are then Dirichlet
distributed and the counts of the window multinomial. Categories are drawn for both. ± is two standard errors.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.evidence import Budget, Verdict
from pytest_modelserve.monitoring import measure_data_quality, measure_drift, reference_profile
from pytest_modelserve.monitoring.decision import Blocks, decide
from pytest_modelserve.monitoring.drift.column_tests import DriftTest, compare_categories, compare_numbers
from pytest_modelserve.progress import progress
from pytest_modelserve.stats.two_sample_tests import rows_for_distance

PROFILE_ROWS, BINS, BUDGET, ALPHA = 10_000, 256, 0.10, 0.01
CITIES = np.array([0.5, 0.2, 0.1, 0.1, 0.06, 0.04])
EQUAL = np.full(BINS, PROFILE_ROWS / BINS)

Draw = Callable[[np.random.Generator], list[DriftTest]]


def verdict(comparisons: list[DriftTest], *, budget: float, alpha: float = ALPHA) -> Verdict:
    result = decide([(1.0, comparisons)], budget=budget, alpha=alpha)
    return Budget("at_most", budget).verdict(result.headline.distance, result.interval)


def numbers(rng: np.random.Generator, shares: NDArray[np.float64], rows: int) -> DriftTest:
    return compare_numbers("x", EQUAL, rng.multinomial(rows, shares), blocks=Blocks())


def unchanged(rng: np.random.Generator, columns: int, rows: int) -> list[DriftTest]:
    """Return tests of unchanged columns, four numeric ones for each categorical one."""
    categorical = columns // 5
    shares = rng.gamma(PROFILE_ROWS / BINS, size=(columns - categorical, BINS))
    found = [numbers(rng, column / column.sum(), rows) for column in shares]
    for _ in range(categorical):
        counts = rng.multinomial(PROFILE_ROWS, CITIES), rng.multinomial(rows, CITIES)
        found.append(compare_categories("c", *counts, blocks=Blocks()))
    return found


def moved_by(rng: np.random.Generator, distance: float, rows: int) -> DriftTest:
    """Return the test of a column whose true distance is `distance`, moved from its lower to its upper half."""
    share = rng.gamma(PROFILE_ROWS / BINS, size=BINS)
    share /= share.sum()
    half = np.arange(BINS) < BINS // 2
    lower = share[half].sum()
    shares = np.where(half, share * (lower - distance) / lower, share * (1 - lower + distance) / (1 - lower))
    return numbers(rng, shares, rows)


def format_rates(found: list[Verdict]) -> str:
    counts = Counter(found)
    each = [counts[kind] / len(found) for kind in (Verdict.FAIL, Verdict.PASS, Verdict.INCONCLUSIVE)]
    error = max(2 * math.sqrt(max(p * (1 - p), 1 / len(found)) / len(found)) for p in each)
    return "".join(f"{100 * rate:10.2f}" for rate in each) + f"   ± {100 * error:.2f}"


def drift_rows(rng: np.random.Generator, worlds: int) -> Iterator[str]:
    for columns in (5, 20):
        enough = rows_for_distance(BUDGET, reference=PROFILE_ROWS, tests=columns)
        assert enough is not None
        for rows in (300, enough, 5000):
            drawn = [unchanged(rng, columns, rows) for _ in range(worlds)]
            found = [verdict(comparisons, budget=BUDGET) for comparisons in drawn]
            yield f"unchanged, {columns} columns, {rows} rows, budget {BUDGET:.2f}".ljust(62) + format_rates(found)
            found = [verdict(comparisons, budget=1e-9) for comparisons in drawn]
            yield "    significance alone (budget 0: FAIL at most 1 %)".ljust(62) + format_rates(found)
    for distance in (0.05, 0.10, 0.15, 0.20):
        for rows in (300, 1132, 5000):
            found = [
                verdict([moved_by(rng, distance, rows), *unchanged(rng, 4, rows)], budget=BUDGET)
                for _ in range(worlds // 4)
            ]
            yield f"1 of 5 columns truly at {distance:.2f}, {rows} rows, budget {BUDGET:.2f}".ljust(62) + format_rates(
                found
            )


def dependent_rows(rng: np.random.Generator, worlds: int) -> Iterator[str]:
    """Test autocorrelated chains of 2,000 rows without a block, with block=1, and with a longer block."""
    for memory, block in ((0.1, 2), (0.3, 4), (0.7, 12)):
        chains = rng.normal(size=(2 * worlds, 2000))
        for row in range(1, 2000):
            chains[:, row] = memory * chains[:, row - 1] + math.sqrt(1 - memory**2) * chains[:, row]
        pairs = [
            ({"x": now}, reference_profile({"x": then})) for then, now in zip(chains[::2], chains[1::2], strict=True)
        ]
        for label, given in (("no block", None), ("block=1", 1), (f"block={block}", block)):
            found = [
                measure_drift(now, then, max_distance=1e-9, alpha=ALPHA, block=given).verdict for now, then in pairs
            ]
            yield f"chain of {memory}, significance alone, {label}".ljust(62) + format_rates(found)


def quality_rows(rng: np.random.Generator, worlds: int) -> Iterator[str]:
    """Test the quality of a heavy-tailed column with 2 % nulls and of one with many rare categories."""
    rare = 1 / np.arange(1, 80) ** 1.3
    names = np.array([f"n{index}" for index in range(79)], dtype=object)

    def draw(rows: int, nulls: float = 0.02) -> dict[str, NDArray[np.generic]]:
        age = np.where(rng.random(rows) < nulls, np.nan, rng.standard_cauchy(rows))
        return {"age": age, "name": names[rng.choice(79, rows, p=rare / rare.sum())]}

    for rows in (200, 1000, 5000):
        pairs = [(draw(rows), reference_profile(draw(5000))) for _ in range(worlds)]
        found = [measure_data_quality(now, then, max_rate=0.02).verdict for now, then in pairs]
        yield f"quality, unchanged data, {rows} rows, budget 0.02".ljust(62) + format_rates(found)
        found = [measure_data_quality(now, then, max_rate=1e-9, alpha=0.05).verdict for now, then in pairs]
        yield "    significance alone at alpha 0.05".ljust(62) + format_rates(found)
        found = [measure_data_quality(draw(rows, 0.04), then, max_rate=0.02).verdict for _, then in pairs]
        yield f"quality, nulls truly 2 points above, {rows} rows, budget 0.02".ljust(62) + format_rates(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=10_000, help="simulated worlds a row (default 10000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulations (default 0)")
    arguments = parser.parse_args()
    rng, worlds = np.random.default_rng(arguments.seed), arguments.worlds
    print(f"Verdicts in percent; alpha {ALPHA}; {worlds:,} worlds, a quarter where a column moved and a")
    print(f"twentieth for chains and quality; profile of {PROFILE_ROWS:,} rows; seed {arguments.seed}.")
    print(f"{'':<62}{'FAIL':>10}{'PASS':>10}{'INCONCL.':>10}")
    studies = (drift_rows(rng, worlds), dependent_rows(rng, worlds // 20), quality_rows(rng, worlds // 20))
    for study in progress(studies, "drift error rates"):
        print("\n".join(study), flush=True)


if __name__ == "__main__":
    main()
