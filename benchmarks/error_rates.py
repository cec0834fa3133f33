"""Error rates of the statistics in pytest_modelserve.stats, compared with their nominal rates.

    python benchmarks/error_rates.py [--repeats 10000] [--seed 0]

Each row is one kind of error: a bound on the wrong side of the truth, or a wrong verdict. `exact` means that all
outcomes were enumerated, without Monte Carlo error; otherwise ± is two standard errors.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, bdtrc, ndtr

from pytest_modelserve.progress import progress
from pytest_modelserve.stats import (
    binomial_bounds,
    holm,
    interim_error_rate,
    median_bounds,
    noninferiority_power,
    paired_difference_bounds,
    quantile_bounds,
    rows_needed,
)

LOW_LEVEL, HIGH_LEVEL = 0.999, 0.95
INTERIM_SIZES = (50, 100, 200, 400, 800)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: rates are probabilities; `repeats` is None where the rate is exact."""

    method: str
    case: str
    nominal: float
    observed: float
    repeats: int | None = None

    def __str__(self) -> str:
        error = "exact"
        if self.repeats is not None:
            # At least the variance of one error, because no error in a few samples does not mean a rate of 0.
            variance = max(self.observed * (1 - self.observed), 1 / self.repeats) / self.repeats
            error = f"± {200 * math.sqrt(variance):.3f}"
        return f"{self.method:<30} {self.case:<52} {100 * self.nominal:8.3f} {100 * self.observed:9.3f}  {error:>8}"


def binomial(_: np.random.Generator, __: int) -> Iterator[Row]:
    """Enumerate all counts of Clopper–Pearson bounds, at the worst true proportion for each end."""
    for n in (10, 59, 597, 2000):
        bounds = [binomial_bounds(k, n, low_level=LOW_LEVEL, high_level=HIGH_LEVEL) for k in range(n + 1)]
        lows, highs = np.array([b.low for b in bounds]), np.array([b.high for b in bounds])
        # The error jumps where the truth crosses a bound, so the worst proportion is next to one.
        low = max(float(bdtrc(k - 1, n, p)) for k, p in enumerate(np.nextafter(lows, 0)) if k)
        high = max(float(bdtr(k, n, p)) for k, p in enumerate(np.nextafter(highs, 1)) if k < n)
        yield Row("binomial low end", f"n={n}, worst proportion", 1 - LOW_LEVEL, low)
        yield Row("binomial high end", f"n={n}, worst proportion", 1 - HIGH_LEVEL, high)


