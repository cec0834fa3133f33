"""Error rates and power of the calibration gate.

    python benchmarks/calibration_error_rates.py [--repeats 1000] [--seed 0]

Logits are normal with the mean and standard deviation shown; the true logits are these divided by the temperature, plus
the shift. "fails" and "passes" are the rates of a budget at exactly the true error, nominally 0.1 and 5 %; a calibrated
model passes any budget. The last two columns are the verdicts of usual budgets.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

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


if __name__ == "__main__":
    main()
