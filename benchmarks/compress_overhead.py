"""Time of `compress` relative to the bare call of onnxruntime or onnxsim that a recipe wraps.

    python benchmarks/compress_overhead.py [--rounds 3] [--layers 12] [--recipe RECIPE ...] [--profile RECIPE]

The model is a Transformer encoder of BERT-base's sizes with random weights (85 million at 12 layers, 340 MB). Both
convert a file to a file, in rounds of shuffled order; three rounds take about four minutes. The bare call is the
shortest program that the library documents for the same result, without checks. `compress` also validates the outputs,
hashes, writes the lineage and stores the result. Goal: at most 1.5 times the bare call, if that takes a second or more.
The CPU time, of this process and its children, varies less on a busy machine.
"""

# ruff: noqa: D102 -- the methods of Graph are named after the part that they add
from __future__ import annotations

import argparse
import cProfile
import logging
import os
import pstats
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pytest_modelserve.artifacts import Artifact, Store, open_artifact
from pytest_modelserve.compression import compress
from pytest_modelserve.progress import progress

WIDTH, HEADS, INNER, STEPS, ROWS = 768, 12, 3072, 32, 8
GOAL = 1.5
Bare = Callable[[Path, Path, NDArray[np.float32]], None]


class Graph:
    """Builder of an ONNX graph: every method adds nodes that read `x`, and returns the name of their result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], f"node_{name}", **attributes))
        return name

    def stored(self, array: NDArray[np.float32] | NDArray[np.int64]) -> str:
        name = f"stored_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def dense(self, x: str, wide: int, narrow: int) -> str:
        weight = self._rng.standard_normal((wide, narrow), np.float32) * np.float32(wide**-0.5)
        product = self.add("MatMul", x, self.stored(weight))
        return self.add("Add", product, self.stored(np.zeros(narrow, np.float32)))

    def norm(self, x: str) -> str:
        scale, bias = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
        return self.add("LayerNormalization", x, self.stored(scale), self.stored(bias), axis=-1)

    def heads(self, x: str, order: tuple[int, ...]) -> str:
        shape = self.stored(np.array([0, 0, HEADS, WIDTH // HEADS]))
        return self.add("Transpose", self.add("Reshape", x, shape), perm=order)

    def attention(self, x: str) -> str:
        query, key, value = (self.dense(x, WIDTH, WIDTH) for _ in range(3))
        scores = self.add("MatMul", self.heads(query, (0, 2, 1, 3)), self.heads(key, (0, 2, 3, 1)))
        scale = self.stored(np.array((WIDTH // HEADS) ** -0.5, np.float32))
        weights = self.add("Softmax", self.add("Mul", scores, scale), axis=-1)
        mixed = self.add("Transpose", self.add("MatMul", weights, self.heads(value, (0, 2, 1, 3))), perm=(0, 2, 1, 3))
        joined = self.add("Reshape", mixed, self.stored(np.array([0, 0, WIDTH])))
        # Exporters leave an Identity in place of dropout; `simplify` removes it.
        return self.add("Identity", self.dense(joined, WIDTH, WIDTH))

    def layer(self, x: str) -> str:
        x = self.norm(self.add("Add", x, self.attention(x)))
        hidden = self.add("Gelu", self.dense(x, WIDTH, INNER))
        return self.norm(self.add("Add", x, self.dense(hidden, INNER, WIDTH)))


def encoder(layers: int) -> onnx.ModelProto:
    """Return a model of `layers` Transformer layers, from `x` (batch, time, 768) to `y` of the same shape."""
    graph, value = Graph(), "x"
    for _ in range(layers):
        value = graph.layer(value)
    graph.nodes[-1].output[0] = "y"
    shape = ("batch", "time", WIDTH)
    given, result = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y"))
    made = helper.make_graph(graph.nodes, "encoder", [given], [result], graph.weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def bare_simplify(source: Path, target: Path, _: NDArray[np.float32]) -> None:
    import onnxsim

    simplified, _agrees = onnxsim.simplify(onnx.load(source))
    onnx.save(simplified, target)


def bare_optimize(source: Path, target: Path, _: NDArray[np.float32]) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def bare_fp16(source: Path, target: Path, _: NDArray[np.float32]) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def bare_int8_dynamic(source: Path, target: Path, _: NDArray[np.float32]) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, target)


def bare_int8_static(source: Path, target: Path, rows: NDArray[np.float32]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[NDArray[np.float32]] = iter((rows,))

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"x": batch}

    quantize_static(source, target, Reader(), per_channel=True)


def bare_int4_weights(source: Path, target: Path, _: NDArray[np.float32]) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source), bits=4, block_size=32)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target))


BARE: dict[str, Bare] = {
    "simplify": bare_simplify,
    "optimize": bare_optimize,
    "fp16": bare_fp16,
    "int8-dynamic": bare_int8_dynamic,
    "int8-static": bare_int8_static,
    "int4-weights": bare_int4_weights,
}


def ours(artifact: Artifact, recipe: str, rows: NDArray[np.float32], folder: Path) -> None:
    calibration = rows if recipe == "int8-static" else None
    compress(artifact, recipe, calibration=calibration, store=Store(folder / "cache"))


Taken = tuple[float, float]
"""Wall time and CPU time in seconds."""


def seconds(call: Callable[[Path], None]) -> Taken:
    """Return the time of `call` in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        began, used = time.perf_counter(), os.times()
        call(Path(folder))
        now, ended = os.times(), time.perf_counter()
        return ended - began, sum(now[:4]) - sum(used[:4])


