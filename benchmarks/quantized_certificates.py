"""Certificates of int8 graphs against every value of their inputs: `python -m benchmarks.quantized_certificates`.

    python -m benchmarks.quantized_certificates [--networks 60] [--seconds 2] [--full]

Tiny networks with one to three inputs that are quantized to 8 bits, so that all outputs can be enumerated: 256 values
for each input (64 of the 256 where there are three, without `--full`). Half of the networks are written here: int8 and
uint8, symmetric and not, a scale for each tensor and each channel, quantized and float biases, Gemm and MatMul, with
ReLU and with a range that clips at 0, with the output quantized or not. The other half is made by the recipe
int8-static. Everything is served by onnxruntime at its default level of optimization, at which it fuses integers.

Intervals, linear bounds and branch and bound over boxes of random centers and radii are compared with all outputs of
the box, and intervals of single points with their output. "exact" is the proportion of points with a single possible
output. Exits with 1 for one output outside its bounds, or one certified box that holds another label.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import pytest_modelserve as ms
from pytest_modelserve.artifacts.artifact import load_with_weights
from pytest_modelserve.robustness.certificates import Box, interval_bounds, linear_bounds
from pytest_modelserve.robustness.certificates.branch_and_bound import decide
from pytest_modelserve.robustness.certificates.network import network_of

_BOXES = 20
_POINTS = 4096
_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A graph, and scale, zero point and type of its quantized input."""

    model: onnx.ModelProto
    inputs: int
    scale: float
    zero: int
    kind: Any


