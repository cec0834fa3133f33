"""Width and coverage of the interval of an audited accuracy, relative to as many labels alone.

    python benchmarks/audit_widths.py [--repeats 2000] [--seed 0]

A tenth of the rows is audited. Scores are calibrated, or useless: then every prediction is right with one probability.
Widths are those of intervals at 95 %, relative to Clopper-Pearson of the same number of labels; "formula" is that of
uniform sampling, sqrt(1 - rho^2 (1 - n/N)), and "ppi_py" the interval of that package, if it is installed. "low" and
"high" are the rates at which the ends of the stratified interval at 95 and 99.9 % miss: false PASS and false FAIL of
a model at its budget.
"""

from __future__ import annotations

import argparse
import importlib.util
import math

import numpy as np
from scipy.special import expit

from pytest_modelserve.progress import progress
from pytest_modelserve.stats import (
    binomial_bounds,
    effective_proportion_bounds,
    prediction_powered_mean,
    score_strata,
    stratified_design,
    stratified_proportion_bounds,
)

CASES = ((0.0, 4.9), (0.0, 6.0), (4.0, 1.5))
"""Mean and standard deviation of the logits."""
COUNTS = (200, 500, 2_000)
LEVELS = {"low_level": 0.975, "high_level": 0.975}
LARGE = 2_000_000


def confidences(rng: np.random.Generator, case: tuple[float, float], rows: int) -> np.ndarray:
    return np.asarray(expit(np.abs(rng.normal(*case, rows))))


def peer(right: np.ndarray, scores: np.ndarray, rest: np.ndarray) -> float:
    from ppi_py import ppi_mean_ci

    low, high = ppi_mean_ci(right, scores, rest, alpha=0.05)
    return float(np.ravel(high - low)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2000, help="samples a row (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulations (default 0)")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    has_peer = importlib.util.find_spec("ppi_py") is not None
    print(
        f"{arguments.repeats:,} samples, seed {arguments.seed}; widths relative to the labels alone, rates in percent"
    )
    print(
        f"{'accuracy':>8}{'rho':>7}{'labels':>8}{'uniform':>9}{'formula':>9}{'ppi_py':>8}{'covers':>8}"
        f"{'stratified':>12}{'covers':>8}{'low':>7}{'high':>7}"
    )
    cases = [(case, useless, count) for case in CASES for useless in (False, True) for count in COUNTS]
    for case, useless, count in progress(cases, "audits"):
        large = confidences(rng, case, LARGE)
        truth = float(large.mean())
        rho = 0.0 if useless else float(large.std()) / math.sqrt(truth * (1 - truth))
        widths, hits = np.zeros(4), np.zeros(4)
        for _ in range(arguments.repeats):
            scores = confidences(rng, case, 10 * count)
            right = (rng.random(10 * count) < (truth if useless else scores)).astype(float)
            rows = rng.choice(10 * count, count, replace=False)
            powered = prediction_powered_mean(right[rows], scores[rows], scores)
            variance = float(powered.influence.var(ddof=1)) / count
            uniform = effective_proportion_bounds(
                powered.value, variance, count, degrees_of_freedom=count - 1, **LEVELS
            )
            strata = score_strata(scores)
            drawn = stratified_design(scores, strata, count).rows
            good = [right[rng.choice(np.flatnonzero(strata == s), n, replace=False)].sum() for s, n in enumerate(drawn)]
            sizes = np.bincount(strata)
            both = stratified_proportion_bounds(good, drawn, sizes, **LEVELS)
            gate = stratified_proportion_bounds(good, drawn, sizes, low_level=0.95, high_level=0.999)
            alone = binomial_bounds(int(right[rows].sum()), count, **LEVELS)
            rest = np.delete(scores, rows)
            other = peer(right[rows], scores[rows], rest) if has_peer else math.nan
            widths += [uniform.high - uniform.low, other, both.high - both.low, alone.high - alone.low]
            hits += [
                uniform.low <= truth <= uniform.high,
                both.low <= truth <= both.high,
                gate.low > truth,
                gate.high < truth,
            ]
        ratios, rates = widths[:3] / widths[3], 100 * hits / arguments.repeats
        print(
            f"{truth:8.3f}{rho:7.3f}{count:8,}{ratios[0]:9.3f}{math.sqrt(1 - rho**2 * 0.9):9.3f}{ratios[1]:8.3f}"
            f"{rates[0]:8.1f}{ratios[2]:12.3f}{rates[1]:8.1f}{rates[2]:7.1f}{rates[3]:7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
