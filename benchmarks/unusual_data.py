"""How often the data-quality gate crashes on, or fails, unchanged data that are unusual.

    python benchmarks/unusual_data.py [--worlds 3000] [--large 0.02] [--seed 0] [--alpha 0.001]

A world is a profile and later rows of one distribution. It has one to six columns, each of a kind drawn at random: few
distinct values, heavy ties, rare values, infinities, nulls, constants, categories in many frequencies, heavy tails,
identifiers beyond 2⁵³, dates, text. Profile and rows have 50 to 20,000 rows each, drawn evenly by their logarithm; in a
part of the worlds (`--large`) the rows are 20,000 to 600,000. It prints the number of crashes, the verdicts, and the
rate of FAIL with its bounds of Clopper and Pearson, at a budget of 0.01 and at one of nothing, where significance alone
decides.

One kind is left out: a rare value far outside a smooth distribution (999 among ages) that the profile happens to miss.
The rule on tails calls it a fault, because nothing tells it from one.
"""

from __future__ import annotations

import argparse
import traceback
from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import ModelServeError
from pytest_modelserve.monitoring import measure_data_quality, reference_profile
from pytest_modelserve.progress import progress
from pytest_modelserve.stats import binomial_bounds

ALPHA, BUDGET, NOTHING = 0.001, 0.01, 1e-9
FEWEST, MANY, MOST = 50, 20_000, 600_000

Generator = np.random.Generator
Values = NDArray[np.generic]
Draw = Callable[[Generator, int], Values]
"""Rows of one column of a world."""


def few_values(rng: Generator) -> Draw:
    shares = rng.dirichlet(np.full(rng.integers(2, 12), 0.5))
    values = np.sort(rng.normal(0, 100, shares.size).round(int(rng.integers(0, 3))))
    return lambda r, n: r.choice(values, n, p=shares)


def boolean(rng: Generator) -> Draw:
    share = 10 ** rng.uniform(-4, -0.3)
    return lambda r, n: r.random(n) < share


def heavy_ties(rng: Generator) -> Draw:
    tied, at, scale = rng.uniform(0.2, 0.99), rng.choice([0.0, -1.0, 100.0]), 10 ** rng.uniform(-2, 4)
    return lambda r, n: np.where(r.random(n) < tied, at, r.exponential(scale, n))


def rounded(rng: Generator) -> Draw:
    digits, scale = int(rng.integers(-1, 3)), 10 ** rng.uniform(0, 3)
    return lambda r, n: r.normal(0, scale, n).round(digits)


def counts(rng: Generator) -> Draw:
    mean = 10 ** rng.uniform(-3, 2)
    return lambda r, n: r.poisson(mean, n)


def rare_infinities(rng: Generator) -> Draw:
    share, sign = 10 ** rng.uniform(-4, -0.5), rng.choice([-1, 1])
    return lambda r, n: np.where(r.random(n) < share, sign * np.inf, r.lognormal(size=n))


def rare_nulls(rng: Generator) -> Draw:
    share = 10 ** rng.uniform(-4, -0.02)
    return lambda r, n: np.where(r.random(n) < share, np.nan, r.normal(size=n))


def constant(rng: Generator) -> Draw:
    value = rng.choice([0.0, 1.0, -7.5, 1e9])
    return lambda _, n: np.full(n, value)


def nearly_constant(rng: Generator) -> Draw:
    share = 10 ** rng.uniform(-4, -1)
    return lambda r, n: np.where(r.random(n) < share, r.integers(1, 4, n), 0)


def heavy_tail(rng: Generator) -> Draw:
    degrees = rng.uniform(0.7, 4)
    return lambda r, n: r.standard_t(degrees, n)


def categories(rng: Generator) -> Draw:
    names = np.array([f"n{index}" for index in range(rng.integers(1, 150))], dtype=object)
    shares = 1 / np.arange(1, names.size + 1) ** rng.uniform(0, 3)
    return lambda r, n: r.choice(names, n, p=shares / shares.sum())


