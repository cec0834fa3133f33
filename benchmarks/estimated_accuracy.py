"""Coverage of the interval of an estimated accuracy under covariate shift, on three real data sets.

    python -m benchmarks.estimated_accuracy [--repeats 1000] [--seed 0]

A weak model is trained on a part of each data set; the other rows are the population. Calibration rows are drawn from
it evenly, and a window with probabilities proportional to exp(shift · z), with z one standardized input, drawn anew for
each data set. "covers" is the proportion of 95 % intervals that hold the accuracy that was realized in the window,
where the effective calibration size is 800 or more; "inconclusive" is the proportion below. "plain" is the same of an
estimate without weights and with sampling error alone. In "hidden shift" labels are flipped for a tenth of the window:
no estimate without labels sees it. "passes" and "fails" are the rates of a budget at exactly the realized accuracy,
nominally 5 and 0.1 %. The last lines plant a change of concept: the gate without labels still passes, and
200 audited labels fail.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import pytest_modelserve as ms
from fixtures import breast_cancer, digits, stdlib_lines
from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring.results.estimated_accuracy import MAX_IMBALANCE, SMALLEST_SIZE
from pytest_modelserve.progress import progress
from pytest_modelserve.stats.covariate_shift import shifted_mean

Floats = NDArray[np.float64]
SHIFTS = (0.5, 1.0)
CALIBRATION, WINDOW = 4_000, 2_000
Population = tuple[Floats, NDArray[np.int64], Floats]
"""Inputs (n, d), labels (n,), and probabilities of class 1 (n,)."""


def split(
    inputs: Floats, labels: NDArray[np.int64], seen: slice, training: int, rng: np.random.Generator
) -> Population:
    """Train on a few rows and some columns, and return the other rows."""
    order = rng.permutation(len(labels))
    scaled = StandardScaler().fit_transform(inputs)
    model = LogisticRegression().fit(scaled[order[:training], seen], labels[order[:training]])
    rest = order[training:]
    return inputs[rest], labels[rest], model.predict_proba(scaled[rest][:, seen])[:, 1]


def populations(rng: np.random.Generator) -> Iterator[tuple[str, Callable[[int], Population]]]:
    tumors = breast_cancer.load().in_file_order
    rows = tumors.rows.astype(np.float64)
    yield "tumors", lambda _: split(rows, tumors.benign, slice(0, 2), 60, rng)
    with np.load(digits.DATA) as data:
        images, numbers = data["images"].reshape(-1, 64).astype(np.float64), data["labels"]
    pooled = np.hstack([images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16), images])
    tasks = [split(pooled, (numbers == k).astype(int), slice(0, 16), 150, rng) for k in range(10)]
    yield "digits", lambda repeat: (tasks[repeat % 10][0][:, 16:], *tasks[repeat % 10][1:])
    lines = stdlib_lines.standard_library(fraction=0.05)
    text = np.array([features(line.text, line.indent) for line in lines])
    prose = np.array([line.is_prose for line in lines]).astype(int)
    whole = split(text, prose, slice(0, 3), 500, rng)
    yield "lines", lambda _: whole


def features(text: str, indent: int) -> list[float]:
    n = max(len(text), 1)
    kinds = (str.isalpha, str.isspace, str.isupper, str.isdigit, lambda c: c in "()[]{}", lambda c: c in "=._:,'\"")
    shares = [sum(map(kind, text)) / n for kind in kinds]
    return [*shares[:2], math.log(n), *shares[2:], float(indent)]


def resample(inputs: Floats, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the calibration rows, drawn evenly, and the rows of a window in which one input is shifted."""
    spread = inputs.std(axis=0)
    column = rng.choice(np.flatnonzero(spread > 0))
    z = np.clip((inputs[:, column] - inputs[:, column].mean()) / spread[column], -4, 4)
    tilt = np.exp(rng.choice(SHIFTS) * rng.choice([-1, 1]) * z)
    old = rng.integers(0, len(inputs), CALIBRATION)
    return old, rng.choice(len(inputs), WINDOW, p=tilt / tilt.sum())


