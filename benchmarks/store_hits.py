"""Time of a store hit relative to an export.

    python -m benchmarks.store_hits [--rounds 3]

Each round exports one module with an empty store, and exports an equal new module with the same pipeline. A first
export, which loads torch's exporter, is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import pytest_modelserve as ms
from fixtures.families import FAMILIES, Family
from fixtures.recipe_matrix import exported

NAMES = ("mlp", "residual_cnn", "transformer_encoder", "gru")


def seconds(pipeline: ms.Pipeline, family: Family) -> float:
    """Return the seconds of an export."""
    began = time.perf_counter()
    exported(pipeline, family)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="exports of each family (default: 3)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as cache, ms.Pipeline(cache) as pipeline:
        exported(pipeline, FAMILIES["mlp"])
    print(f"a store hit compared with an export, medians of {rounds} rounds")
    for name in NAMES:
        taken = []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as cache, ms.Pipeline(cache) as pipeline:
                taken.append((seconds(pipeline, FAMILIES[name]), seconds(pipeline, FAMILIES[name])))
        again, hit = (statistics.median(column) for column in zip(*taken, strict=True))
        print(f"  {name:20} export {again:5.2f} s   hit {1000 * hit:5.1f} ms   × {hit / again:.4f}")


if __name__ == "__main__":
    main()
