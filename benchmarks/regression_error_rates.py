"""Error rates of the gates on MAE and RMSE, compared with their nominal rates.

    python benchmarks/regression_error_rates.py [--repeats 4000] [--seed 0]

The bounds are at 0.999 (low end) and 0.95 (high end), for an upper budget: a low end above the truth is a false FAIL at
the budget, a high end below it a false PASS. The last part is the whole gate, with the truth as budget.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from error_rates import HIGH_LEVEL, LOW_LEVEL, Row
from numpy.typing import NDArray
from scipy.signal import lfilter

from pytest_modelserve.progress import progress
from pytest_modelserve.stats import (
    mean_bounds,
    mean_of,
    mean_power,
    root_of,
    serial_dependence,
    values_needed,
)

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
LEVELS = {"low_level": LOW_LEVEL, "high_level": HIGH_LEVEL}
RATES = {"confidence": HIGH_LEVEL, "alpha": 1 - LOW_LEVEL}
MEAN_ABS_T5 = 0.9490
"""E|t₅|: 2·sqrt(5)·Γ(3)/(sqrt(π)·Γ(5/2)·4)."""


def autoregression(coefficient: float) -> Draw:
    """Return a generator of a stationary autoregression of mean 0 with normal innovations."""

    def draw(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        series: NDArray[np.float64] = lfilter([1.0], [1.0, -coefficient], rng.standard_normal(n + 200))[200:]
        return series

    return draw


def slow_drift(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Return noise plus a slow drift with 15 % of the variance; the first autocorrelation is only 0.15."""
    drift = autoregression(0.97)(rng, n) * np.sqrt(1 - 0.97**2)
    return np.sqrt(0.15) * drift + np.sqrt(0.85) * rng.standard_normal(n)


LOSSES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, n: rng.standard_normal(n), 0.0),
    "t₃, symmetric": (lambda rng, n: rng.standard_t(3, n), 0.0),
    "|normal|": (lambda rng, n: np.abs(rng.standard_normal(n)), float(np.sqrt(2 / np.pi))),
    "normal²": (lambda rng, n: rng.standard_normal(n) ** 2, 1.0),
    "|t₅|": (lambda rng, n: np.abs(rng.standard_t(5, n)), MEAN_ABS_T5),
    "t₅²": (lambda rng, n: rng.standard_t(5, n) ** 2, 5 / 3),
}

DEPENDENT: dict[str, Draw] = {
    **{f"autoregression {coefficient:g}": autoregression(coefficient) for coefficient in (0.2, 0.3, 0.5)},
    "slow drift": slow_drift,
}


def ends(
    method: str, case: str, repeats: int, truth: float, draw: Callable[[], NDArray[np.float64]], *, block: int = 1
) -> Iterator[Row]:
    """Compare both ends of an interval for a mean with the truth."""
    found = [mean_bounds(draw(), block=block, low_level=LOW_LEVEL, high_level=HIGH_LEVEL) for _ in range(repeats)]
    low, high = (
        float(np.mean(missed)) for missed in zip(*((b.low > truth, b.high < truth) for b in found), strict=True)
    )
    yield Row(f"{method}, low end", case, 1 - LOW_LEVEL, low, repeats)
    yield Row(f"{method}, high end", case, 1 - HIGH_LEVEL, high, repeats)


