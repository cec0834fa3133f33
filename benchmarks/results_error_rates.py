"""False alarms and power of the gate on results.

    python benchmarks/results_error_rates.py [--worlds 400] [--seed 0]

Profiles of 10,000 outputs, windows of 2,000. Unchanged outputs are judged at alpha 0.05 and budgets near 0, so that
significance alone decides: FAIL in at most 5 %. The changes are judged at the default alpha and usual budgets.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pytest_modelserve as ms
from pytest_modelserve.evidence import Verdict
from pytest_modelserve.progress import progress

Outputs = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Outputs]
PROFILE, WINDOW, WINDOWS_EACH = 10_000, 2_000, 20
USUAL = {"max_distance": 0.08, "max_rate": 0.01, "block": 1}
TIGHT = {"max_distance": 1e-6, "max_rate": 1e-6, "alpha": 0.05, "block": 1}


def softmax(logits: Outputs) -> Outputs:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def classes(k: int, temperature: float = 1.0, prior: float = 0.0) -> Draw:
    def draw(rng: np.random.Generator, rows: int) -> Outputs:
        logits = rng.normal(0, 2, (rows, k)) / temperature
        logits[:, 0] += prior
        return softmax(logits)

    return draw


def alerts(rng: np.random.Generator, rows: int) -> Outputs:
    return rng.beta(0.3, 8, rows)


def more_alerts(rng: np.random.Generator, rows: int) -> Outputs:
    return np.where(rng.random(rows) < 0.02, rng.uniform(0.5, 1, rows), alerts(rng, rows))


def with_default(rng: np.random.Generator, rows: int) -> Outputs:
    outputs = classes(4)(rng, rows)
    outputs[rng.random(rows) < 0.03] = [0.4, 0.3, 0.2, 0.1]
    return outputs


def with_nan(rng: np.random.Generator, rows: int) -> Outputs:
    outputs = classes(4)(rng, rows)
    outputs[rng.integers(rows)] = np.nan
    return outputs


CASES: Mapping[str, tuple[Draw, Draw, Mapping[str, Any]]] = {
    "unchanged, 2 classes, alerts": (alerts, alerts, {**TIGHT, "max_alert_change": 1e-6}),
    "unchanged, 4 classes": (classes(4), classes(4), TIGHT),
    "unchanged, 10 classes": (classes(10), classes(10), TIGHT),
    "unchanged, usual budgets": (classes(4), classes(4), USUAL),
    "temperature 1.5": (classes(4), classes(4, 1.5), USUAL),
    "a class gains 17 points": (classes(4), classes(4, 1, 1.2), USUAL),
    "2 points more alerts": (alerts, more_alerts, {**USUAL, "max_alert_change": 0.01}),
    "3 % are one default": (classes(4), with_default, USUAL),
    "one row of 2,000 is NaN": (classes(4), with_nan, USUAL),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=400, help="windows of each kind (default 400)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulations (default 0)")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    print(f"Percent of {arguments.worlds:,} windows, seed {arguments.seed}; a new profile for every {WINDOWS_EACH}")
    print(f"{'outputs':<34}{'FAIL':>8}{'PASS':>8}{'INCONCLUSIVE':>14}")
    for name, (before, after, budgets) in progress(list(CASES.items()), "results"):
        found: Counter[Verdict | None] = Counter()
        for world in range(arguments.worlds):
            if world % WINDOWS_EACH == 0:
                threshold = 0.5 if before is alerts else None
                profile = ms.reference_profile(ms.output_columns(before(rng, PROFILE), alert_at=threshold))
            found[ms.measure_results(after(rng, WINDOW), profile, **budgets).verdict] += 1
        rates = [100 * found[verdict] / arguments.worlds for verdict in (Verdict.FAIL, Verdict.PASS)]
        print(f"{name:<34}{rates[0]:8.1f}{rates[1]:8.1f}{100 - sum(rates):14.1f}", flush=True)


if __name__ == "__main__":
    main()