def simulate(population: Population, rng: np.random.Generator) -> tuple[float, ...]:
    """Return the effective size, the error of the estimate, and which intervals hold or miss the realized accuracy."""
    inputs, labels, probabilities = population
    old, new = resample(inputs, rng)
    right = ((probabilities > 0.5) == labels).astype(float)
    score = logit(np.clip(np.maximum(probabilities, 1 - probabilities), 0.5, 1 - 1e-9))[:, None]
    both = np.hstack([inputs, score])
    found = shifted_mean(right[old], score[old], both[old], score[new], both[new], is_proportion=True)
    bounds = found.bounds(low_level=0.975, high_level=0.975)
    gate = found.bounds(low_level=0.95, high_level=0.999)
    realized = float(right[new].mean())
    plain = 1.96 * math.sqrt(max(found.unweighted * (1 - found.unweighted), 1e-9) / WINDOW)
    flipped = float(np.where(rng.random(WINDOW) < 0.1, 1 - right[new], right[new]).mean())
    return (
        found.effective_size if found.imbalance <= MAX_IMBALANCE else 0.0,
        found.estimate - realized,
        bounds.low <= realized <= bounds.high,
        abs(found.unweighted - realized) <= plain,
        bounds.low <= flipped <= bounds.high,
        gate.low > realized,
        gate.high < realized,
    )


def change_of_concept(repeats: int, rng: np.random.Generator) -> None:
    """Print how often the gate without labels passes, and 200 audited labels fail, after a change of concept."""
    passed = failed = 0
    for repeat in progress(range(repeats), "concept"):
        x, new = rng.normal(size=(5_000, 4)), rng.normal(size=(5_000, 4))
        old_scores, scores = expit(2.5 * x[:, 0] + 2 * x[:, 1]), expit(2.5 * new[:, 0] + 2 * new[:, 1])
        old_labels = (rng.random(5_000) < old_scores).astype(int)
        labels = (rng.random(5_000) < expit(2.5 * new[:, 0] - 2 * new[:, 1])).astype(int)
        blind = ms.measure_estimated_accuracy(
            scores, old_scores, old_labels, inputs=new, calibration_inputs=x, min_value=0.8
        )
        passed += blind.verdict is Verdict.PASS
        audit = ms.planning.audit_rows(scores, 200, seed=repeat)
        found = ms.measure_audited_accuracy(scores, audit, labels[audit.rows], min_value=0.8)
        failed += found.verdict is Verdict.FAIL
    print(f"change of concept, {repeats} windows: without labels PASS {passed}, 200 audited labels FAIL {failed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1000, help="data sets of each kind (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulations (default 0)")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    print(
        f"{arguments.repeats:,} resampled data sets each, seed {arguments.seed}; {CALIBRATION:,} calibration rows, "
        f"{WINDOW:,} in the window; percent"
    )
    print(
        f"{'data':<10}{'accuracy':>9}{'covers':>9}{'plain':>8}"
        f"{'mean error':>12}{'inconclusive':>14}{'hidden shift':>14}{'passes':>8}{'fails':>8}"
    )
    for name, population in populations(rng):
        found = [simulate(population(repeat), rng) for repeat in progress(range(arguments.repeats), name)]
        used = np.array([each for each in found if each[0] >= SMALLEST_SIZE], dtype=float)
        _, labels, probabilities = population(0)
        accuracy = float(((probabilities > 0.5) == labels).mean())
        figures = 100 * used[:, 1:].mean(axis=0)
        print(
            f"{name:<10}{100 * accuracy:9.1f}{figures[1]:9.1f}{figures[2]:8.1f}{figures[0]:12.2f}"
            f"{100 - 100 * len(used) / len(found):14.1f}{figures[3]:14.1f}{figures[4]:8.1f}{figures[5]:8.2f}",
            flush=True,
        )
    change_of_concept(min(arguments.repeats, 100), rng)


if __name__ == "__main__":
    main()
