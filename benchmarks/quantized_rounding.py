"""How onnxruntime rounds fused operators of QDQ graphs: `python -m benchmarks.quantized_rounding [--rows 20000]`.

One operator between DequantizeLinear and QuantizeLinear, with random zero points of int8 and uint8 and random scales,
half of them of two decimals so that ties are common, served at the default level of optimization. "fused" is what it
becomes. "differs" is the proportion of values that differ from those of the unoptimized graph, and "steps" by how many
steps at most. "distance" is the largest distance, in steps, of a served value from the real number that float64 gives
for the dequantized inputs, clipped to the range: half a step by rounding, and what lies above is the error near ties
that `TIE` in robustness/certificates/quantized_operators.py covers.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.special import expit

Array = NDArray[np.float64]
_TRIALS = 8


@dataclass(frozen=True)
class Case:
    """An operator of `values` inputs of a shape, with weights or without, and the function that it computes."""

    op: str
    shape: tuple[int, ...]
    exact: Callable[..., Array]
    values: int = 1
    attributes: tuple[tuple[str, Any], ...] = ()
    weight: tuple[int, ...] = ()
    channel: int = 0


def _convolved(x: Array, weight: Array, bias: Array) -> Array:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("ncijkl,ockl->noij", windows, weight) + bias[None, :, None, None]


def _windows(x: Array) -> Array:
    return x.reshape(len(x), 2, 2, 2, 2, 2).transpose(0, 1, 2, 4, 3, 5)


_POOL = (("kernel_shape", [2, 2]), ("strides", [2, 2]))
CASES = (
    Case("Gemm", (6,), lambda x, w, b: x @ w + b, weight=(6, 3), channel=1),
    Case("Conv", (2, 5, 5), _convolved, attributes=(("pads", [1, 1, 1, 1]),), weight=(3, 2, 3, 3)),
    Case("MatMul", (6, 6), lambda a, b: a @ b, values=2),
    Case("Add", (6,), lambda a, b: a + b, values=2),
    Case("Mul", (6,), lambda a, b: a * b, values=2),
    Case("Concat", (6,), lambda a, b: np.concatenate([a, b], axis=1), values=2, attributes=(("axis", 1),)),
    Case("AveragePool", (2, 4, 4), lambda x: _windows(x).mean(axis=(-1, -2)), attributes=_POOL),
    Case("GlobalAveragePool", (2, 7, 7), lambda x: x.mean(axis=(2, 3), keepdims=True)),
    Case("LeakyRelu", (6,), lambda x: np.where(x > 0, x, np.float64(np.float32(0.01)) * x)),
    Case("Sigmoid", (6,), expit),
)


def model_of(
    case: Case, rng: np.random.Generator, kind: Any, decimals: int
) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]]]:
    """Return a graph with random scales and zero points, and its stored tensors."""
    info = np.iinfo(kind)
    stored: dict[str, NDArray[Any]] = {}
    nodes = []
    for name, low, high in (*((f"d{at}", 0.02, 0.2) for at in range(case.values)), ("y", 0.02, 0.3)):
        stored[f"{name}_scale"] = np.float32(round(float(np.exp(rng.uniform(np.log(low), np.log(high)))), decimals))
        stored[f"{name}_zero"] = kind(rng.integers(info.min, info.max + 1))
    for at in range(case.values):
        nodes.append(helper.make_node("QuantizeLinear", [f"x{at}", f"d{at}_scale", f"d{at}_zero"], [f"q{at}"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"q{at}", f"d{at}_scale", f"d{at}_zero"], [f"d{at}"]))
    inputs = [f"d{at}" for at in range(case.values)]
    if case.weight:
        channels = case.weight[case.channel]
        scale = rng.uniform(0.01, 0.05, channels).round(decimals).astype(np.float32)
        stored |= {
            "w": rng.integers(-127, 128, case.weight).astype(np.int8),
            "w_scale": scale,
            "w_zero": np.zeros(channels, np.int8),
            "b": rng.integers(-2000, 2000, channels).astype(np.int32),
            "b_scale": (stored["d0_scale"] * scale).astype(np.float32),
            "b_zero": np.zeros(channels, np.int32),
        }
        nodes.append(helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], axis=case.channel))
        nodes.append(helper.make_node("DequantizeLinear", ["b", "b_scale", "b_zero"], ["bd"], axis=0))
        inputs += ["wd", "bd"]
    nodes.append(helper.make_node(case.op, inputs, ["g"], **dict(case.attributes)))
    nodes.append(helper.make_node("QuantizeLinear", ["g", "y_scale", "y_zero"], ["yq"]))
    nodes.append(helper.make_node("DequantizeLinear", ["yq", "y_scale", "y_zero"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info(f"x{at}", TensorProto.FLOAT, ["n", *case.shape]) for at in range(case.values)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y",)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), stored


def served(model: onnx.ModelProto, feed: dict[str, NDArray[Any]]) -> tuple[Array, Array, list[str]]:
    """Return the outputs with and without optimization, and the operators of the optimized graph."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        optimized = onnx.load(options.optimized_model_filepath)
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    reference = onnxruntime.InferenceSession(model.SerializeToString(), plain, providers=["CPUExecutionProvider"])
    outputs = (each.run(None, feed)[0].astype(np.float64) for each in (session, reference))
    fused = [node.op_type for node in optimized.graph.node if not node.op_type.endswith(("quantizeLinear", "eLinear"))]
    return next(outputs), next(outputs), [op for op in fused if op != "Transpose"]


def measured(case: Case, rows: int) -> tuple[str, float, float, float]:
    """Return the fused operator, the proportion that differs, by how many steps, and the largest distance."""
    rng = np.random.default_rng(0)
    differs, steps, distance, fused = 0.0, 0.0, 0.0, ""
    for trial in range(_TRIALS):
        kind = (np.int8, np.uint8)[trial % 2]
        model, stored = model_of(case, rng, kind, 2 if trial // 2 % 2 else 9)
        feed = {f"x{at}": rng.normal(0, 4, (rows, *case.shape)).astype(np.float32) for at in range(case.values)}
        found, plain, operators = served(model, feed)
        fused = ", ".join(operators) or case.op
        info = np.iinfo(kind)
        values = []
        for at in range(case.values):
            scale, zero = stored[f"d{at}_scale"], stored[f"d{at}_zero"].astype(np.float64)
            whole = np.clip(np.rint(feed[f"x{at}"] / scale) + zero, info.min, info.max)
            values.append((whole - zero) * np.float64(scale))
        if case.weight:
            shape = [1] * len(case.weight)
            shape[case.channel] = -1
            values.append(stored["w"] * stored["w_scale"].astype(np.float64).reshape(shape))
            values.append(stored["b"] * stored["b_scale"].astype(np.float64))
        scale, zero = np.float64(stored["y_scale"]), float(stored["y_zero"])
        exact = np.clip(case.exact(*values), (info.min - zero) * scale, (info.max - zero) * scale)
        differs += float((np.abs(found - plain) > 0.5 * scale).mean()) / _TRIALS
        steps = max(steps, float(np.abs(found - plain).max() / scale))
        distance = max(distance, float(np.abs(found - exact).max() / scale))
    return fused, differs, steps, distance


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000)
    options = parser.parse_args()
    print(f"{'operator':18} {'fused':26} {'differs':>8} {'steps':>6} {'distance':>9}")
    for case in CASES:
        fused, differs, steps, distance = measured(case, options.rows)
        print(f"{case.op:18} {fused:26} {100 * differs:7.2f}% {steps:6.2f} {distance:9.5f}", flush=True)


if __name__ == "__main__":
    main()