class Writer:
    """Nodes and stored tensors of a graph with random forms of quantization."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.kind = self.rng.choice([np.int8, np.uint8])
        self.is_symmetric = self.rng.random() < 0.3
        self.by_channel = self.rng.random() < 0.5
        self.float_bias, self.has_relu, self.quantized_output = self.rng.random(3) < (0.4, 0.6, 0.7)
        self.is_matmul, self.adds_bias = self.rng.random(2) < (0.3, 0.6)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, NDArray[Any]] = {}

    @property
    def has_bias(self) -> bool:
        """Whether layers add a bias."""
        return bool(self.adds_bias or not self.is_matmul)

    def pair(self, source: str, name: str, low: float, high: float) -> str:
        """Quantize a value with a range, and return the name of what is dequantized."""
        info = np.iinfo(self.kind)
        low, high = min(low, 0.0), max(high, 0.05)
        if self.is_symmetric:
            scale, zero = max(-low, high) / 127, (info.min + info.max + 1) // 2
        else:
            scale = (high - low) / 255
            zero = int(np.clip(np.rint(info.min - low / scale), info.min, info.max))
        self.stored |= {f"{name}_scale": np.float32(scale), f"{name}_zero": self.kind(zero)}
        parameters = [f"{name}_scale", f"{name}_zero"]
        self.nodes.append(helper.make_node("QuantizeLinear", [source, *parameters], [f"{name}_q"]))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *parameters], [name]))
        return name

    def layer(self, source: str, name: str, weight: NDArray[Any], bias: NDArray[Any]) -> str:
        """Add a product with quantized weights."""
        largest = np.abs(weight).max(axis=0) if self.by_channel else np.full(weight.shape[1], np.abs(weight).max())
        scale = (largest / 127).astype(np.float32)
        axis = {"axis": 1} if self.by_channel else {}
        self.stored |= {
            f"{name}_w": np.clip(np.rint(weight / scale), -127, 127).astype(np.int8),
            f"{name}_w_scale": scale if self.by_channel else scale[:1].reshape(()),
            f"{name}_w_zero": np.zeros(len(scale) if self.by_channel else (), np.int8),
        }
        weights = [f"{name}_w", f"{name}_w_scale", f"{name}_w_zero"]
        self.nodes.append(helper.make_node("DequantizeLinear", weights, [f"{name}_d"], **axis))
        if self.is_matmul:
            self.nodes.append(helper.make_node("MatMul", [source, f"{name}_d"], [name]))
            if self.adds_bias:
                self.stored[f"{name}_b"] = bias.astype(np.float32)
                self.nodes.append(helper.make_node("Add", [name, f"{name}_b"], [f"{name}_s"]))
                return f"{name}_s"
            return name
        self.stored[f"{name}_b"] = bias.astype(np.float32)
        if not self.float_bias:
            product = (self.stored[f"{source}_scale"] * self.stored[f"{name}_w_scale"]).astype(np.float32)
            self.stored |= {
                f"{name}_b": np.rint(bias / product).astype(np.int32),
                f"{name}_b_scale": product,
                f"{name}_b_zero": np.zeros(product.shape, np.int32),
            }
            biases = [f"{name}_b", f"{name}_b_scale", f"{name}_b_zero"]
            axis = {"axis": 0} if self.by_channel else {}
            self.nodes.append(helper.make_node("DequantizeLinear", biases, [f"{name}_c"], **axis))
        bias_name = f"{name}_b" if self.float_bias else f"{name}_c"
        self.nodes.append(helper.make_node("Gemm", [source, f"{name}_d", bias_name], [name]))
        return name


def layers_of(rng: np.random.Generator) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    widths = [int(rng.integers(1, 4)), int(rng.integers(2, 7)), int(rng.integers(2, 7)), int(rng.integers(2, 4))]
    return [(rng.normal(size=(a, b)) / np.sqrt(a), 0.3 * rng.normal(size=b)) for a, b in itertools.pairwise(widths)]


def written(seed: int) -> Quantized:
    """Return a graph of three layers whose pairs are written here."""
    writer = Writer(seed)
    layers = layers_of(writer.rng)
    values = writer.rng.uniform(-2, 3, (500, len(layers[0][0])))
    name = writer.pair("x", "a", -2.0, 3.0)
    for at, (weight, bias) in enumerate(layers):
        name = writer.layer(name, f"g{at}", weight, bias * writer.has_bias)
        values = values @ weight + bias * writer.has_bias
        if at < 2:
            if writer.has_relu:
                writer.nodes.append(helper.make_node("Relu", [name], [f"r{at}"]))
                name = f"r{at}"
            values = np.maximum(values, 0)
            name = writer.pair(name, f"h{at}", 0.9 * float(values.min()), 0.8 * float(values.max()))
        elif writer.quantized_output:
            name = writer.pair(name, "y", 0.9 * float(values.min()), 0.9 * float(values.max()))
    model = graph_of(writer.nodes, writer.stored, len(layers[0][0]), name)
    return Quantized(
        model, len(layers[0][0]), float(writer.stored["a_scale"]), int(writer.stored["a_zero"]), writer.kind
    )


def by_recipe(seed: int) -> Quantized:
    """Return a graph that the recipe int8-static makes of a float graph."""
    rng = np.random.default_rng(seed)
    layers = layers_of(rng)
    activation = str(rng.choice(["Relu", "Tanh", "Sigmoid", "LeakyRelu"]))
    nodes, stored, name = [], {}, "x"
    for at, (weight, bias) in enumerate(layers):
        stored |= {f"w{at}": weight.astype(np.float32), f"b{at}": bias.astype(np.float32)}
        nodes.append(helper.make_node("Gemm", [name, f"w{at}", f"b{at}"], [f"g{at}"]))
        name = f"g{at}"
        if at < 2:
            nodes.append(helper.make_node(activation, [name], [f"r{at}"]))
            name = f"r{at}"
    inputs = len(layers[0][0])
    rows = rng.uniform(-2, 3, (256, inputs)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        onnx.save(graph_of(nodes, stored, inputs, name), str(path))
        model = load_with_weights(ms.compress(ms.open_artifact(path), "int8-static", calibration=rows))
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x")
    scale, zero = tensors[first.input[1]], tensors[first.input[2]]
    return Quantized(model, inputs, float(scale), int(zero), zero.dtype.type)


def graph_of(nodes: Sequence[onnx.NodeProto], stored: dict[str, Any], inputs: int, output: str) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", inputs])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", None])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def compare(found: Quantized, seed: int, *, seconds: float, full: bool) -> Counter[str]:
    """Compare bounds and decisions with all outputs."""
    session = onnxruntime.InferenceSession(found.model.SerializeToString(), providers=["CPUExecutionProvider"])

    def scores(rows: NDArray[Any]) -> NDArray[np.float64]:
        parts = [session.run(None, {"x": rows[at : at + _CHUNK]})[0] for at in range(0, len(rows), _CHUNK)]
        return np.concatenate(parts).astype(np.float64)

    rng = np.random.default_rng([seed, 1])
    info = np.iinfo(found.kind)
    levels = np.arange(info.min, info.max + 1, 4 if found.inputs == 3 and not full else 1)
    axes = [(levels - found.zero) * found.scale] * found.inputs
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, found.inputs).astype(np.float32)
    outputs = scores(grid)
    classes = outputs.shape[1]
    counts = Counter(networks=1, points=len(grid), boxes=_BOXES)
    network = network_of(found.model, grid[:3])
    points = rng.choice(len(grid), min(_POINTS, len(grid)), replace=False)
    exact = grid[points].astype(np.float64)
    at_points = interval_bounds(network, Box(exact, exact)).boxes[network.output]
    counts["outside at points"] = int((~_within(outputs[points], at_points.lower, at_points.upper)).sum())
    counts["single points"] = len(points)
    counts["exact points"] = int(((at_points.upper - at_points.lower).max(axis=1) < 1e-4).sum())
    center = rng.uniform(axes[0][0], axes[0][-1], (_BOXES, found.inputs))
    radius = np.exp(rng.uniform(np.log(0.2), np.log(100), (_BOXES, 1))) * found.scale
    box = Box(center - radius, center + radius)
    inside = [((grid >= low) & (grid <= high)).all(axis=1) for low, high in zip(box.lower, box.upper, strict=True)]
    for name, bounds_of in (("intervals", interval_bounds), ("linear bounds", linear_bounds)):
        bounds = bounds_of(network, box).boxes[network.output]
        counts[f"outside {name}"] = sum(
            int((~_within(outputs[rows], bounds.lower[at], bounds.upper[at])).sum()) for at, rows in enumerate(inside)
        )
    labels = scores(center.astype(np.float32)).argmax(axis=1)
    functions = np.stack([np.eye(classes)[label] - np.delete(np.eye(classes), label, axis=0) for label in labels])
    decisions = decide(
        network,
        box,
        functions,
        confirm=lambda rows, owners: scores(rows).argmax(axis=1) != labels[owners],
        time_limit_s=seconds,
    )
    for at, rows in enumerate(inside):
        margins = outputs[rows] @ functions[at].T
        if decisions.certified[at]:
            counts["certified"] += 1
            counts["wrong certificates"] += bool((margins < decisions.lower[at]).any())
        elif at in decisions.counterexamples:
            counts["counterexamples"] += 1
        else:
            counts["undecided"] += 1
            counts["undecided with ties"] += bool((margins <= 0).any())
    return counts


def _within(values: NDArray[Any], lower: NDArray[Any], upper: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(((lower <= values) & (values <= upper)).all(axis=-1))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--networks", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=2.0, help="time limit of branch and bound for each network")
    parser.add_argument("--full", action="store_true", help="all 16,777,216 points of networks with three inputs")
    options = parser.parse_args()
    bad = 0
    for kind, make in (("written here", written), ("int8-static", by_recipe)):
        total: Counter[str] = Counter()
        for seed in range(options.networks // 2):
            total += compare(make(seed), seed, seconds=options.seconds, full=options.full)
        outside = {name: total[f"outside {name}"] for name in ("at points", "intervals", "linear bounds")}
        print(f"{kind}: {total['networks']} networks, {total['points']:,} points, {total['boxes']} boxes")
        print(f"  outputs outside their bounds: {', '.join(f'{name} {count}' for name, count in outside.items())}")
        print(f"  exact: {total['exact points'] / total['single points']:.3f} of {total['single points']:,} points")
        print(
            f"  branch and bound: {total['certified']} certified ({total['wrong certificates']} wrong), "
            f"{total['counterexamples']} with a counterexample, {total['undecided']} undecided "
            f"({total['undecided with ties']} of them with a tie or another label)"
        )
        bad += sum(outside.values()) + total["wrong certificates"]
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
