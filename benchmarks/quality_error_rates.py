"""False alarms and power of the data-quality gate in simulated worlds.

    python benchmarks/quality_error_rates.py [--worlds 1000] [--seed 0]

A world is a profile of 10,000 rows and a window, mostly of 2,000: ten columns of normal numbers, five of heavy tails,
four of categories and one of times, as in a log. A fault is planted in one column, or in rows. ± is two standard
errors; with no failure in n worlds, the true rate is below 3/n with 95 % confidence.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring import ReferenceProfile, measure_data_quality, reference_profile
from pytest_modelserve.progress import progress

PROFILE_ROWS, ROWS, NUMBERS, ALPHA, BUDGET = 10_000, 2000, 10, 0.05, 0.003
CITIES = np.array(["Aachen", "Bonn", "Celle", "Dachau", "Essen", "Fulda"])
PROPORTIONS = np.array([0.5, 0.2, 0.1, 0.1, 0.06, 0.04])
STREETS = np.array([f"street {index}" for index in range(79)])
RARE = 1 / np.arange(1, 80) ** 1.3
PROFILES_EACH = 20
"""Number of windows compared with one profile, which costs as much as ten windows."""

Generator = np.random.Generator
Columns = dict[str, NDArray[Any]]


def table(rng: Generator, rows: int) -> Columns:
    numbers = {f"x{index}": rng.normal(size=rows) for index in range(NUMBERS)}
    heavy = {
        "cauchy": rng.standard_cauchy(rows),
        "student": rng.standard_t(2, rows),
        "lognormal": rng.lognormal(0, 2, rows),
        "pareto": rng.pareto(1.1, rows),
        "zeros": np.where(rng.random(rows) < 0.3, 0.0, rng.lognormal(0, 1, rows)),
    }
    categories = {f"c{index}": rng.choice(CITIES, rows, p=PROPORTIONS) for index in range(3)}
    streets = {"street": rng.choice(STREETS, rows, p=RARE / RARE.sum())}
    return numbers | heavy | categories | streets | {"seen": log(rng, rows)}


def log(rng: Generator, rows: int, late: float = 0.001) -> NDArray[Any]:
    """Return times of one row a second, some of them a minute late."""
    seconds = np.arange(rows) - 60 * (rng.random(rows) < late)
    return np.datetime64("2026-03-01", "s") + seconds.astype("m8[s]")


def struck(rng: Generator, data: Columns, rate: float) -> NDArray[np.bool_]:
    return rng.random(len(data["x0"])) < rate


def repeated(rng: Generator, data: Columns, rate: float) -> Columns:
    again = np.flatnonzero(struck(rng, data, rate))
    return {name: np.concatenate((values, values[again])) for name, values in data.items()}


Fault = Callable[[Generator, Columns], Columns]
FAULTS: dict[str, Fault] = {
    "1 % null": lambda rng, d: d | {"x0": np.where(struck(rng, d, 0.01), np.nan, d["x0"])},
    "× 100 in 0.5 %": lambda rng, d: d | {"x0": np.where(struck(rng, d, 0.005), 100 * d["x0"], d["x0"])},
    "× 100 in 0.5 %, lognormal(2)": lambda rng, d: (
        d | {"lognormal": np.where(struck(rng, d, 0.005), 100 * d["lognormal"], d["lognormal"])}
    ),
    "one row is 999": lambda _, d: d | {"x0": np.where(np.arange(len(d["x0"])) == 7, 999, d["x0"])},
    "12 rows are infinite": lambda _, d: d | {"x0": np.where(np.arange(len(d["x0"])) < 12, np.inf, d["x0"])},
    "1 % filled with 0": lambda rng, d: d | {"x0": np.where(struck(rng, d, 0.01), 0, d["x0"])},
    "1.5 % filled with 0": lambda rng, d: d | {"x0": np.where(struck(rng, d, 0.015), 0, d["x0"])},
    "2 % filled with 0": lambda rng, d: d | {"x0": np.where(struck(rng, d, 0.02), 0, d["x0"])},
    "1 % of a new category": lambda rng, d: d | {"c0": np.where(struck(rng, d, 0.01), "Gotha", d["c0"])},
    "a category of 4 % lost": lambda _, d: d | {"c0": np.where(d["c0"] == "Fulda", "Essen", d["c0"])},
    "39 rare categories lost": lambda _, d: (
        d | {"street": np.where(np.isin(d["street"], STREETS[40:]), STREETS[0], d["street"])}
    ),
    "1 % of rows written twice": lambda rng, d: repeated(rng, d, 0.01),
    "2 % more out of order": lambda rng, d: d | {"seen": log(rng, len(d["seen"]), 0.021)},
    "a column stopped": lambda _, d: d | {"x0": np.full(len(d["x0"]), d["x0"][0])},
}


@dataclass(frozen=True, slots=True)
class Study:
    """One study: the rows of a window, its fault, and the budget and error rate of the gate."""

    label: str
    rows: int = ROWS
    fault: Fault | None = None
    max_rate: float = BUDGET
    alpha: float = ALPHA

    def verdicts(self, rng: Generator, worlds: int) -> list[Verdict]:
        """Return the verdict of each world."""
        found = []
        profile: ReferenceProfile | None = None
        for world in range(worlds):
            if profile is None or world % PROFILES_EACH == 0:
                profile = reference_profile(table(rng, PROFILE_ROWS))
            window = table(rng, self.rows)
            window = window if self.fault is None else self.fault(rng, window)
            evidence = measure_data_quality(window, profile, max_rate=self.max_rate, alpha=self.alpha)
            assert evidence.verdict is not None
            found.append(evidence.verdict)
        return found


def studies() -> Iterator[Study]:
    for rows in (50, 500, ROWS, 20_000):
        yield Study(f"unchanged data, {rows:,} rows, budget 0.01", rows, max_rate=0.01)
        yield Study("    significance alone (FAIL at most 5 %)", rows, max_rate=1e-9)
    yield Study(f"unchanged data, {ROWS:,} rows, budget {BUDGET}")
    yield Study(f"unchanged data, {ROWS:,} rows, budget 0.01, alpha 0.001", max_rate=0.01, alpha=0.001)
    for label, fault in FAULTS.items():
        yield Study(f"{label}, budget {BUDGET}", fault=fault)


def format_rates(found: list[Verdict]) -> str:
    counts = Counter(found)
    each = [counts[kind] / len(found) for kind in (Verdict.FAIL, Verdict.PASS, Verdict.INCONCLUSIVE)]
    error = max(2 * math.sqrt(max(p * (1 - p), 1 / len(found)) / len(found)) for p in each)
    return "".join(f"{100 * rate:10.2f}" for rate in each) + f"   ± {100 * error:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=1000, help="simulated worlds a row (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulations (default 0)")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    print(f"Verdicts in percent; alpha {ALPHA}; {arguments.worlds:,} worlds, seed {arguments.seed}; profile of")
    print(f"{PROFILE_ROWS:,} rows, a new one every {PROFILES_EACH} worlds; {ROWS:,} rows by default.")
    print(f"{'':<58}{'FAIL':>10}{'PASS':>10}{'INCONCL.':>10}")
    for study in progress(list(studies()), "data quality"):
        print(study.label.ljust(58) + format_rates(study.verdicts(rng, arguments.worlds)), flush=True)


if __name__ == "__main__":
    main()