def independent(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Simulate the mean of independent losses, and of differences of losses."""
    for name, (draw, truth) in LOSSES.items():
        for n in (20, 50, 200, 1000):
            yield from ends("mean", f"{name}, n={n}", repeats, truth, lambda draw=draw, n=n: draw(rng, n))


def blocked(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Simulate the mean of autocorrelated losses, with and without blocks."""
    for coefficient, n, block in ((0.5, 1141, 52), (0.8, 1141, 52), (0.5, 260, 26), (0.5, 1141, 1)):
        draw = autoregression(coefficient)
        case = f"autoregression {coefficient:g}, n={n}, block={block}"
        yield from ends("blocks", case, repeats, 0.0, lambda draw=draw, n=n: draw(rng, n), block=block)


def root_means(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Simulate the rise of an RMSE, with a correlation of 0.9 and errors of the candidate a tenth larger."""
    errors: dict[str, Draw] = {
        "normal": lambda rng, n: rng.standard_normal(n),
        "t₈": lambda rng, n: rng.standard_t(8, n) / np.sqrt(8 / 6),
    }
    for name, draw in errors.items():
        for n in (50, 200, 1000):

            def rises(draw: Draw = draw, n: int = n) -> NDArray[np.float64]:
                reference = draw(rng, n)
                candidate = 1.1 * (0.9 * reference + np.sqrt(1 - 0.81) * draw(rng, n))
                return root_of(mean_of(candidate**2)).minus(root_of(mean_of(reference**2))).values

            yield from ends("RMSE rise", f"{name} errors, n={n}", repeats, 0.1, rises)


def dependence(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Simulate false alarms and power of the test for serial dependence."""
    for name in ("normal", "normal²", "t₅²"):
        for n in (20, 50, 200, 1000):
            alarms = [serial_dependence(LOSSES[name][0](rng, n)) is not None for _ in range(repeats)]
            yield Row("dependence: false alarm", f"{name}, n={n}", 0.005, float(np.mean(alarms)), repeats)
    for name, draw in DEPENDENT.items():
        for n in (50, 200, 1000):
            missed = [serial_dependence(draw(rng, n)) is None for _ in range(repeats)]
            yield Row("dependence: not found", f"{name}, n={n}", 0.0, float(np.mean(missed)), repeats)


def gate(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Simulate PASS and FAIL of dependent losses without `block` at a budget of the truth, with and without guard."""
    for name, draw in DEPENDENT.items():
        for n in (50, 200, 1000):
            samples = [draw(rng, n) for _ in range(repeats)]
            unguarded = [mean_bounds(sample, low_level=LOW_LEVEL, high_level=HIGH_LEVEL) for sample in samples]
            independent = np.array([serial_dependence(sample) is None for sample in samples])
            for verdict, nominal, wrong in (
                ("PASS", 1 - HIGH_LEVEL, np.array([b.high < 0 for b in unguarded])),
                ("FAIL", 1 - LOW_LEVEL, np.array([b.low > 0 for b in unguarded])),
            ):
                yield Row(f"false {verdict}, unguarded", f"{name}, n={n}", nominal, float(wrong.mean()), repeats)
                yield Row(
                    f"false {verdict}, guarded", f"{name}, n={n}", nominal, float((wrong & independent).mean()), repeats
                )


def planning(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Simulate how often the values planned for 90 % power do not pass, and the probability of PASS."""
    draw = LOSSES["t₃, symmetric"][0]
    pilot = draw(rng, 200)
    needed = values_needed(pilot, truth=0.0, limit=0.2, **RATES)
    assert needed is not None
    scale = np.sqrt(3) / pilot.std(ddof=1)  # t₃ has a variance of 3: planned for the variance of the pilot
    short = [mean_bounds(draw(rng, needed) / scale, **LEVELS).high > 0.2 for _ in range(repeats)]
    yield Row("values needed: no PASS", f"t₃, n={needed}, budget 0.2", 0.1, float(np.mean(short)), repeats)
    expected = mean_power(pilot, truth=0.0, limit=0.2, **RATES).passes
    passed = [mean_bounds(draw(rng, 200) / scale, **LEVELS).high <= 0.2 for _ in range(repeats)]
    yield Row("mean power: PASS", "t₃, n=200, budget 0.2", expected, float(np.mean(passed)), repeats)


STUDIES = (independent, blocked, root_means, dependence, gate, planning)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=4000, help="simulated samples a row (default 4000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulations (default 0)")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    rows = [row for study in progress(STUDIES, "error rates") for row in study(rng, arguments.repeats)]
    print(f"Rates in percent; {arguments.repeats} samples a row, seed {arguments.seed}.")
    print(f"{'method':<30} {'case':<52} {'nominal':>8} {'observed':>9}")
    print("\n".join(map(str, rows)))


if __name__ == "__main__":
    main()
