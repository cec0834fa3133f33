"""Benchmark: time and memory of the output gates relative to `np.testing.assert_allclose`.

`python benchmarks/output_parity.py`: 1,000,000 × 10 float32 outputs, equal up to rounding, compared in one process in
rounds of shuffled order. The gates get two functions, whose outputs are copied, because no two calls may share memory:
one batch of all rows, which they predict and compare in parts; the same as one call, `[rows]`, which holds the outputs
of both models at once; and a stream of batches. Each round gives one ratio of two times; the figure is their median.
Peak memory is what a call allocates, as a multiple of one of the two arrays.
"""

from __future__ import annotations

import random
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

import pytest_modelserve as ms
from pytest_modelserve.metrics import compare_outputs

ROWS, COLUMNS = 1_000_000, 10
BATCH = 16_384
ROUNDS = 15
RTOL, ATOL = 1e-4, 1e-6
GOAL_TIME, GOAL_MEMORY = 1.0, 0.2

Call = Callable[[], object]


def seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_bytes(call: Call) -> int:
    """Return the most memory that a call allocated at once."""
    tracemalloc.start()
    call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def interleaved(calls: dict[str, Call]) -> dict[str, list[float]]:
    """Return the time of each call in each round; the order is shuffled for every round."""
    order = random.Random(0)
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # warm-up
    for _ in range(ROUNDS):
        for name in order.sample(list(calls), len(calls)):
            rounds[name].append(seconds(calls[name]))
    return rounds


def main() -> None:
    reference = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32)
    candidate = reference * np.float32(1 + 2**-22)
    rows = np.arange(ROWS)
    # A slice is a view, so that a call pays for the one copy that no output can do without.
    served = {
        side: ms.serve(lambda x, y=y: y[x[0] : x[-1] + 1], name=side)
        for side, y in (("a", candidate), ("b", reference))
    }

    def batches() -> object:
        return (rows[start : start + BATCH] for start in range(0, ROWS, BATCH))

    def parity(inputs: object) -> object:
        return ms.assert_output_parity(served["a"], served["b"], inputs, rtol=RTOL, atol=ATOL)

    def fidelity(inputs: object) -> object:
        return ms.assert_output_fidelity(served["a"], served["b"], inputs, min_sqnr_db=40, min_cosine=0.99)

    labels = reference.argmax(axis=1)
    calls: dict[str, Call] = {
        "np.testing.assert_allclose": lambda: np.testing.assert_allclose(candidate, reference, rtol=RTOL, atol=ATOL),
        "compare_outputs": lambda: compare_outputs({"y": candidate}, {"y": reference}, rtol=RTOL, atol=ATOL),
        "assert_output_parity": lambda: parity(rows),
        "assert_output_parity, one call": lambda: parity([rows]),
        "assert_output_parity, streamed": lambda: parity(batches()),
        "assert_output_fidelity": lambda: fidelity(rows),
        "assert_output_fidelity, one call": lambda: fidelity([rows]),
        "assert_accuracy_parity": lambda: ms.assert_accuracy_parity(
            served["a"], served["b"], rows, labels, max_drop=0.01
        ),
    }
    times = interleaved(calls)
    bare_name = "np.testing.assert_allclose"
    print(f"{ROWS:,} × {COLUMNS} float32, {ROUNDS} rounds; numpy {np.__version__}")
    print(f"{bare_name}: {statistics.median(times[bare_name]) * 1e3:.0f} ms")
    for name, call in calls.items():
        ratios = [ours / bare for ours, bare in zip(times[name], times[bare_name], strict=True)]
        memory = peak_bytes(call) / reference.nbytes
        print(f"  {name:34} time × {statistics.median(ratios):.2f}   peak memory {memory:.2f} arrays")
    print(f"goals: parity in time ≤ × {GOAL_TIME:.2f}; peak memory of a gate on one batch ≤ {GOAL_MEMORY:.2f} arrays")


if __name__ == "__main__":
    main()
