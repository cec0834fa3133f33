"""Proportion of planted faults that the search finds: `python -m benchmarks.planted_faults`.

100 models with one fault each (benchmarks/faults.py, and faults_later.py for later relations), with the relation that a
user would state and the rows that a user would have, over every family of relations. Each is searched once, with 10,000
candidates and seed 0; goal: 95 % found. It prints the seconds to the minimized counterexample, and how many of its
features differ from a base row, with the smallest number possible. The generation of candidates has not changed since
the first run on the first list. Later additions are declared ranges, which no fault here has, the minimization of
texts, and searches in a child process.

`--seeds N` repeats all of it with N seeds and prints the proportion over all of them.
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
class SearchOutcome:
    """One search; `features_left` is None if nothing was found."""

    features_left: int | None
    seconds: float
    candidates: int


def search_fault(fault: Fault, *, seed: int = 0, candidates: int = CANDIDATES) -> SearchOutcome:
    """Search for a fault once."""
    model = ms.serve(fault.model(), name=fault.name)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the faulty models cast NaN and divide by zero
        count = candidates if fault.relation.searched else None
        evidence = ms.measure_relation(
            model, fault.rows, fault.relation, candidates=count, domain=fault.domain, seed=seed, save_to=None
        )
    return SearchOutcome(evidence.details.get("features_left"), time.perf_counter() - started, evidence.n)


def main() -> None:
    options = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    options.add_argument("--seeds", type=int, default=1)
    seeds = options.parse_args().seeds
    print("| family | fault | found | candidates | seconds | features left | features needed |")
    print("|---|---|---|---|---|---|---|")
    hits: Counter[str] = Counter()
    seconds, exact = [], 0
    for fault in FAULTS:
        outcomes = [search_fault(fault, seed=seed) for seed in range(seeds)]
        found = [outcome for outcome in outcomes if outcome.features_left is not None]
        hits[fault.name] = len(found)
        seconds += [outcome.seconds for outcome in found]
        exact += sum((outcome.features_left or 0) <= max(2 * fault.needs, 1) for outcome in found)
        candidates = max(outcome.candidates for outcome in outcomes)
        text = f"{len(found)} of {seeds}" if seeds > 1 else ("yes" if found else f"NO in {candidates:,}")
        left = max((outcome.features_left or 0 for outcome in found), default=0) if found else "-"
        worst = max(outcome.seconds for outcome in outcomes)
        cells = (fault.family, fault.name, text, f"{candidates:,}", f"{worst:.2f}", left, fault.needs)
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    hidden = [fault.name for fault in FAULTS if fault.needs]
    for names, label in (([fault.name for fault in FAULTS], "all"), (hidden, "those that no base row shows")):
        count, of = sum(hits[name] for name in names), len(names) * seeds
        print(f"{label}: {count} of {of} found, {count / of:.1%} (goal ≥ {GOAL:.0%})")
    print(f"at most twice the features needed (of a fault between rows: one): {exact} of {len(seconds)}")
    median = sorted(seconds)[len(seconds) // 2]
    print(f"seconds to a minimized counterexample: median {median:.3f}, worst {max(seconds):.2f}")
    print("changes to the list since it was frozen:", *(FROZEN_CHANGES or ("none",)), sep="\n  ")


if __name__ == "__main__":
    main()