def texts(rng: Generator) -> Draw:
    most = int(10 ** rng.uniform(2, 6))
    return lambda r, n: np.array([f"text {index}" for index in r.integers(0, most, n)], dtype=object)


def identifiers(rng: Generator) -> Draw:
    first, size = int(rng.integers(2**53, 2**62)), int(10 ** rng.uniform(1, 12))
    return lambda r, n: first + r.integers(0, size, n)


def days(rng: Generator) -> Draw:
    spread = int(rng.integers(1, 400))
    return lambda r, n: np.datetime64("2026-03-01", "D") + r.integers(0, spread, n).astype("m8[D]")


KINDS = (
    few_values, boolean, heavy_ties, rounded, counts, rare_infinities, rare_nulls, constant, nearly_constant,
    heavy_tail, categories, texts, identifiers, days,
)  # fmt: skip


def sizes(rng: Generator, large: float) -> tuple[int, int]:
    """Return the rows of the profile and of the later data."""
    profile = round(FEWEST * (MANY / FEWEST) ** rng.random())
    if rng.random() < large:
        return profile, round(MANY * (MOST / MANY) ** rng.random())
    return profile, round(FEWEST * (MANY / FEWEST) ** rng.random())


def world(rng: Generator, large: float = 0.0) -> tuple[dict[str, Values], dict[str, Values], str]:
    """Return unchanged data, to profile and to test, and a description."""
    kinds = [KINDS[index] for index in rng.choice(len(KINDS), rng.integers(1, 7), replace=False)]
    draws = {kind.__name__: kind(rng) for kind in kinds}
    before, after = sizes(rng, large)
    reference, current = ({name: draw(rng, rows) for name, draw in draws.items()} for rows in (before, after))
    return reference, current, f"{', '.join(draws)}; {before:,} against {after:,} rows"


def judge(seed: int, large: float, *, max_rate: float, alpha: float) -> tuple[str, str]:
    """Return the verdict of one world, or "crash", and what happened."""
    reference, current, text = world(np.random.default_rng(seed), large)
    try:
        evidence = measure_data_quality(current, reference_profile(reference), max_rate=max_rate, alpha=alpha)
    except ModelServeError as error:
        if "null in every row" in str(error) or "infinite in every" in str(error):
            return "no profile", text
        return "crash", f"{text}\n{traceback.format_exc()}"
    except Exception:
        return "crash", f"{text}\n{traceback.format_exc()}"
    assert evidence.verdict is not None
    return evidence.verdict.name, f"{text}: {evidence.findings[:2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=3000, help="generated data sets (default 3000)")
    parser.add_argument("--large", type=float, default=0.02, help="part with 20,000 to 600,000 rows (0.02)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first data set (default 0)")
    parser.add_argument("--alpha", type=float, default=ALPHA, help=f"error rate of the gate (default {ALPHA})")
    arguments = parser.parse_args()
    found: dict[float, Counter[str]] = {BUDGET: Counter(), NOTHING: Counter()}
    for seed in progress(range(arguments.seed, arguments.seed + arguments.worlds), "unusual data"):
        for max_rate, verdicts in found.items():
            verdict, text = judge(seed, arguments.large, max_rate=max_rate, alpha=arguments.alpha)
            verdicts[verdict] += 1
            if verdict in ("crash", "FAIL"):
                print(f"seed {seed}, max_rate {max_rate}: {verdict}: {text}", flush=True)
    for max_rate, verdicts in found.items():
        judged = verdicts.total() - verdicts["crash"] - verdicts["no profile"]
        bounds = binomial_bounds(verdicts["FAIL"], judged, low_level=0.95, high_level=0.95)
        print(
            f"max_rate {max_rate}, alpha {arguments.alpha}: {verdicts['crash']} crashes; {dict(verdicts)}; "
            f"FAIL {bounds.estimate:.5f} [{bounds.low:.5f}, {bounds.high:.5f}] of {judged:,}"
        )


if __name__ == "__main__":
    main()
