"""Bounds of QDQ graphs, compared with every value that a quantized input can take, through the served session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import pytest_modelserve as ms
from pytest_modelserve.errors import ArtifactError
from pytest_modelserve.robustness.certificates import Box, interval_bounds, linear_bounds, quantized_operators
from pytest_modelserve.robustness.certificates.network import Network, network_of


def model_of(nodes: list[onnx.NodeProto], stored: dict[str, object], width: int, output: str) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def pair(source: str, name: str, **attributes: int) -> list[onnx.NodeProto]:
    parameters = [f"{name}_scale", f"{name}_zero"]
    return [
        helper.make_node("QuantizeLinear", [source, *parameters], [f"{name}_q"], **attributes),
        helper.make_node("DequantizeLinear", [f"{name}_q", *parameters], [name], **attributes),
    ]


def parameters(name: str, scale: object, zero: object) -> dict[str, object]:
    return {f"{name}_scale": np.float32(scale), f"{name}_zero": zero}


RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.integers(-127, 128, (2, 4)).astype(np.int8),
    "w_scale": np.array([0.01, 0.02, 0.015, 0.03], np.float32),
    "w_zero": np.zeros(4, np.int8),
    "v": RNG.integers(-127, 128, (4, 2)).astype(np.int8),
    "v_scale": np.float32(0.01),
    "v_zero": np.int8(0),
    "b": np.array([0.113, -0.2, 0.3, 0.017], np.float32),
    "c": np.array([0.1237, -0.0711], np.float32),
}
LAYERS = [
    helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_d"], axis=1),
    helper.make_node("DequantizeLinear", ["v", "v_scale", "v_zero"], ["v_d"]),
]


def dense(kind: type, relu: bool) -> onnx.ModelProto:
    """Return two dense layers with float biases, which onnxruntime rounds."""
    middle = 0 if kind is np.int8 else 128
    ranges = {
        **parameters("a", 0.05, kind(middle + 3)),
        **parameters("h", 0.04, kind(np.iinfo(kind).min if relu else middle)),
        **parameters("y", 0.06, kind(middle - 9)),
    }
    nodes = [*pair("x", "a"), *LAYERS, helper.make_node("Gemm", ["a", "w_d", "b"], ["g"])]
    nodes += [*pair("g", "h"), helper.make_node("MatMul", ["h", "v_d"], ["p"])]
    nodes += [helper.make_node("Add", ["p", "c"], ["s"]), *pair("s", "y")]
    return model_of(nodes, {**WEIGHTS, **ranges}, 2, "y")


def served(model: onnx.ModelProto, rows: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (values,) = session.run(None, {"x": rows.astype(np.float32)})
    return values.astype(float)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_bounds_contain_the_outputs_of_all_65536_quantized_inputs(kind: type, relu: bool) -> None:
    model = dense(kind, relu)
    levels = 0.05 * (np.arange(256) - 131)
    grid = np.stack(np.meshgrid(levels, levels, indexing="ij"), axis=-1).reshape(-1, 2)
    grid = grid.astype(np.float32).astype(float)
    found = served(model, grid)
    network = network_of(model, np.zeros((3, 2), np.float32))
    points = slice(None, None, 16)
    point = interval_bounds(network, Box(grid[points], grid[points])).boxes[network.output]
    assert (point.lower <= found[points]).all()
    assert (found[points] <= point.upper).all()
    assert np.mean(point.upper - point.lower < 1e-4) > 0.9  # most points have one possible output, and bounds know it
    center = np.random.default_rng(1).uniform(-5, 5, (12, 2))
    radius = np.geomspace(0.04, 3, 12)[:, None]
    box = Box(center - radius, center + radius)
    bounds = linear_bounds(network, box).boxes[network.output]
    for at in range(12):
        within = ((grid >= box.lower[at]) & (grid <= box.upper[at])).all(axis=1)
        assert (bounds.lower[at] <= found[within]).all()
        assert (found[within] <= bounds.upper[at]).all()


def test_the_lines_of_a_quantizer_hold_on_both_sides_of_its_range() -> None:
    model = model_of(pair("x", "y"), parameters("y", 0.1, np.int8(20)), 1, "y")
    network = network_of(model, np.zeros((3, 1), np.float32))
    rng = np.random.default_rng(0)
    low = rng.uniform(-25, 18, 400)
    high = low + rng.choice([0.0, 0.03, 0.5, 5.0, 60.0], 400)
    box = Box(low[:, None], high[:, None])
    lines = linear_bounds(network, box).relaxations["y_q"]
    x = low + (high - low) * np.linspace(0, 1, 101)[:, None]
    steps = np.clip(np.rint(x / np.float64(np.float32(0.1))) + 20, -128, 127)
    below = lines.lower_slope[:, 0] * x + lines.lower_offset[:, 0]
    above = lines.upper_slope[:, 0] * x + lines.upper_offset[:, 0]
    assert (below <= steps).all()
    assert (steps <= above).all()
    assert (above - below).max() < 300


def test_a_scale_for_each_channel_is_taken_along_its_axis() -> None:
    stored = {"y_scale": np.array([0.1, 0.5], np.float32), "y_zero": np.array([3, -7], np.int8)}
    model = model_of(pair("x", "y", axis=1), stored, 2, "y")
    rows = np.random.default_rng(0).normal(size=(50, 2)) * 9
    network = network_of(model, np.zeros((3, 2), np.float32))
    rows = rows.astype(np.float32).astype(float)
    box = interval_bounds(network, Box(rows, rows)).boxes["y"]
    found = served(model, rows)
    assert (box.lower <= found).all()
    assert (found <= box.upper).all()


def test_the_recipe_int8_static_is_certified_from_its_file(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["g"]),
        helper.make_node("Relu", ["g"], ["r"]),
        helper.make_node("Gemm", ["r", "v"], ["y"]),
    ]
    rng = np.random.default_rng(3)
    stored = {
        "w": rng.normal(size=(2, 8)).astype(np.float32),
        "b": rng.normal(size=8).astype(np.float32),
        "v": rng.normal(size=(8, 3)).astype(np.float32),
    }
    path = tmp_path / "model.onnx"
    onnx.save(model_of(nodes, stored, 2, "y"), str(path))
    rows = rng.normal(size=(64, 2)).astype(np.float32)
    artifact = ms.compress(ms.open_artifact(path), "int8-static", calibration=rows)
    network = Network.of(artifact, rows)
    box = Box(rows - 0.05, rows + 0.05)
    bounds = linear_bounds(network, box).boxes[network.output]
    with ms.serve(artifact) as predictor:
        for _ in range(20):
            found = predictor.predict((rows + rng.uniform(-0.05, 0.05, rows.shape)).astype(np.float32))["y"]
            assert ((bounds.lower <= found) & (found <= bounds.upper)).all()
    assert np.median(bounds.upper - bounds.lower) < 1.0


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1)])
def test_the_rounded_bias_of_a_convolution_belongs_to_its_channel(shape: tuple[int, ...]) -> None:
    kernel = {"w": np.full((3, 1, *[1] * len(shape)), 50, np.int8), "w_zero": np.zeros(3, np.int8)}
    scales = {"w_scale": np.array([2e-4, 2e-3, 2e-2], np.float32), "b": np.array([0.0123, 0.0123, 0.0123], np.float32)}
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["r"]), *pair("r", "a")]
    nodes += [helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_d"], axis=0)]
    nodes += [helper.make_node("Conv", ["a", "w_d", "b"], ["c"]), *pair("c", "h")]
    ranges = {**parameters("a", 0.05, np.int8(3)), **parameters("h", 0.004, np.int8(0))}
    stored = {**kernel, **scales, **ranges, "shape": np.array([0, 1, *shape])}
    model = model_of([*nodes, helper.make_node("Flatten", ["h"], ["y"])], stored, 3, "y")
    rows = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)  # as many as channels and positions
    box = interval_bounds(network_of(model, rows), Box(rows.astype(float), rows.astype(float))).boxes["y"]
    found = served(model, rows)
    assert (box.lower <= found).all()
    assert (found <= box.upper).all()
    assert (box.upper - box.lower)[:, :3].max() < 0.005  # the first channel has the smallest scale


def test_the_rounding_of_a_bias_is_multiplied_by_beta() -> None:
    nodes = [*pair("x", "a"), *LAYERS, helper.make_node("Gemm", ["a", "w_d", "b"], ["g"], beta=40.0), *pair("g", "h")]
    ranges = {**parameters("a", 0.05, np.int8(3)), **parameters("h", 0.004, np.int8(0))}
    model = model_of(nodes, {**WEIGHTS, **ranges, "b": np.array([1, -2, 3, 5], np.float32) / 4000}, 2, "h")
    rows = 0.02 * np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    box = interval_bounds(network_of(model, rows), Box(rows.astype(float), rows.astype(float))).boxes["h"]
    found = served(model, rows)
    assert (box.lower <= found).all()
    assert (found <= box.upper).all()


GEMM = helper.make_node("Gemm", ["a", "w_d", "b"], ["g"])
AB = {**parameters("a", 0.05, np.int8(3)), **parameters("h", 0.04, np.int8(0))}
FLOAT_WEIGHTS = {"u": np.ones((2, 4), np.float32)}
REFUSED = {
    "quantizes its float weights": (
        [*pair("x", "a"), helper.make_node("Gemm", ["a", "u"], ["g"]), *pair("g", "h")], {**AB, **FLOAT_WEIGHTS}, "h",
    ),
    "makes it|quantizes its float weights": (  # where BatchNormalization becomes part of Conv first
        [
            *pair("x", "a"), helper.make_node("Unsqueeze", ["a", "i"], ["e"]),
            *pair("e", "f"), helper.make_node("Conv", ["f", "k"], ["c"]),
            helper.make_node("BatchNormalization", ["c", "one", "one", "one", "one"], ["n"]), *pair("n", "h"),
        ],
        {**AB, **parameters("f", 0.05, np.int8(3)), "i": np.array([1]), "k": np.ones((1, 1, 1), np.float32),
         "one": np.ones(1, np.float32)}, "h",
    ),
    "of another scale": ([*pair("x", "a"), *pair("a", "h")], AB, "h"),
    "makes it MatMulNBits": ([LAYERS[0], helper.make_node("MatMul", ["x", "w_d"], ["s"])], WEIGHTS, "s"),
    "depends on all rows of the batch": (
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        {}, "y",
    ),
    "covers? 8 and 16 bits": (
        [
            helper.make_node("QuantizeLinear", ["x", "a_scale", "i"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "a_scale", "i"], ["y"]),
        ],
        {"a_scale": np.float32(0.1), "i": np.zeros((), np.int8).astype(onnx.helper.tensor_dtype_to_np_dtype(TensorProto.INT4))},
        "y",
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_a_graph_that_the_runtime_serves_otherwise_is_refused_by_name(why: str) -> None:
    nodes, stored, output = REFUSED[why]
    with pytest.raises(ArtifactError, match=why):
        network_of(model_of(nodes, stored, 2, output), np.zeros((3, 2), np.float32))


def test_wide_weights_are_refused_on_a_processor_whose_products_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized_operators, "saturates", lambda: True)
    with pytest.raises(ArtifactError, match="reduce_range=True"):
        network_of(dense(np.int8, True), np.zeros((3, 2), np.float32))
