"""Every operator of the table: bounds contain what onnxruntime returns, at random points and at corners of boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from pytest_modelserve.errors import ArtifactError
from pytest_modelserve.robustness import certificates
from pytest_modelserve.robustness.certificates import Box, interval_bounds, linear_bounds, lower_bounds
from pytest_modelserve.robustness.certificates.network import network_of
from pytest_modelserve.robustness.certificates.operators import OPERATORS

FLOAT = onnx.TensorProto.FLOAT
R = np.random.default_rng(0)


def floats(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * R.normal(size=shape)).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@dataclass
class Case:
    """One node; "x" is the input of shape (rows, *shape), "y" its tanh, every other name a constant."""

    op: str
    inputs: Sequence[str]
    shape: tuple[int, ...]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("out",)
    opset: int = 20

    def model(self) -> onnx.ModelProto:
        domain, _, op = self.op.rpartition(".")
        nodes = [helper.make_node(op, self.inputs, self.outputs, name="node", domain=domain, **self.attributes)]
        if "y" in self.inputs:
            nodes.insert(0, helper.make_node("Tanh", ["x"], ["y"], name="inner"))
        graph = helper.make_graph(
            nodes, "one",
            [helper.make_tensor_value_info("x", FLOAT, ["n", *self.shape])],
            [helper.make_tensor_value_info(self.outputs[-1], FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )  # fmt: skip
        domains = [helper.make_opsetid("", self.opset), helper.make_opsetid("ai.onnx.ml", 3)]
        return helper.make_model(graph, opset_imports=domains, ir_version=10)


W = {"w": floats(5, 4), "b": floats(4)}
CASES = [
    Case("Gemm", ["x", "w", "b"], (5,), W, {"alpha": 0.5, "beta": 2.0}),
    Case("Gemm", ["x", "w"], (5,), {"w": floats(4, 5)}, {"transB": 1}),
    Case("MatMul", ["x", "w"], (2, 5), W),
    Case("Add", ["x", "b"], (3, 4), W),
    Case("Add", ["x", "y"], (4,)),
    Case("Sub", ["b", "x"], (4,), W),
    Case("Sub", ["x", "y"], (4,)),
    Case("Sum", ["x", "y", "b"], (4,), W),
    Case("Mul", ["x", "b"], (1,), W),
    Case("Mul", ["x", "y"], (4,)),
    Case("Mul", ["x", "x"], (4,)),
    Case("Div", ["x", "b"], (3, 4), W),
    Case("Neg", ["x"], (4,)),
    Case("ai.onnx.ml.Scaler", ["x"], (3,), {}, {"offset": [1.0, 2.0, -3.0], "scale": [0.5, 2.0, 1.5]}),
    Case("BatchNormalization", ["x", "s", "b", "m", "v"], (3, 2, 2),
         {"s": floats(3), "b": floats(3), "m": floats(3), "v": floats(3) ** 2}),
    Case("Concat", ["x", "y"], (3, 2), {}, {"axis": -1}),
    Case("Cast", ["x"], (4,), {}, {"to": FLOAT}),
    Case("Conv", ["x", "w", "b"], (2, 5, 6), {"w": floats(4, 2, 3, 2), "b": floats(4)},
         {"strides": [2, 1], "pads": [1, 0, 1, 1], "dilations": [1, 2]}),
    Case("Conv", ["x", "w"], (4, 7), {"w": floats(6, 2, 3)}, {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2]}),
    Case("Conv", ["x", "w"], (2, 20, 20), {"w": floats(3, 2, 3, 3)}, {"pads": [1, 1, 1, 1], "strides": [3, 3]}),
    Case("AveragePool", ["x"], (2, 5, 5), {}, {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 0, 0]}),
    Case("AveragePool", ["x"], (2, 5), {}, {"kernel_shape": [3], "pads": [1, 1], "count_include_pad": 1}),
    Case("GlobalAveragePool", ["x"], (2, 4, 3)),
    Case("MaxPool", ["x"], (2, 5, 5), {}, {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 0, 1]}),
    Case("MaxPool", ["x"], (3, 8), {}, {"kernel_shape": [2], "strides": [2]}),
    Case("GlobalMaxPool", ["x"], (2, 3, 3)),
    Case("ReduceMean", ["x", "a"], (3, 4), {"a": ints(1)}, {"keepdims": 0}),
    Case("ReduceSum", ["x", "a"], (3, 4), {"a": ints(-1, 1)}),
    Case("Identity", ["x"], (4,)),
    Case("Dropout", ["x"], (4,)),
    Case("Reshape", ["x", "s"], (3, 4), {"s": ints(0, -1)}),
    Case("Flatten", ["x"], (3, 4), {}, {"axis": 1}),
    Case("Transpose", ["x"], (3, 4), {}, {"perm": [0, 2, 1]}),
    Case("Squeeze", ["x", "a"], (1, 4), {"a": ints(1)}),
    Case("Unsqueeze", ["x", "a"], (4,), {"a": ints(1)}),
    Case("Slice", ["x", "i", "j", "a", "s"], (6, 4), {"i": ints(-1), "j": ints(-9), "a": ints(1), "s": ints(-2)}),
    Case("Gather", ["x", "i"], (6,), {"i": ints(5, 0, 0)}, {"axis": 1}),
    Case("Pad", ["x", "p", "v"], (3, 4), {"p": ints(0, 0, 1, 0, 2, 0), "v": np.float32(7)}),
    Case("Pad", ["x", "p"], (4,), {"p": ints(0, 2, 0, 1)}, {"mode": "reflect"}),
    Case("Expand", ["x", "s"], (1, 4), {"s": ints(1, 3, 1)}),
    Case("Tile", ["x", "r"], (2, 3), {"r": ints(1, 2, 1)}),
    Case("Split", ["x"], (6,), {}, {"axis": 1, "num_outputs": 2}, ("first", "second")),
    Case("DepthToSpace", ["x"], (4, 2, 3), {}, {"blocksize": 2}),
    Case("SpaceToDepth", ["x"], (2, 4, 2), {}, {"blocksize": 2}),
    Case("Relu", ["x"], (6,)),
    Case("LeakyRelu", ["x"], (6,), {}, {"alpha": 0.2}),
    Case("PRelu", ["x", "s"], (5, 1), {"s": np.array([[0.3], [1.7], [-0.4], [0], [1]], np.float32)}),
    *(Case(op, ["x"], (6,)) for op in ("Sigmoid", "Tanh", "Erf", "Gelu", "HardSwish", "Softplus", "Softsign", "Elu", "Selu", "Celu", "Abs")),
    Case("Gelu", ["x"], (6,), {}, {"approximate": "tanh"}),
    Case("Pow", ["x", "p"], (6,), {"p": np.float32(2)}),
    Case("Pow", ["x", "p"], (6,), {"p": np.float32(3)}),
    Case("Elu", ["x"], (6,), {}, {"alpha": 3.0}),
    Case("Celu", ["x"], (6,), {}, {"alpha": 0.5}),
    Case("HardSigmoid", ["x"], (6,), {}, {"alpha": 0.3, "beta": 0.4}),
    Case("Clip", ["x", "a", "b"], (6,), {"a": np.float32(-0.5), "b": np.float32(0.75)}),
    Case("Clip", ["x", "", "b"], (6,), {"b": np.float32(0.0)}),
    Case("Max", ["x", "b"], (4,), W),
    Case("Min", ["b", "x"], (4,), W),
]  # fmt: skip


def sampled(session: onnxruntime.InferenceSession, low: np.ndarray, high: np.ndarray, count: int) -> np.ndarray:
    """Return outputs (rows, count, values) at random points and corners of the boxes (rows, ...)."""
    rng = np.random.default_rng(1)
    part = rng.uniform(size=(count, *low.shape))
    part[: count // 2] = part[: count // 2] > 0.5
    points = np.clip((low + part * (high - low)).astype(np.float32), low.astype(np.float32), high.astype(np.float32))
    found = session.run(None, {"x": points.reshape(-1, *low.shape[1:])})[0]
    return found.reshape(count, len(low), -1).swapaxes(0, 1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.op)
def test_bounds_contain_every_output(case: Case) -> None:
    model = case.model()
    session = onnxruntime.InferenceSession(model.SerializeToString())
    center = floats(4, *case.shape, scale=2.0)
    radius = np.array([1e-3, 0.1, 1.0, 3.0], np.float32).reshape(-1, *[1] * len(case.shape))
    low, high = center - radius, center + radius
    network = network_of(model, center)
    box = Box(low.astype(np.float64), high.astype(np.float64))
    intervals, bounds = interval_bounds(network, box), linear_bounds(network, box)
    size = int(np.prod(network.output_shape))
    functions = np.eye(size).reshape(1, size, *network.output_shape)
    lower, upper = lower_bounds(bounds, functions), -lower_bounds(bounds, -functions)
    found = sampled(session, low, high, 60)
    wide = intervals.boxes[network.output]
    assert (found >= wide.lower.reshape(4, 1, -1)).all()
    assert (found <= wide.upper.reshape(4, 1, -1)).all()
    assert (found >= lower[:, None]).all()
    assert (found <= upper[:, None]).all()
    # CROWN is no looser than intervals, and both shrink to the output with the box.
    slack = 1e-6 * (1 + np.abs(wide.lower) + np.abs(wide.upper)).reshape(4, -1)
    assert (lower >= wide.lower.reshape(4, -1) - slack).all()
    assert (upper <= wide.upper.reshape(4, -1) + slack).all()
    assert (upper[0] - lower[0]).max() <= 30 * np.ptp(found[0], axis=0).max() + 1e-4


AS_IMAGE = ("Reshape", ["last", "shape"], {})


@pytest.mark.parametrize(
    "nodes",
    [
        [("MatMul", ["last", "huge"], {}), ("Abs", ["last"], {}), ("Mul", ["last", "tiny"], {})],
        [("MatMul", ["last", "huge"], {}), ("Softplus", ["last"], {}), ("Mul", ["last", "tiny"], {})],
        # onnxruntime multiplies the weights with the factors when it opens the file: they underflow, or overflow.
        [("Mul", ["last", "e20"], {}), AS_IMAGE, ("Conv", ["last", "small"], {}), ("Mul", ["last", "tiny"], {})],
        [("Mul", ["last", "tiny"], {}), AS_IMAGE, ("Conv", ["last", "large"], {}), ("Mul", ["last", "e20"], {})],
        [("Gemm", ["last", "high"], {"alpha": 1e-30})],
        [("Sum", ["last", "plus", "minus"], {})],
    ],
    ids=["Abs", "Softplus", "underflow", "overflow", "Gemm", "Sum"],
)
def test_bounds_hold_for_values_near_the_largest_and_the_smallest_numbers(nodes: Any) -> None:
    constants = {
        "huge": floats(6, 4, scale=1e31), "tiny": np.float32(1e-31), "e20": np.float32(1e20), "shape": ints(0, 1, 6),
        "small": floats(2, 1, 3, scale=1e-13), "large": floats(2, 1, 3, scale=1e25),
        "plus": np.full(6, 1e5, np.float32), "minus": np.full(6, -1e5, np.float32), "high": np.full((6, 2), 1e38, np.float32),
    }  # fmt: skip
    model = score_model(nodes, **constants)
    low = np.abs(floats(4, 6))
    high = low + np.array([1e-4, 1e-2, 0.5, 2], np.float32)[:, None]
    network = network_of(model, np.zeros((3, 6), np.float32))
    found = sampled(onnxruntime.InferenceSession(model.SerializeToString()), low, high, 60)
    for compute in (interval_bounds, linear_bounds):
        box = compute(network, Box(low.astype(float), high.astype(float))).boxes[network.output]
        lower, upper = (each.reshape(4, 1, -1) for each in (box.lower, box.upper))
        assert (np.isneginf(lower) | (found >= lower)).all()
        assert (np.isposinf(upper) | (found <= upper)).all()


def test_scores_that_the_optimized_graph_returns_otherwise_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates.network, "allow_for_folding", lambda *_: None)
    nodes = [("Mul", ["last", "e20"], {}), AS_IMAGE, ("Conv", ["last", "small"], {}), ("Mul", ["last", "tiny"], {})]
    constants = {"e20": np.float32(1e20), "shape": ints(0, 1, 6), "tiny": np.float32(1e-31)}
    with pytest.raises(ArtifactError, match="'out' are other ones where onnxruntime optimizes the graph"):
        network_of(score_model(nodes, **constants, small=floats(2, 1, 3, scale=1e-13)), floats(3, 6))
    # The product of the optimized weights overflows, and infinity less infinity is NaN.
    nodes = [AS_IMAGE, ("Conv", ["last", "large"], {}), ("Mul", ["last", "e20"], {})]
    large = np.array([[[1e19, -1e19, 0]]] * 2, np.float32)
    with pytest.raises(ArtifactError, match="'out' are other ones where onnxruntime optimizes the graph"):
        network_of(score_model(nodes, **constants, large=large), np.ones((3, 6), np.float32))


def test_smooth_functions_of_doubles_with_constants_of_floats_are_refused() -> None:
    model = score_model([("Gelu", ["last"], {"approximate": "tanh"})])
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    with pytest.raises(ArtifactError, match="n0' is Gelu: onnxruntime computes it with constants of float32"):
        network_of(model, np.ones((3, 6)))


def test_the_indices_of_the_largest_values_are_refused() -> None:
    model = Case("MaxPool", ["x"], (1, 3), {}, {"kernel_shape": [3]}, ("values", "out")).model()
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    with pytest.raises(ArtifactError, match="'node' is MaxPool: its output 'out' is not its first one"):
        network_of(model, np.zeros((3, 1, 3), np.float32))


def test_every_operator_of_the_table_has_a_case() -> None:
    by_pattern = {"Silu"}
    in_pairs = {"QuantizeLinear", "DequantizeLinear"}  # test_quantized_operators.py
    assert {case.op for case in CASES} | by_pattern | in_pairs == set(OPERATORS)


def test_an_operator_without_bounds_is_refused_by_node_and_name() -> None:
    case = Case("LpNormalization", ["x"], (4,))
    with pytest.raises(ArtifactError, match=r"node 'node' is LpNormalization, which is not in the table"):
        network_of(case.model(), floats(2, 4))


def gate_model(nodes: Sequence[tuple[str, list[str], str]], **constants: float) -> onnx.ModelProto:
    """Return a graph from "x" to "out" of these operators and numbers."""
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [output], name=output) for op, inputs, output in nodes], "gate",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 6])], [helper.make_tensor_value_info("out", FLOAT, None)],
        [numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


GELU = [("Div", ["x", "r"], "t"), ("Erf", ["t"], "e"), ("Add", ["e", "one"], "a"), ("Mul", ["x", "a"], "p")]


@pytest.mark.parametrize(
    ("model", "op"),
    [
        (gate_model([*GELU, ("Mul", ["p", "half"], "out")], r=2**0.5, one=1, half=0.5), "Gelu"),
        (gate_model([("Sigmoid", ["x"], "s"), ("Mul", ["x", "s"], "out")]), "Silu"),
    ],
)
def test_gelu_and_silu_are_one_operator_however_the_exporter_wrote_them(model: onnx.ModelProto, op: str) -> None:
    low, high = floats(4, 6) - np.float32(0.5), None
    high = low + np.float32(1)
    network = network_of(model, low)
    assert [node.op for node in network.nodes] == [op]
    bounds = interval_bounds(network, Box(low.astype(np.float64), high.astype(np.float64)))
    found = sampled(onnxruntime.InferenceSession(model.SerializeToString()), low, high, 200)
    assert (found >= lower_bounds(bounds, np.eye(6)[None])[:, None]).all()
    assert (found <= -lower_bounds(bounds, -np.eye(6)[None])[:, None]).all()


def test_a_value_that_another_node_reads_stays_beside_a_fused_function() -> None:
    nodes = [("Sigmoid", ["x"], "s"), ("Mul", ["x", "s"], "p"), ("Add", ["p", "s"], "out")]
    assert [node.op for node in network_of(gate_model(nodes), floats(2, 6)).nodes] == ["Sigmoid", "Silu", "Add"]


def score_model(nodes: Sequence[tuple[str, list[str], dict[str, Any]]], **constants: np.ndarray) -> onnx.ModelProto:
    """Return a graph of a chain of operators; "x" is the input of the first one, "last" the output before each."""
    built, last = [], "x"
    for at, (op, inputs, attributes) in enumerate(nodes):
        output = "out" if at == len(nodes) - 1 else f"v{at}"
        names = [last if name == "last" else name for name in inputs]
        built.append(helper.make_node(op, names, [output], name=f"n{at}", **attributes))
        last = output
    graph = helper.make_graph(
        built, "chain",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 6])], [helper.make_tensor_value_info("out", 0, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    graph.output[0].CopyFrom(onnx.ValueInfoProto(name="out"))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


RELU = ("Relu", ["last"], {})
ARGMAX = ("ArgMax", ["last"], {"axis": 1, "keepdims": 0})
SOFTMAX = ("Softmax", ["last"], {})
CONSTANTS = {
    "columns": ints(1, 0),
    "start": ints(-99),
    "end": ints(-1),
    "first": ints(0),
    "second": ints(1),
    "each": floats(3, 6),
}


def test_operators_that_keep_the_order_of_the_scores_are_left_out() -> None:
    to_int32 = ("Cast", ["last"], {"to": onnx.TensorProto.INT32})
    names = ("Gather", ["names", "last"], {})
    network = network_of(score_model([RELU, SOFTMAX, ARGMAX, names, to_int32], names=np.arange(6) * 2), floats(3, 6))
    assert [node.op for node in network.nodes] == ["Relu"]
    assert network.head == ("Cast", "Gather", "ArgMax", "Softmax")
    assert network.classes is not None
    assert network.classes.tolist() == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([RELU, ("Softmax", ["last"], {"axis": 0})], "n1' is Softmax: it works along axis 0"),
        ([RELU, ("ArgMax", ["last"], {"axis": 0})], "n1' is ArgMax"),
        # Probabilities in half precision may be equal where scores differ.
        ([SOFTMAX, ("Cast", ["last"], {"to": onnx.TensorProto.FLOAT16}), ARGMAX], "n0' is Softmax: it is covered only"),
        ([SOFTMAX, ("Gather", ["last", "columns"], {"axis": 1})], "n0' is Softmax: it is covered only where"),
        ([("Transpose", ["last"], {"perm": [1, 0]}), RELU], "first axis is not that of the rows"),
        ([("ReduceSum", ["last"], {"keepdims": 1})], "first axis is not that of the rows"),
        ([("Slice", ["last", "end", "start", "first", "end"], {})], "it moves values between rows"),
        # Of many classes, probabilities that differ are equal after a second normalization.
        ([RELU, SOFTMAX, SOFTMAX], "n1' is Softmax: it is covered only where"),
        ([RELU, SOFTMAX, ("LogSoftmax", ["last"], {})], "n1' is Softmax: it is covered only where"),
        # What depends on the number of rows is no constant.
        ([("Shape", ["x"], {"end": 1}), ("Cast", ["last"], {"to": 1}), ("Add", ["x", "last"], {})], "number of rows"),
        ([("Shape", ["x"], {"end": 1}), ("Slice", ["x", "first", "last", "second"], {})], "number of rows"),
        ([("Pow", ["last", "second"], {})], "n0' is Pow: its exponent is not 2 or 3"),
        ([("Add", ["last", "each"], {})], "runs with 3 rows and fails with 7"),
    ],
)  # fmt: skip
def test_what_changes_the_order_or_mixes_rows_is_refused(nodes: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        network_of(score_model(nodes, **CONSTANTS), floats(3, 6))


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean", "Abs", "Clip", "Max", "Mul", "MatMul"])
def test_arithmetic_of_whole_numbers_is_refused(op: str) -> None:
    inputs = {"Mul": ["last", "last"], "MatMul": ["last", "weight"], "ReduceSum": ["last", "second"],
              "ReduceMean": ["last", "second"]}.get(op, ["last"])  # fmt: skip
    nodes = [(op, inputs, {}), ("Cast", ["last"], {"to": 1})]
    model = score_model(nodes, weight=np.ones((6, 2), np.int32), second=ints(1))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32
    with pytest.raises(ArtifactError, match=f"n0' is {op}: it computes in int32"):
        network_of(model, np.ones((3, 6), np.int32))


def test_constants_of_a_batch_of_fixed_size_may_not_differ_between_its_rows() -> None:
    model = score_model([("Sum", ["last", "each"], {})], each=floats(3, 6))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    with pytest.raises(ArtifactError, match="n0' is Sum: a constant of it differs between the rows of a batch"):
        network_of(model, floats(3, 6))


def test_a_new_axis_of_a_batch_of_one_row_is_refused() -> None:
    model = score_model([("Mul", ["last", "each"], {}), ("Flatten", ["last"], {})], each=floats(1, 1, 6))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(ArtifactError, match="n0' is Mul: it broadcasts its input along a new axis"):
        network_of(model, floats(5, 6))


def test_sparse_weights_are_refused_by_name() -> None:
    model = score_model([("MatMul", ["last", "weight"], {})])
    values = helper.make_tensor("weight", FLOAT, [2], [1.0, 2.0])
    indices = helper.make_tensor("places", onnx.TensorProto.INT64, [2], [0, 7])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [6, 2]))
    with pytest.raises(ArtifactError, match="artifact has sparse weights"):
        network_of(model, floats(3, 6))


def test_a_sparse_constant_is_refused_by_name() -> None:
    values = helper.make_tensor("values", FLOAT, [2], [1.0, 2.0])
    sparse = helper.make_sparse_tensor(
        values, helper.make_tensor("places", onnx.TensorProto.INT64, [2], [0, 7]), [6, 2]
    )
    nodes = [("Constant", [], {"sparse_value": sparse}), ("MatMul", ["x", "last"], {})]
    with pytest.raises(ArtifactError, match=r"sparse weights \('v0'\)"):
        network_of(score_model(nodes), floats(3, 6))


def test_values_that_overflow_are_named() -> None:
    with pytest.raises(ArtifactError, match="n0' is Mul: its values are NaN or infinite"):
        network_of(score_model([("Mul", ["last", "huge"], {}), RELU], huge=np.float32(3e38)), 9 + floats(3, 6))


def test_tables_of_labels_are_applied_one_after_another() -> None:
    nodes = [RELU, ARGMAX, ("Gather", ["places", "last"], {}), ("Gather", ["names", "last"], {})]
    network = network_of(score_model(nodes, places=ints(5, 4, 3, 2, 1, 0), names=ints(*range(10, 16))), floats(3, 6))
    assert network.classes is not None
    assert network.classes.tolist() == [15, 14, 13, 12, 11, 10]


def test_a_shape_that_the_graph_computes_from_the_number_of_rows_is_folded() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], start=0, end=1), helper.make_node("Concat", ["s", "six"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["r"]), helper.make_node("Relu", ["r"], ["out"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, ["n", 2, 3])],
        [helper.make_tensor_value_info("out", FLOAT, ["n", 6])], [numpy_helper.from_array(ints(6), "six")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert network_of(model, floats(5, 2, 3)).output_shape == (6,)


def test_every_batch_of_a_fixed_size_has_the_bounds_of_its_rows() -> None:
    model = Case("Gemm", ["x", "w", "b"], (5,), W).model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    network = network_of(model, floats(1, 5))
    assert interval_bounds(network, Box(np.zeros((7, 5)), np.ones((7, 5)))).boxes["out"].lower.shape == (7, 4)
