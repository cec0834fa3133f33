"""Error rates and power of the gates on calibration and on coverage.

    python benchmarks/calibration_error_rates.py [--repeats 1000] [--seed 0]

Logits are normal with the mean and standard deviation shown; the true logits are these divided by the temperature, plus
the shift. "fails" and "passes" are the rates of a budget at exactly the true error, nominally 0.1 and 5 %; a calibrated
model passes any budget. The last two columns are the verdicts of usual budgets.

The second table has intervals of 90 % for an autoregression with the memory shown, at exactly that budget, without
`block=`: "fails" and "passes" are nominally 0.1 and 5 %; "as independent rows" is the same with `block=1`.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import expit, ndtri

import pytest_modelserve as ms
from pytest_modelserve.progress import progress
from pytest_modelserve.stats import ReliabilityCurve, calibration_error_bounds, reliability_curve

LOGITS = ((0.0, 1.5), (2.0, 1.0), (-4.0, 1.0))
ROWS = (200, 500, 2_000, 10_000)
CHANGES = ((1.0, 0.0), (1.2, 0.0), (2.0, 0.0), (1.0, 0.5))
LARGE = 1_000_000


def curve(
    rng: np.random.Generator, rows: int, logits: tuple[float, float], change: tuple[float, float], bins: int = 15
) -> ReliabilityCurve:
    z: NDArray[np.float64] = rng.normal(*logits, rows)
    happened = rng.random(rows) < expit(z / change[0] + change[1])
    return reliability_curve(expit(z), happened.astype(float), bins=bins)


def series_rates(rng: np.random.Generator, rows: int, memory: float, repeats: int, block: int | None) -> list[float]:
    """Return the percentages of FAIL and PASS of intervals with exactly the coverage of the budget."""
    half = float(ndtri(0.95))
    intervals = np.tile([-half, half], (rows, 1))
    counts = {"FAIL": 0, "PASS": 0}
    for _ in range(repeats):
        noise = rng.normal(size=rows + 200) * np.sqrt(1 - memory**2)
        labels = lfilter([1.0], [1.0, -memory], noise)[200:]
        verdict = ms.measure_prediction_coverage(intervals, labels, min_coverage=0.9, block=block).verdict
        if str(verdict) in counts:
            counts[str(verdict)] += 1
    return [100 * count / repeats for count in counts.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1000, help="samples a row (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulations (default 0)")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    print(f"Percent of {arguments.repeats:,} samples, seed {arguments.seed}")
    titles = f"{'rows':>7}{'temp.':>7}{'shift':>7}{'true':>8}{'fails':>8}{'passes':>8}"
    print(f"{'logits':<14}{titles}{'FAIL at .02':>13}{'PASS at .05':>13}")
    cases = [(z, rows, change) for z in LOGITS for rows in ROWS for change in CHANGES]
    for logits, rows, change in progress(cases, "calibration"):
        bins = max(min(15, rows // 20), 1)
        large = curve(rng, LARGE, logits, change, bins)
        truth = 0.0 if change == (1.0, 0.0) else float(np.sqrt(large.weights @ large.gaps**2))
        found = [
            calibration_error_bounds(curve(rng, rows, logits, change), low_level=0.999, high_level=0.95)
            for _ in range(arguments.repeats)
        ]
        rates = [
            np.mean([bounds.low > truth + 1e-9 for bounds in found]),
            np.mean([bounds.high < truth for bounds in found]),
            np.mean([bounds.low > 0.02 for bounds in found]),
            np.mean([bounds.high <= 0.05 for bounds in found]),
        ]
        shown = f"{100 * rates[0]:8.2f}{100 * rates[1]:8.1f}{100 * rates[2]:13.1f}{100 * rates[3]:13.1f}"
        print(
            f"N({logits[0]:g}, {logits[1]:g})".ljust(14) + f"{rows:7,}{change[0]:7g}{change[1]:7g}{truth:8.4f}{shown}",
            flush=True,
        )
    print(f"\n{'memory':<8}{'rows':>7}{'fails':>8}{'passes':>8}{'as independent rows':>22}")
    for memory, rows in ((m, n) for m in (0.0, 0.5, 0.8, 0.9) for n in (300, 1_000, 5_000)):
        rates = series_rates(rng, rows, memory, arguments.repeats, None)
        plain = series_rates(rng, rows, memory, arguments.repeats, 1)
        print(f"{memory:<8g}{rows:7,}{rates[0]:8.2f}{rates[1]:8.1f}{plain[0]:14.2f}{plain[1]:8.1f}", flush=True)


if __name__ == "__main__":
    main()
