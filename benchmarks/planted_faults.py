"""The share of planted faults that a search finds: `python -m benchmarks.planted_faults`.

100 models with one fault each (benchmarks/faults.py, and faults_later.py for the relations that came later), the
relation that a user would state and rows that the user would have, over every family of relations. One search each of
10,000 candidates with seed 0, defaults otherwise; goal: 95 % found. It prints the seconds to the minimised
counterexample and how many features of it differ from a base row, beside how many have to. How
candidates are drawn was not changed after the first run on the first list; what came after it are declared ranges,
which no fault here has, texts made plain character by character, and searches in a child process.

`--seeds N` repeats all of it with N seeds and prints the share over all of them: one seed may be lucky.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from dataclasses import dataclass

import pytest_modelserve as ms
from benchmarks import faults, faults_later
from benchmarks.faults import Fault

FAULTS = [*faults.FAULTS, *faults_later.FAULTS]
FROZEN_CHANGES = (*faults.FROZEN_CHANGES, *faults_later.FROZEN_CHANGES)
CANDIDATES = 10_000
GOAL = 0.95


@dataclass(frozen=True, slots=True)
class Found:
    """What came of one search; `left` is None where nothing was found."""

    left: int | None
    seconds: float
    asked: int


def look_for(fault: Fault, *, seed: int = 0, candidates: int = CANDIDATES) -> Found:
    """One search for a fault."""
    model = ms.serve(fault.model(), name=fault.name)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the faulty models: casts of NaN, divisions by zero
        asked = candidates if fault.relation.searched else None
        evidence = ms.measure_relation(
            model, fault.rows, fault.relation, candidates=asked, domain=fault.domain, seed=seed, save_to=None
        )
    return Found(evidence.details.get("features_left"), time.perf_counter() - started, evidence.n)


def main() -> None:
    options = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    options.add_argument("--seeds", type=int, default=1)
    seeds = options.parse_args().seeds
    print("| family | fault | found | rows asked | seconds | features left | features needed |")
    print("|---|---|---|---|---|---|---|")
    hits: Counter[str] = Counter()
    seconds, exact = [], 0
    for fault in FAULTS:
        results = [look_for(fault, seed=seed) for seed in range(seeds)]
        found = [result for result in results if result.left is not None]
        hits[fault.name] = len(found)
        seconds += [result.seconds for result in found]
        exact += sum((result.left or 0) <= max(2 * fault.needs, 1) for result in found)
        said = f"{len(found)} of {seeds}" if seeds > 1 else ("yes" if found else f"NO in {results[0].asked:,}")
        left = max((result.left or 0 for result in found), default=0)
        worst = max(result.seconds for result in results)
        told = left if found else "-"
        asked = max(result.asked for result in results)
        cells = (fault.family, fault.name, said, f"{asked:,}", f"{worst:.2f}", told, fault.needs)
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    hidden = [fault.name for fault in FAULTS if fault.needs]
    for names, told in (([fault.name for fault in FAULTS], "all"), (hidden, "those that no base row shows")):
        count, of = sum(hits[name] for name in names), len(names) * seeds
        print(f"{told}: {count} of {of} found, {count / of:.1%} (goal ≥ {GOAL:.0%})")
    print(f"at most twice the features needed (of a fault between rows: one): {exact} of {len(seconds)}")
    median = sorted(seconds)[len(seconds) // 2]
    print(f"seconds to a minimised counterexample: median {median:.3f}, worst {max(seconds):.2f}")
    print("changes to the list since it was frozen:", *(FROZEN_CHANGES or ("none",)), sep="\n  ")


if __name__ == "__main__":
    main()
