"""Error rates of a runtime upgrade: `python -m benchmarks.runtime_upgrade --interpreter .venv-runtime/bin/python`.

Every trial starts two new processes and compares them with `measure_slowdown`; their calls are timed in them. "Equal"
trials compare a model with itself, on this Python's onnxruntime and on the other's in turn, at a margin of 10 %.
"Slower" trials compare it with one of more layers, 15 % slower, at a margin of 5 %. The last line is the other version
against this one on the same model. The default of 300 and 100 trials takes about six minutes on a quiet host.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

import pytest_modelserve as ms
from benchmarks.latency_gates import LAYERS, X, stack
from pytest_modelserve.progress import progress

SLOWER = 47  # layers, which take about 15 % more time


def compare(candidate: ms.Predictor, reference: ms.Predictor, max_ratio: float, seed: int) -> ms.Evidence:
    with candidate, reference:
        return ms.measure_slowdown(candidate, reference, X, max_ratio=max_ratio, seed=seed)


def report(title: str, trials: int, trial: Callable[[int], ms.Evidence], goal: str, verdict: ms.Verdict) -> None:
    began = time.perf_counter()
    found = [trial(number) for number in progress(range(trials), title)]
    counts = Counter(each.verdict for each in found)
    interval = binomtest(counts[verdict], trials).proportion_ci(0.95)
    ratios = [each.value for each in found]
    print(f"{title}, {trials} trials in {time.perf_counter() - began:.0f} s")
    print("  " + ", ".join(f"{each} {counts[each]}" for each in ms.Verdict))
    print(f"  {verdict} {100 * interval.low:.1f} to {100 * interval.high:.1f} % (95 %); goal: {goal}")
    low, middle, high = np.quantile(ratios, [0.05, 0.5, 0.95])
    median_s = float(np.median([each.duration_s for each in found]))
    print(f"  ratio of times {middle:.3f}, 5 to 95 %: {low:.3f} to {high:.3f}; median time of a gate {median_s:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interpreter", required=True, help="the Python of another environment with onnxruntime")
    parser.add_argument("--equal", type=int, default=300, help="trials of a model against itself (default: 300)")
    parser.add_argument("--slower", type=int, default=100, help="trials of a slower model (default: 100)")
    parser.add_argument(
        "--versions", type=int, default=10, help="trials of one version against the other (default: 10)"
    )
    arguments = parser.parse_args()
    interpreters = (sys.executable, arguments.interpreter)
    with tempfile.TemporaryDirectory() as folder:
        model, slower = stack(Path(folder), LAYERS), stack(Path(folder), SLOWER)
        for each in interpreters:
            with ms.serve(model, interpreter=each) as predictor:
                print(predictor.describe())

        def served(artifact: ms.Artifact, number: int) -> ms.Predictor:
            return ms.serve(artifact, interpreter=interpreters[number % 2])

        report(
            "equal, margin 10 %",
            arguments.equal,
            lambda seed: compare(served(model, seed), served(model, seed), 1.10, seed),
            "no FAIL",
            ms.Verdict.FAIL,
        )
        report(
            "15 % slower, margin 5 %",
            arguments.slower,
            lambda seed: compare(served(slower, seed), served(model, seed), 1.05, seed),
            "at least 99 % FAIL",
            ms.Verdict.FAIL,
        )
        report(
            "the other version against this one, margin 10 %",
            arguments.versions,
            lambda seed: compare(served(model, 1), served(model, 0), 1.10, seed),
            "none",
            ms.Verdict.PASS,
        )


if __name__ == "__main__":
    main()
