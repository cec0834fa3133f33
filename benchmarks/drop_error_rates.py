"""Error rates of the verdicts on a paired drop, by enumeration, and the power that the correction costs.

    python benchmarks/drop_error_rates.py [--sizes 60] [--first 50] [--last 100000]

Each line is a number of rows, over margins of 0.5, 1, 2, 3 and 5 points and true discordances from the margin to 20 %
(steps of 0.037 in the root of the expected rarer rows near the margin, which the package's own grid does not share).
`PASS` and `FAIL` are the highest probabilities of that verdict for a model exactly at its margin, in percent, first
with Tango's own limits, then with those of `paired_difference_bounds`. `lost` is the largest loss of power of the
latter, in points: PASS for a true drop of 0 and of half the margin, FAIL for 2 and 3 times the margin. Its first figure
covers the margins for which Tango's limits hold 1.1 times their level at every discordance. Its second covers all
discordances at which they do. The last line has the errors where Tango's limits are used without enumeration.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, gammaln, ndtri, xlog1py, xlogy

from pytest_modelserve.progress import progress
from pytest_modelserve.stats.paired_proportions import (
    ERROR_TOLERANCE,
    Truth,
    first_lost_above,
    probabilities_within,
    rows_without_discordance,
    score,
    tango_suffices,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MARGINS = (0.005, 0.01, 0.02, 0.03, 0.05)
MOST_DISCORDANT = 0.2
PASS_LEVEL, FAIL_LEVEL = 0.95, 0.999


@dataclass(frozen=True, slots=True)
class Rule:
    """For each total of discordant rows from 0 on, the smallest `lost` that is outside the limit."""

    n: int
    first: IntArray

    def probabilities(self, discordances: FloatArray, differences: FloatArray | float) -> FloatArray:
        """Return the probability to be within the limit, for each truth."""
        pairs = np.broadcast_arrays(discordances, differences)
        return np.array([self._probability(d, difference) for d, difference in zip(*pairs, strict=True)])

    def _probability(self, discordance: float, difference: float) -> float:
        mean = self.n * discordance
        reach = 12 + math.sqrt(144 + 60 * mean)
        totals = np.arange(max(math.floor(mean - reach), 0), min(math.ceil(mean + reach) + 1, self.first.size))
        logarithms = (
            gammaln(self.n + 1)
            - gammaln(totals + 1)
            - gammaln(self.n - totals + 1)
            + xlogy(totals, discordance)
            + xlog1py(self.n - totals, -discordance)
        )
        lost_probability = 0.5 * (1 + difference / discordance) if discordance > 0 else 0.5
        first = self.first[totals]
        below = np.where(first > 0, bdtr(np.maximum(first - 1, 0), totals, lost_probability), 0.0)
        return float(np.exp(logarithms) @ below)


@dataclass(frozen=True, slots=True)
class Row:
    """One verdict at one number of rows and one margin; sizes are relative to the nominal error."""

    n: int
    margin: float
    tango: float
    held: float
    worst_discordance: float
    lost_power: float | None  # None if Tango's own limit exceeds its level at some discordance
    lost_locally: float  # at the discordances at which it does


def held_and_tango(n: int, difference: float, level: float) -> tuple[Rule, Rule]:
    """Return the rule of the package, and Tango's."""
    mean = n * min(3 * abs(difference) + MOST_DISCORDANT, 1)
    totals = np.arange(min(math.ceil(mean + 12 + math.sqrt(144 + 60 * mean)), n) + 1)
    low, high = np.zeros_like(totals), totals + 1
    while np.any(low < high):
        middle = np.minimum((low + high) // 2, totals)
        above = score(middle, totals - middle, n, difference) > -ndtri(level)
        low, high = np.where(above, low, middle + 1), np.where(above, middle, high)
    return Rule(n, first_lost_above(totals, n, difference, level)), Rule(n, low)


def evaluated(n: int, difference: float, level: float, alternatives: tuple[float, ...]) -> Row:
    """Return the errors of the limit at `level` for a true drop of `difference`, which is negative for FAIL."""
    margin = abs(difference)
    held, tango = held_and_tango(n, difference, level)
    near = margin + 2 * np.arange(0, 8, 0.037) ** 2 / n
    far = np.geomspace(margin, MOST_DISCORDANT, 40)
    discordances = np.unique(np.append(near[near < MOST_DISCORDANT], far))
    sizes, tango_sizes = (rule.probabilities(discordances, difference) / (1 - level) for rule in (held, tango))
    within = discordances[tango_sizes <= ERROR_TOLERANCE]
    locally = max(_lost_power(held, tango, drop, within) for drop in alternatives)
    everywhere = None
    if within.size == discordances.size:
        below = np.geomspace(0.1 / n, margin, 20)
        everywhere = max(locally, *(_lost_power(held, tango, drop, below) for drop in alternatives))
    worst = int(sizes.argmax())
    return Row(
        n, margin, float(tango_sizes.max()), float(sizes[worst]), float(discordances[worst]), everywhere, locally
    )


def _lost_power(held: Rule, tango: Rule, drop: float, discordances: FloatArray) -> float:
    """Return the largest loss of power of the first rule against the second for a true drop of `drop`."""
    discordances = discordances[discordances >= abs(drop)]
    if not discordances.size or np.array_equal(held.first, tango.first):
        return 0.0
    return float(np.max(tango.probabilities(discordances, drop) - held.probabilities(discordances, drop)))


def tested_rows(first: int, last: int, count: int) -> list[int]:
    """Return numbers of rows, even on a log scale, and the smallest at which no discordant row means PASS."""
    z = ndtri(PASS_LEVEL)
    tango_begins = [math.ceil(z**2 * (1 - margin) / margin) for margin in MARGINS]
    begins = [rows_without_discordance(margin, PASS_LEVEL) for margin in MARGINS]
    even = np.geomspace(first, last, count).round().astype(int).tolist()
    return sorted(n for n in {*even, 268, 1018, 1080, *begins, *tango_begins} if first <= n <= last)


def unchecked_tango_error(rng: np.random.Generator, cases: int) -> tuple[float, str]:
    """Return the highest error, relative to nominal, where Tango's limit is used without enumeration; and where."""
    worst = (0.0, "")
    for _ in progress(range(cases), "where Tango's limit suffices"):
        level = float(rng.choice([0.9, 0.95, 0.975, 0.99, 0.995, 0.999, 0.9995, 0.9999]))
        n = int(np.exp(rng.uniform(math.log(134), math.log(300_000))))
        size = float(np.exp(rng.uniform(math.log(1e-4), math.log(0.3))))
        skewed = (size * ndtri(level) ** 3 / (0.4 * math.sqrt(n))) ** (2 / 3)
        least = max(80 / n, size + 20 / n, skewed)
        steps = math.sqrt(n * least) + np.append(np.arange(0, 2, 0.05), np.arange(2, 12, 0.5))
        discordances = np.minimum(steps**2 / n, 0.6)
        discordances = discordances[tango_suffices(n, size, discordances, level)]
        for difference in (size, -size) if discordances.size else ():
            errors = probabilities_within(Truth(n, difference, discordances), difference, float(ndtri(level))) / (
                1 - level
            )
            error, at = max(zip(errors.tolist(), discordances.tolist(), strict=True))
            worst = max(worst, (error, f"n={n}, level {level}, difference {difference:.5f}, discordance {at:.5f}"))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, default=60, help="numbers of rows (default 60)")
    parser.add_argument("--first", type=int, default=50, help="the smallest (default 50)")
    parser.add_argument("--last", type=int, default=100_000, help="the largest (default 100000)")
    parser.add_argument("--cases", type=int, default=2000, help="cases taken without enumeration (default 2000)")
    arguments = parser.parse_args()
    print("        PASS at the margin (5 %)                  FAIL at the margin (0.1 %)")
    print("     n  Tango  held   lost  lost (margin, d)      Tango    held    lost  lost (margin, d)")
    rows: dict[str, list[Row]] = {"PASS": [], "FAIL": []}
    for n in progress(tested_rows(arguments.first, arguments.last, arguments.sizes), "numbers of rows"):
        passes = [evaluated(n, m, PASS_LEVEL, (0.0, m / 2)) for m in MARGINS]
        fails = [evaluated(n, -m, FAIL_LEVEL, (-2 * m, -3 * m)) for m in MARGINS]
        print(f"{n:>6}  {_format_rows(passes, 5, 2)}   {_format_rows(fails, 0.1, 4)}", flush=True)
        rows["PASS"] += passes
        rows["FAIL"] += fails
    for verdict, nominal in (("PASS", 5), ("FAIL", 0.1)):
        print(f"{verdict} over all: {_format_rows(rows[verdict], nominal, 4)}, {len(rows[verdict])} cases")
    error, where = unchecked_tango_error(np.random.default_rng(0), arguments.cases)
    print(f"where Tango's limit is taken without enumeration: at most {error:.3f} times nominal ({where})")


def _format_rows(rows: list[Row], nominal: float, digits: int) -> str:
    worst = max(rows, key=lambda row: row.held)
    lost = [row.lost_power for row in rows if row.lost_power is not None]
    cost = f"{100 * max(lost):5.2f}" if lost else "    -"
    tango = max(row.tango for row in rows)
    where = f"({100 * worst.margin:g} pt, {100 * worst.worst_discordance:.2f} %)"
    locally = 100 * max(row.lost_locally for row in rows)
    return f"{nominal * tango:.{digits}f}  {nominal * worst.held:.{digits}f}  {cost} {locally:5.2f} {where:<17}"


if __name__ == "__main__":
    main()
