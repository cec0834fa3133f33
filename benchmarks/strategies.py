"""Counterexample search compared with hypothesis' own arrays: `python benchmarks/strategies.py`.

Three shapes of a row: 10 features, 64 × 10, and an image of 3 × 224 × 224. Candidates per second are rows generated and
evaluated by a model in the blocks of a search. The model sums each row's features, so that generation dominates. In the
same run, `hypothesis.extra.numpy.arrays` generates rows of the same shape, range and dtype under `@given`, and the same
model evaluates them one by one.

The planted fault fires if one coordinate is in the upper tenth of its range and another in the lower tenth. For the
image it is the upper and lower quarter, because a random image is in both tenths with a probability of 1 %. No
base row has both. The fault fires below the maximum and above the minimum only, so that no edge case fires it in one
step. It is searched for with ten seeds: seconds until it is found and minimized, and the remaining features, at most
twice the two that it needs. Hypothesis searches for the same fault with its own arrays on the two smaller shapes, once,
within 1,000 examples.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import pytest_modelserve as ms
from pytest_modelserve.robustness.mutations import SearchSpace, block_size, mutate

SHAPES = ((10,), (64, 10), (3, 224, 224))
GOALS = {(10,): 20_000, (64, 10): 20_000, (3, 224, 224): 1_000}
SECONDS = 2.0
SEEDS = 10
GOAL_SECONDS, GOAL_FEATURES = 1.0, 4

Rows = NDArray[Any]


def base_rows(shape: tuple[int, ...]) -> Rows:
    """Return eight rows in [0, 1] of which none fires the planted fault."""
    rows = np.random.default_rng(0).random((8, *shape), np.float32)
    flat = rows.reshape(8, -1)
    first, second = fault_coordinates(shape)
    flat[:, first] = np.linspace(0, 0.7, 8)
    flat[:, second] = np.linspace(0.3, 1, 8)
    flat[7, first], flat[6, second] = 1.0, 0.0
    return rows


def fault_coordinates(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the two coordinates of the planted fault."""
    size = int(np.prod(shape))
    return size // 5, size - size // 4


def fires(rows: Rows, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    first, second = (rows.reshape(len(rows), -1)[:, index] for index in fault_coordinates(shape))
    fraction = 0.25 if len(shape) == 3 else 0.1
    return np.asarray((first > 1 - fraction) & (first < 1) & (second < fraction) & (second > 0))


def model(rows: Rows) -> Rows:
    return np.asarray(rows.reshape(len(rows), -1).sum(axis=1))


def ours_per_second(shape: tuple[int, ...]) -> float:
    """Return the candidates per second, generated and evaluated."""
    space = SearchSpace.from_rows({"x": base_rows(shape)}, ("like", "edges"))
    rng = np.random.default_rng(0)
    step = block_size(space)
    mutate(space, rng, step)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        model(mutate(space, rng, step)[0]["x"])
        count += step
    return count / (time.perf_counter() - start)


def hypothesis_per_second(shape: tuple[int, ...]) -> float:
    """Return the examples per second of hypothesis' own arrays."""
    count = 0

    def one(row: Rows) -> None:
        nonlocal count
        count += 1
        model(row[np.newaxis])

    start = time.perf_counter()
    _given(shape, 40 if len(shape) == 3 else 300, (Phase.generate,))(one)()
    return count / (time.perf_counter() - start)


def _given(shape: tuple[int, ...], examples: int, phases: tuple[Phase, ...]) -> Callable[[Any], Any]:
    elements = {"min_value": 0, "max_value": 1}
    quiet = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=phases,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )

    def decorate(test: Callable[[Rows], None]) -> Any:
        return quiet(given(hnp.arrays(np.float32, shape, elements=elements))(test))

    return decorate


def ours_to_find(shape: tuple[int, ...]) -> tuple[list[float], list[int]]:
    """Return seconds and remaining features for each seed, an infinite time if nothing was found."""
    relation = ms.relations.relation("planted", lambda predictor, rows, _: predictor.predict(rows)["output"])
    predictor = ms.serve(lambda rows: fires(rows, shape))
    seconds, left = [], []
    for seed in range(SEEDS):
        start = time.perf_counter()
        found = ms.measure_relation(
            predictor,
            base_rows(shape),
            relation,
            seed=seed,
            candidates=20_000 if len(shape) < 3 else 2_000,
            save_to=None,
        )
        hit = found.verdict is ms.Verdict.FAIL
        seconds.append(time.perf_counter() - start if hit else float("inf"))
        left.append(found.details["features_left"] if hit else 0)
    return seconds, left


def hypothesis_to_find(shape: tuple[int, ...]) -> str:
    """Return the time that hypothesis' own arrays take to find the fault, and the elements that are not the fill."""
    last: list[Rows] = []

    def one(row: Rows) -> None:
        if fires(row[np.newaxis], shape)[0]:
            last.append(row)
            raise AssertionError

    start = time.perf_counter()
    try:
        _given(shape, 1000, (Phase.generate, Phase.shrink))(one)()
    except AssertionError:
        values, counts = np.unique(last[-1], return_counts=True)
        changed = last[-1].size - counts.max() if len(values) > 1 else 0
        return f"{time.perf_counter() - start:.1f} s, {changed} elements not the fill"
    return f"not found in 1,000 examples, {time.perf_counter() - start:.1f} s"


def main() -> None:
    print("| a row | candidates/s | goal | hypothesis' arrays/s | factor |\n|---|---|---|---|---|")
    for shape in SHAPES:
        ours, theirs = ours_per_second(shape), hypothesis_per_second(shape)
        name = "×".join(map(str, shape))
        print(f"| {name} | {ours:,.0f} | ≥ {GOALS[shape]:,} | {theirs:,.0f} | {ours / theirs:,.0f} |", flush=True)
    print("\n| a planted fault of two features in | median s | worst s | goal | features left | goal | hypothesis |")
    print("|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        seconds, left = ours_to_find(shape)
        hypothesis_result = hypothesis_to_find(shape) if len(shape) < 3 else "not run"
        print(
            f"| {int(np.prod(shape)):,} | {statistics.median(seconds):.3f} | {max(seconds):.3f} | ≤ {GOAL_SECONDS:g} | "
            f"{min(left)} to {max(left)} | ≤ {GOAL_FEATURES} | {hypothesis_result} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
