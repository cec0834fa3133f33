"""Searches among 60 variants that ship a too bad model, and their speed gain, for each selection rule.

    python benchmarks/tuning_selection.py [--searches 2000]

Each simulated search has 60 variants with a true drop of accuracy and a share of time saved; the faster a variant,
the larger its drop tends to be. The variants lose and gain correlated rows. The budget is one point. *too bad*: the
share of searches that ship a variant whose true drop exceeds it (where all lie exactly at the budget: any variant).
*gain*: the time saved by shipped variants that are good enough, over that of an oracle who knows the true drops.

*naive*: the fastest variant whose drop on the rows is at most a point. *uncorrected*: the fastest that passes the gate
alone. *max-T*: the rule of `ms.tune` for a grid, on all rows. *30/70*: its rule for variants made adaptively. The
rules see the same rows. Goals: max-T and 30/70 at most 5.5 % too bad everywhere, gain at least .40 with 2,000 rows and
.70 with 5,000.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices: several threads cost more than they save

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from pytest_modelserve.progress import progress
from pytest_modelserve.stats import (
    correlations_of,
    paired_difference_bounds,
    pass_probability,
    step_down_max_t,
    tango_statistic,
)
from pytest_modelserve.tuning.selection import SEARCH_SHARE, SHORTLIST

VARIANTS, BUDGET, ERROR_RATE, CORRELATION = 60, 0.01, 0.05, 0.5
GAINED = 0.005
"""The probability with which a variant is right on a row on which the original is wrong."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class World:
    """The true drop of each variant, and the share of time that it saves, (variants,) each."""

    drops: Floats
    saved: Floats


def random_world(rng: np.random.Generator) -> World:
    # Chosen so that the naive rule errs in about a quarter of searches with 2,000 rows.
    saved = rng.uniform(0.05, 0.75, VARIANTS)
    return World(0.01 * rng.lognormal(0, 0.65, VARIANTS) * (0.3 + 1.6 * saved), saved)


def at_budget(rng: np.random.Generator) -> World:
    return World(np.full(VARIANTS, BUDGET), rng.uniform(0.05, 0.75, VARIANTS))


@dataclass(frozen=True, slots=True)
class Rows:
    """By how much each variant is worse in each row, (rows, variants): 1 lost, −1 gained, 0 else."""

    drops: NDArray[np.int8]

    @classmethod
    def drawn(cls, world: World, n: int, rng: np.random.Generator) -> Rows:
        """Draw `n` rows; what they have in common makes variants lose the same ones."""
        shared = rng.standard_normal((n, 1), np.float32) * np.float32(np.sqrt(CORRELATION))
        latent = rng.standard_normal((n, VARIANTS), np.float32) * np.float32(np.sqrt(1 - CORRELATION)) + shared
        lost, gained = latent > -ndtri(world.drops + GAINED), latent < ndtri(GAINED)
        return cls(lost.astype(np.int8) - gained)

    @property
    def counts(self) -> tuple[Floats, Floats]:
        """The numbers of rows that each variant loses and gains."""
        return (self.drops > 0).sum(axis=0), (self.drops < 0).sum(axis=0)

    def z(self) -> Floats:
        """Return Tango's statistic of each variant against the budget, positive inside it."""
        lost, gained = self.counts
        return -tango_statistic(lost, gained, len(self.drops), BUDGET)

    def shipped(self, saved: Floats, passing: NDArray[np.bool_], level: float) -> int | None:
        """Return the fastest passing variant whose exact bound at `level`, that of the gate, keeps the budget."""
        lost, gained = self.counts
        for variant in np.flatnonzero(passing)[np.argsort(-saved[passing])]:
            bounds = paired_difference_bounds(
                int(lost[variant]), int(gained[variant]), len(self.drops), low_level=0.999, high_level=level
            )
            if bounds.high <= BUDGET:
                return int(variant)
        return None


def naive(world: World, rows: Rows, _: np.random.Generator) -> int | None:
    passing = rows.drops.mean(axis=0) <= BUDGET
    return int(np.argmax(np.where(passing, world.saved, -1))) if passing.any() else None


def uncorrected(world: World, rows: Rows, _: np.random.Generator) -> int | None:
    return rows.shipped(world.saved, rows.z() >= ndtri(1 - ERROR_RATE), 1 - ERROR_RATE)


def max_t(world: World, rows: Rows, _: np.random.Generator) -> int | None:
    z = rows.z()
    found = step_down_max_t(
        lambda k, level: bool(z[k] >= ndtri(level)), correlations_of(-rows.drops), error_rate=ERROR_RATE
    )
    return rows.shipped(world.saved, found.rejected, found.level)


def split(world: World, rows: Rows, rng: np.random.Generator) -> int | None:
    n = len(rows.drops)
    searched = rng.permutation(n) < round(SEARCH_SHARE * n)
    seen, judged = rows.drops[searched], Rows(rows.drops[~searched])
    probability = pass_probability(
        seen.mean(axis=0),
        np.maximum(seen.std(axis=0), np.sqrt(0.5 / len(seen))),
        limit=BUDGET,
        searched=len(seen),
        judged=len(judged.drops),
        level=1 - ERROR_RATE / SHORTLIST,
    )
    shortlist = np.argsort(-probability * world.saved)[:SHORTLIST]
    chosen = max_t(World(world.drops[shortlist], world.saved[shortlist]), Rows(judged.drops[:, shortlist]), rng)
    return None if chosen is None else int(shortlist[chosen])


RULES: dict[str, Callable[[World, Rows, np.random.Generator], int | None]] = {
    "naive": naive, "uncorrected": uncorrected, "max-T": max_t, "30/70": split,
}  # fmt: skip


def simulated(make: Callable[[np.random.Generator], World], n: int, searches: int) -> dict[str, tuple[float, float]]:
    """Return the share of searches that ship a too bad model and the share of the oracle's gain, for each rule."""
    too_bad: dict[str, int] = defaultdict(int)
    gain: dict[str, float] = defaultdict(float)
    oracle = 0.0
    for seed in progress(range(searches), f"searches with {n:,} rows", total=searches):
        rng = np.random.default_rng((n, seed))
        world = make(rng)
        good = world.drops < BUDGET
        oracle += world.saved[good].max(initial=0.0)
        rows = Rows.drawn(world, n, rng)
        for name, rule in RULES.items():
            chosen = rule(world, rows, rng)
            if chosen is not None:
                too_bad[name] += not good[chosen]
                gain[name] += world.saved[chosen] * good[chosen]
    return {name: (too_bad[name] / searches, gain[name] / oracle if oracle else 0.0) for name in RULES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--searches", type=int, default=2000)
    searches = parser.parse_args().searches
    print(
        f"{searches:,} searches among {VARIANTS} variants, budget {100 * BUDGET:g} point: too bad | gain over oracle's"
    )
    print(f"{'rows':>6}  {'variants':<22}" + "".join(f"{name:>18}" for name in RULES))
    for n in (2000, 5000):
        for title, make in (("faster is worse", random_world), ("all at the budget", at_budget)):
            found = simulated(make, n, searches)
            cells = (f"{100 * bad:.1f} % | {gain:.2f}" for bad, gain in found.values())
            print(f"{n:>6,}  {title:<22}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
