"""Monitoring over time compared with NannyML, Evidently and uncertainty-calibration, in one run.

    python -m benchmarks.results_peers [--nannyml PYTHON] [--evidently PYTHON] [--calibration PYTHON]
        [--repeats 100] [--lives 20] [--only PART ...] [--seed 0]

Each PYTHON has one tool; without it, the tool is left out. All tools get the same rows.

1. Estimated accuracy: the data sets of `benchmarks.estimated_accuracy`. Mean absolute error, coverage and mean width
   are of the resampled data sets that ours does not call INCONCLUSIVE. NannyML's band is the one that it draws, of
   three sampling errors; "95 %" has 1.96. Last, the mean absolute errors of both where ours is INCONCLUSIVE.
2. Calibration error of 2,000 rows at several temperatures: ours, and the debiased one of uncertainty-calibration, by
   the authors of the estimator (Kumar, Liang and Ma 2019). Bins of the two may differ by a row.
3. Lives of 90 nights of 1,000 rows and 20 columns, with 10,000 reference rows: those with any alarm though nothing
   changed, and nights until the alarm if one column is shifted by 0.1 standard deviations from the first night on. For
   "any column", nights until the alarm of that column. NannyML's chunk is a night.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

import pytest_modelserve as ms
from benchmarks.estimated_accuracy import Population, populations, resample
from benchmarks.results_peer import NAMES, ask, life
from pytest_modelserve.progress import progress

Floats = NDArray[np.float64]
SHIFT, TEMPERATURES, SCORED = 0.1, (1.0, 1.2, 1.5, 2.0), 2_000


def estimated(name: str, samples: list[Population], nannyml: Path | None, rng: np.random.Generator) -> str:
    """Return the row of one data set."""
    ours, realized = [], []
    asked: dict[str, list[Any]] = {"old": [], "labels": [], "new": []}
    for inputs, labels, scores in progress(samples, name):
        old, new = resample(inputs, rng)
        evidence = ms.measure_estimated_accuracy(
            scores[new], scores[old], labels[old], inputs=inputs[new], calibration_inputs=inputs[old], min_value=0.5,
            confidence=0.975, alpha=0.025,
        )  # fmt: skip
        interval = evidence.quantities[0].interval
        assert interval is not None
        ours.append((evidence.quantities[0].value, interval.low, interval.high))
        realized.append(((scores[new] > 0.5) == labels[new]).mean())
        for key, values in {"old": scores[old], "labels": labels[old], "new": scores[new]}.items():
            asked[key].append(values)
    truth, (value, low, high) = np.array(realized), np.array(ours).T
    used = high - low < 1  # an INCONCLUSIVE estimate has the interval from 0 to 1
    row = f"{name:<8}{used.sum():>5} of {used.size:<5}{figures(value - truth, low, high, truth, used)}"
    found = ask(nannyml, "nannyml_estimates", **asked)
    if found is None:
        return row
    point, error, band_low, band_high = found.T
    row += figures(point - truth, band_low, band_high, truth, used)
    row += f"{100 * (abs(point - truth) <= 1.96 * error)[used].mean():8.0f}"
    return row + "".join(f"{100 * abs(each - truth)[~used].mean():9.2f}" for each in (value, point) if (~used).any())


def figures(errors: Floats, low: Floats, high: Floats, truth: Floats, used: NDArray[np.bool_]) -> str:
    covers, width = ((low <= truth) & (truth <= high))[used].mean(), (high - low)[used].mean()
    return f"{100 * abs(errors[used]).mean():9.2f}{100 * covers:8.0f}{100 * width:8.1f}"


def our_night(seed: int, shift: float, max_shift: float) -> float:
    """Return the night, from 1 on, in which a monitor of one life alarms; infinity if none."""
    reference, nights = life(seed, shift)
    profile = ms.reference_profile(dict(zip(NAMES, reference.T, strict=True)))
    with tempfile.TemporaryDirectory() as folder:
        columns = ms.streams.columns(profile, max_shift=max_shift)
        monitor = ms.Monitor("life", [columns], state=Path(folder, "state"))
        for night, rows in enumerate(nights):
            found = monitor.check(night, data=dict(zip(NAMES, rows.T, strict=True)))
            if found.verdict is ms.Verdict.FAIL:
                return night + 1.0
    return np.inf


def first(alarms: Any) -> float:
    return float(np.argmax(alarms) + 1) if np.any(alarms) else np.inf


def lives(count: int, seed: int, nannyml: Path | None, evidently: Path | None) -> None:
    """Print the alarms of all tools."""
    quiet: dict[str, list[float]] = {}
    shifted: dict[str, list[float]] = {}
    for each in progress(range(seed, seed + count), "lives"):
        for shift, nights in ((0.0, quiet), (SHIFT, shifted)):
            for tolerated in (0.0, 0.03):
                name = f"ours, {tolerated:g} sd tolerated"
                nights.setdefault(name, []).append(our_night(each, shift, tolerated))
            for tool, python in (("nannyml", nannyml), ("evidently", evidently)):
                found = ask(python, f"{tool}_alerts", seed=each, shift=shift)
                if found is None:
                    continue
                columns = found > 0
                moved = columns[:, 0] if shift else columns.any(axis=1)
                nights.setdefault(f"{tool}, any column", []).append(first(moved))
                nights.setdefault(f"{tool}, half the columns", []).append(first(columns.mean(axis=1) >= 0.5))
    print(f"\n{'90 nights x 20 columns':<28}{'quiet lives that alarm':>24}{'nights to +0.1 sd':>19}{'found':>11}")
    for name, until in quiet.items():
        delays = np.array(shifted[name])
        alarms, median = int(np.isfinite(until).sum()), float(np.quantile(delays, 0.5, method="higher"))
        shown = "never" if median == np.inf else f"{median:.0f}"
        print(f"{name:<28}{f'{alarms} of {len(until)}':>24}{shown:>19}{np.isfinite(delays).sum():>6} of {len(delays)}")


def calibrated(repeats: int, python: Path | None, rng: np.random.Generator) -> None:
    """Print the calibration errors of both."""
    print(f"\n{'temperature':<12}{'ours':>8}{'theirs':>8}{'largest difference':>20}   percent, {repeats} samples each")
    for temperature in TEMPERATURES:
        logits = rng.normal(0, 1.5, (repeats, SCORED))
        scores, labels = expit(logits), (rng.random(logits.shape) < expit(logits / temperature)).astype(int)
        pairs = zip(scores, labels, strict=True)
        ours = np.array([ms.measure_calibration(s, y, max_error=0.05).quantities[0].value for s, y in pairs])
        found = ask(python, "calibration_errors", scores=scores, labels=labels)
        theirs = "" if found is None else f"{100 * found.mean():8.2f}{100 * abs(ours - found).max():20.2f}"
        print(f"{temperature:<12g}{100 * ours.mean():8.2f}{theirs}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for tool in ("nannyml", "evidently", "calibration"):
        parser.add_argument(f"--{tool}", type=Path, metavar="PYTHON", help=f"a Python with {tool} (default: none)")
    parser.add_argument("--repeats", type=int, default=100, help="resampled data sets of each kind (default 100)")
    parser.add_argument("--lives", type=int, default=20, help="lives of 90 nights (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulations (default 0)")
    parts = ["estimated", "calibration", "lives"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="parts to run (default: all)")
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    if "estimated" in given.only:
        print(f"percent{'':25}ours: error, covers, width   CBPE: error, covers, width, 95 %   INCONCLUSIVE: errors")
        for name, population in populations(rng):
            samples = [population(repeat) for repeat in range(given.repeats)]
            print(estimated(name, samples, given.nannyml, rng), flush=True)
    if "calibration" in given.only:
        calibrated(given.repeats, given.calibration, rng)
    if "lives" in given.only:
        lives(given.lives, given.seed, given.nannyml, given.evidently)


if __name__ == "__main__":
    main()
