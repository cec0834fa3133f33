"""Time of `predict` relative to a bare `session.run`: `python benchmarks/predict_overhead.py`.

Both run the same model at batch 1 in the same process, in rounds of shuffled order, so that other load affects both
equally. Each round gives one ratio of two medians; the figure is their median, with quartiles. The bare call is the
fastest form that onnxruntime documents: the same session, a named output, and a feed built before.
"""

from __future__ import annotations

import gc
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from pytest_modelserve.serving import OnnxPredictor

ROUNDS = 40
CALLS = 400
# Widths and goal; bare runs take about 5 and 20 µs.
MODELS = {"tiny MLP": ((10, 50, 2), 1.15), "base MLP": ((784, 256, 256, 10), 1.05)}

Call = Callable[[], object]


def mlp(widths: tuple[int, ...]) -> onnx.ModelProto:
    """Return a ReLU network with random weights and dense layers of `widths`, from `x` to `y`."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for layer, (wide, narrow) in enumerate(itertools.pairwise(widths)):
        weight = rng.normal(scale=wide**-0.5, size=(wide, narrow)).astype(np.float32)
        weights += [
            numpy_helper.from_array(weight, f"w{layer}"),
            numpy_helper.from_array(np.zeros(narrow, np.float32), f"b{layer}"),
        ]
        last = layer == len(widths) - 2
        nodes.append(helper.make_node("Gemm", [value, f"w{layer}", f"b{layer}"], ["y" if last else f"h{layer}"]))
        if not last:
            value = f"r{layer}"
            nodes.append(helper.make_node("Relu", [f"h{layer}"], [value]))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", widths[0]])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", widths[-1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    return model


def median_ns(call: Call) -> float:
    """Return the median duration of `CALLS` calls in nanoseconds."""
    clock = time.perf_counter_ns
    durations = []
    for _ in range(CALLS):
        start = clock()
        call()
        durations.append(clock() - start)
    return statistics.median(durations)


def interleaved(calls: dict[str, Call]) -> dict[str, list[float]]:
    """Return the median duration of each call in each round; the order is shuffled for every round."""
    order = random.Random(0)
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        median_ns(call)  # warm-up
    for _ in range(ROUNDS):
        for name in order.sample(list(calls), len(calls)):
            rounds[name].append(median_ns(calls[name]))
    return rounds


def measure(name: str, widths: tuple[int, ...], goal: float, folder: Path) -> None:
    """Print the ratios for one model."""
    path = folder / f"{name.partition(' ')[0]}.onnx"
    onnx.save(mlp(widths), path)
    predictor = OnnxPredictor(path)
    run = predictor._run  # the method of the same session: two sessions differ by the memory layout of their weights
    x = np.ones((1, widths[0]), np.float32)
    feed = {"x": x}
    rounds = interleaved(
        {
            "bare": lambda: run(["y"], feed),
            "array": lambda: predictor.predict(x),
            "mapping": lambda: predictor.predict(feed),
        }
    )
    bare_us = statistics.median(rounds["bare"]) / 1000
    print(f"{name} {'-'.join(map(str, widths))}, bare session.run {bare_us:.1f} µs")
    for form in ("array", "mapping"):
        ratios = [ours / bare for ours, bare in zip(rounds[form], rounds["bare"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"  predict({form:7}) × {middle:.3f}  quartiles [{low:.3f}, {high:.3f}]  goal ≤ × {goal:.2f}")


def main() -> None:
    print(f"onnxruntime {onnxruntime.__version__}, {ROUNDS} rounds of {CALLS} calls, batch 1, one thread")
    gc.disable()
    with tempfile.TemporaryDirectory() as folder:
        for name, (widths, goal) in MODELS.items():
            measure(name, widths, goal, Path(folder))


if __name__ == "__main__":
    main()
