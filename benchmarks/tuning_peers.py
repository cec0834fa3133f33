"""Quantization to a budget by `ms.tune` and by other tools: time, size, and how often the result is truly too bad.

    python -m benchmarks.tuning_peers [--samples 10] [--rows 2000] [--peer nncf=PYTHON]

One network of six layers, of which 8 bits damage some more than others, and an unlimited number of rows: every tool
gets the same samples of labeled rows, and its result is judged on 200,000 others. The budget is a drop of one point.
*too bad*: the share of samples after which the true drop exceeds it. *bytes*: those of the weights over the original's;
1 where nothing is shipped. Each peer runs with its defaults in an environment of its own, a Python that has it. A peer
that is not named is skipped.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import pytest_modelserve as ms
from pytest_modelserve.artifacts import Store, open_artifact
from pytest_modelserve.progress import progress
from pytest_modelserve.tuning import tune

WIDTH, CLASSES, LAYERS, MAX_DROP, TRUE_ROWS = 64, 2, 6, 0.01, 200_000
OUTLIERS = (1.0, 6.0, 1.0, 3.0, 2.0, 1.0)
"""The largest weight of a layer: the steps of 8 bits grow with it."""
Rows = dict[str, NDArray[Any]]


def network(path: Path) -> ms.Artifact:
    """Save the network; the row of an outlier is multiplied by a value that is always 0."""
    rng = np.random.default_rng(0)
    nodes, stored, value = [], [], "x"
    for layer, largest in enumerate(OUTLIERS):
        last = layer == LAYERS - 1
        weight = rng.standard_normal((WIDTH, CLASSES if last else WIDTH)).astype(np.float32) / np.float32(
            np.sqrt(WIDTH)
        )
        if not last:
            weight[:, 0] = 0
        if layer:
            weight[0] = largest
        stored.append(numpy_helper.from_array(weight, f"w{layer}"))
        output = "y" if last else f"h{layer}"
        nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [output], name=f"layer{layer}"))
        if not last:
            nodes.append(helper.make_node("Tanh", [output], [f"t{layer}"], name=f"tanh{layer}"))
            value = f"t{layer}"
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", width])
        for name, width in (("x", WIDTH), ("y", CLASSES))
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return open_artifact(path)


def labeled(original: ms.Artifact, n: int, seed: int) -> Rows:
    """Return rows with the original's labels, of which it has 95 % right."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((n, WIDTH)).astype(np.float32)
    with ms.serve(original) as predictor:
        labels = predictor.predict(inputs)["y"].argmax(axis=1)
    return {"inputs": inputs, "labels": np.where(rng.random(n) < 0.05, (labels + 1) % CLASSES, labels)}


def accuracy(model: Any, rows: Rows) -> float:
    with ms.serve(model) as predictor:
        (outputs,) = predictor.predict(rows["inputs"]).values()
    return float((outputs.argmax(axis=1) == rows["labels"]).mean())


def tuned(original: ms.Artifact, rows: Rows, folder: Path) -> Path | None:
    with ms.serve(original) as predictor:
        outputs = predictor.predict(rows["inputs"])["y"]
    found = tune(
        original,
        rows["inputs"][:1],
        gates=lambda candidate: ms.assert_accuracy_parity(
            candidate, outputs, rows["inputs"], rows["labels"], max_drop=MAX_DROP
        ),
        recipe="int8-static",
        objective="size",
        calibration=rows["calibration"],
        store=Store(folder / "cache"),
    )
    return None if found.chosen is None else found.chosen.path


def run_peer(name: str, python: str) -> Callable[[ms.Artifact, Rows, Path], Path | None]:
    """Return a function that runs a peer in its interpreter."""

    def run(original: ms.Artifact, rows: Rows, folder: Path) -> Path | None:
        (folder / "model.onnx").write_bytes(original.path.read_bytes())
        np.savez(folder / "rows.npz", max_drop=MAX_DROP, **rows)  # type: ignore[arg-type]
        script = Path(__file__).with_name("tuning_peer.py")
        subprocess.run([python, str(script), name, str(folder)], check=True, capture_output=True, text=True)
        written = folder / "quantized.onnx"
        return written if written.exists() else None

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="nncf=PYTHON")
    options = parser.parse_args()
    tools: dict[str, Callable[[ms.Artifact, Rows, Path], Path | None]] = {"tune": tuned}
    for peer in options.peer:
        name, _, python = peer.partition("=")
        tools[name] = run_peer(name, python)
    if "nncf" not in tools:
        print("nncf: skipped, no --peer nncf=PYTHON")
    with tempfile.TemporaryDirectory() as base:
        original = network(Path(base, "original.onnx"))
        truth = labeled(original, TRUE_ROWS, 1)
        before = accuracy(original, truth)
        calibration = np.random.default_rng(2).standard_normal((300, WIDTH)).astype(np.float32)
        print(f"{options.samples} samples of {options.rows:,} rows, budget {100 * MAX_DROP:g} point")
        print(f"{'tool':<8}{'too bad':>10}{'shipped':>10}{'true drop':>12}{'bytes':>8}{'seconds':>9}")
        for name, tool in tools.items():
            drops, sizes, took = [], [], []
            for sample in progress(range(options.samples), name, total=options.samples):
                folder = Path(base, name, str(sample))
                folder.mkdir(parents=True)
                rows = {**labeled(original, options.rows, 100 + sample), "calibration": calibration}
                began = time.perf_counter()
                path = tool(original, rows, folder)
                took.append(time.perf_counter() - began)
                if path is None:
                    sizes.append(1.0)
                    continue
                drops.append(before - accuracy(path, truth))
                sizes.append(open_artifact(path).initializer_bytes / original.initializer_bytes)
            bad = sum(drop > MAX_DROP for drop in drops) / options.samples
            drop = f"{100 * np.mean(drops):.2f} pt" if drops else "-"
            print(
                f"{name:<8}{100 * bad:>8.0f} %{len(drops):>10}{drop:>12}{np.mean(sizes):>8.2f}{np.median(took):>9.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