def measure(
    artifact: Artifact, rows: NDArray[np.float32], rounds: int, recipes: Sequence[str]
) -> dict[str, list[tuple[Taken, Taken]]]:
    """Return the times of the bare call and of `compress` in each round, by recipe."""
    order = random.Random(0)
    taken: dict[str, list[tuple[Taken, Taken]]] = {recipe: [] for recipe in recipes}
    for _ in progress(range(rounds), "rounds"):
        for recipe in order.sample(recipes, len(recipes)):
            pair = {
                "bare": lambda folder, bare=BARE[recipe]: bare(artifact.path, folder / "bare.onnx", rows),
                "ours": lambda folder, recipe=recipe: ours(artifact, recipe, rows, folder),
            }
            found = {name: seconds(pair[name]) for name in order.sample(list(pair), 2)}
            taken[recipe].append((found["bare"], found["ours"]))
    return taken


def report(recipe: str, pairs: Sequence[tuple[Taken, Taken]]) -> str:
    """Return one line: medians of the bare call, of `compress`, and of their ratio, by wall time and by CPU time."""
    figures = []
    for kind, unit in enumerate(("s", "s of CPU")):
        bare, mine = (statistics.median(taken[kind] for taken in column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(own[kind] / other[kind] for other, own in pairs)
        figures.append(f"bare {bare:6.2f}, ours {mine:6.2f} {unit}, × {ratio:.2f}")
    return f"  {recipe:13} {'   '.join(figures)}   goal ≤ × {GOAL:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="pairs of calls for each recipe (default: 3)")
    parser.add_argument("--layers", type=int, default=12, help="size of the model (default: 12, 85 million weights)")
    parser.add_argument("--recipe", choices=tuple(BARE), nargs="+", default=list(BARE), help="default: all")
    parser.add_argument("--profile", choices=tuple(BARE), help="profile this recipe instead")
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)  # silences the quantizers
    rows = np.random.default_rng(1).standard_normal((ROWS, STEPS, WIDTH), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        for name, layers in (("small", 1), ("encoder", arguments.layers)):
            onnx.save(encoder(layers), Path(folder) / f"{name}.onnx")
        recipes = [arguments.profile] if arguments.profile else arguments.recipe
        measure(open_artifact(Path(folder) / "small.onnx"), rows, 1, recipes)  # loads the libraries
        artifact = open_artifact(Path(folder) / "encoder.onnx")
        if arguments.profile:
            profile(artifact, arguments.profile, rows)
            return
        print(f"onnxruntime {onnxruntime.__version__}, {artifact.initializer_bytes / 2**20:.0f} MiB of weights")
        for recipe, pairs in measure(artifact, rows, arguments.rounds, recipes).items():
            print(report(recipe, pairs))


def profile(artifact: Artifact, recipe: str, rows: NDArray[np.float32]) -> None:
    """Print the 45 functions in which `compress` spends most time, callees included."""
    with tempfile.TemporaryDirectory() as folder, cProfile.Profile() as profiler:
        ours(artifact, recipe, rows, Path(folder))
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    main()
