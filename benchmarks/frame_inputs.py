"""Time of a data frame's way into a model relative to `to_numpy`: `python benchmarks/frame_inputs.py`.

Frames of 100,000 × 50 numbers become the one input of a model. Both calls run in the same process, in rounds of
shuffled order; each round gives one ratio, and the figure is their median. `to_numpy` of a pandas frame in one block is
a view, which takes microseconds: there the added time counts. Where the model takes float32 and the frame holds
float64, the bare call also casts, and ours checks that no value changes. Goal: at most × 1.20, or 0.1 ms, where nothing
is cast.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import polars as pl

from pytest_modelserve.artifacts import Signature, TensorSpec
from pytest_modelserve.serving.inputs import checked_feed

ROWS, COLUMNS, ROUNDS = 100_000, 50, 30
NAMES = [f"c{index}" for index in range(COLUMNS)]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    wide = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32).astype(np.float64)
    mixed = {name: np.arange(ROWS) if index % 2 else wide[:, index] for index, name in enumerate(NAMES)}
    order = random.Random(0)
    print(f"frames of {ROWS:,} × {COLUMNS}, {ROUNDS} rounds; pandas {pd.__version__}, polars {pl.__version__}")
    for library, frame in (
        ("pandas, one block", pd.DataFrame(wide, columns=NAMES)),
        ("pandas, half integers", pd.DataFrame(mixed)),
        ("polars", pl.DataFrame({name: wide[:, index] for index, name in enumerate(NAMES)})),
    ):
        for dtype in ("float64", "float32"):
            signature = Signature((TensorSpec("x", dtype, (None, COLUMNS)),), ())
            calls: dict[str, Callable[[], object]] = {
                "bare": lambda frame=frame, dtype=dtype: frame.to_numpy().astype(dtype, copy=False),
                "ours": lambda frame=frame, signature=signature: checked_feed(frame, signature),
            }
            times: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(ROUNDS + 1):
                for name in order.sample(list(calls), 2):
                    times[name].append(seconds(calls[name]))
            rounds = list(zip(times["ours"][1:], times["bare"][1:], strict=True))  # the first is the warm-up
            ratio = statistics.median(ours / bare for ours, bare in rounds)
            added = 1000 * statistics.median(ours - bare for ours, bare in rounds)
            bare = 1000 * statistics.median(times["bare"])
            cast = "with a cast" if dtype == "float32" else "as it is"
            print(f"  {library:22} {cast:12} bare {bare:6.3f} ms  ours × {ratio:.2f}  added {added:.3f} ms")


if __name__ == "__main__":
    main()