def paired_drop(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Simulate tables for the paired bounds; drop_error_rates.py enumerates them."""
    for n, discordance, difference in ((200, 0.1, 0.0), (268, 0.01, 0.01), (1018, 0.0125, 0.01), (2000, 0.3, 0.0)):
        probabilities = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
        tables, times = np.unique(rng.multinomial(n, probabilities, size=repeats)[:, :2], axis=0, return_counts=True)
        low_misses = high_misses = 0
        for (lost, gained), count in zip(tables.tolist(), times.tolist(), strict=True):
            bounds = paired_difference_bounds(lost, gained, n, low_level=LOW_LEVEL, high_level=HIGH_LEVEL)
            low_misses += count * (bounds.low > difference)
            high_misses += count * (bounds.high < difference)
        case = f"n={n}, d={100 * discordance:g} %, difference {100 * difference:g} pt"
        yield Row("paired drop low end", case, 1 - LOW_LEVEL, low_misses / repeats, repeats)
        yield Row("paired drop high end", case, 1 - HIGH_LEVEL, high_misses / repeats, repeats)


def planning(_: np.random.Generator, __: int) -> Iterator[Row]:
    """Compute the probability that an equal model does not pass with the rows planned for 90 % power."""
    for margin in (0.01, 0.02, 0.05):
        for discordance in (0.001, 0.005, 0.02, 0.1, 0.3):
            n = rows_needed(discordance=discordance, margin=margin, confidence=HIGH_LEVEL, power=0.9)
            probabilities = noninferiority_power(
                n, discordance=discordance, difference=0, margin=margin, confidence=HIGH_LEVEL, alpha=1e-3
            )
            case = f"n={n}, margin {100 * margin:g} pt, d={100 * discordance:g} %"
            yield Row("rows needed: equal, no PASS", case, 0.1, 1 - probabilities.passes)


def quantiles(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Simulate order-statistic bounds on skewed and on tied samples."""
    for quantile, n in ((0.5, 20), (0.5, 200), (0.95, 150), (0.95, 1000), (0.99, 1000)):
        for shape, truth in (("exponential", -math.log1p(-quantile)), ("geometric ties", _geometric(quantile))):
            bounds = [
                quantile_bounds(
                    rng.exponential(size=n) if shape == "exponential" else rng.geometric(0.2, size=n),
                    quantile,
                    low_level=LOW_LEVEL,
                    high_level=HIGH_LEVEL,
                )
                for _ in range(repeats)
            ]
            low_misses = sum(b.low > truth for b in bounds)
            high_misses = sum(b.high < truth for b in bounds)
            case = f"{shape}, n={n}, quantile {quantile:g}"
            yield Row("quantile low end", case, 1 - LOW_LEVEL, low_misses / repeats, repeats)
            yield Row("quantile high end", case, 1 - HIGH_LEVEL, high_misses / repeats, repeats)


def _geometric(quantile: float) -> float:
    return math.ceil(math.log1p(-quantile) / math.log1p(-0.2))


def holm_family(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Simulate ten one-sided normal tests with seven true hypotheses, and count rejections of true ones."""
    for correlation in (0.0, 0.5, 0.9):
        common, own = rng.standard_normal((repeats, 1)), rng.standard_normal((repeats, 10))
        normal = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
        normal[:, 7:] += 4
        wrong = float(np.mean([(holm(p)[:7] <= 0.05).any() for p in ndtr(-normal)]))
        yield Row("Holm: any true one rejected", f"10 tests, 7 true, correlation {correlation:g}", 0.05, wrong, repeats)


def interim_analyses(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Enumerate and simulate a sign interval with five interim analyses."""
    for error in (0.05, 0.001):
        case = f"analyses {', '.join(map(str, INTERIM_SIZES))}"
        yield Row(
            "sign interval, one end",
            f"{case}, split",
            error,
            _error_over_analyses(interim_error_rate(error, len(INTERIM_SIZES))),
        )
        yield Row("sign interval, one end", f"{case}, not split", error, _error_over_analyses(error))
    level = 1 - interim_error_rate(0.05, len(INTERIM_SIZES))
    misses = 0
    for _ in range(repeats):
        log_ratios = rng.standard_t(2, size=INTERIM_SIZES[-1])
        misses += any(median_bounds(log_ratios[:n], low_level=level, high_level=level).high < 0 for n in INTERIM_SIZES)
    yield Row(
        "sign interval, one end", "the same, split, simulated (Student t, 2 d.f.)", 0.05, misses / repeats, repeats
    )


def _error_over_analyses(error: float) -> float:
    """Return the probability that the high end is below the median at any analysis, by its count of signs."""
    state, previous, wrong = np.ones(1), 0, 0.0
    for size in INTERIM_SIZES:
        signs = np.arange(size - previous + 1)
        step = bdtr(signs, size - previous, 0.5)
        state, previous = np.convolve(state, np.diff(step, prepend=0)), size
        # The high end is below the median if `rank` or more samples are.
        rank = next(s for s in range(1, size + 2) if s > size or bdtr(s - 1, size, 0.5) >= 1 - error)
        wrong += float(state[rank:].sum())
        state[rank:] = 0
    return wrong


STUDIES = (binomial, paired_drop, planning, quantiles, holm_family, interim_analyses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10_000, help="simulated samples a row (default 10000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulations (default 0)")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    rows = [row for study in progress(STUDIES, "error rates") for row in study(rng, arguments.repeats)]
    print(f"Rates in percent; bounds at {LOW_LEVEL} (low end) and {HIGH_LEVEL} (high end); seed {arguments.seed}.")
    print(f"{'method':<30} {'case':<52} {'nominal':>8} {'observed':>9}")
    print("\n".join(map(str, rows)))


if __name__ == "__main__":
    main()
