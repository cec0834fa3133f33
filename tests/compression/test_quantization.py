"""The recipes that quantize weights only: int8-dynamic and int4-weights."""

import logging
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_modelserve.compression import compress
from pytest_modelserve.errors import MissingDependencyError, RecipeError

ROW = {"x": ["batch", 64]}
WEIGHTS_ONLY = ["int8-dynamic", "int4-weights"]
BATCH_NOTE = (
    "activations are rounded by the range of the whole batch: the output of a row depends, within that rounding, on the "
    "other rows of its batch"
)


@pytest.fixture
def wide(saved, weight):
    """One product with 64 inputs and 64 outputs, of which the weights can be given."""

    def save(weights=None):
        given = weight(64, 64) if weights is None else weights
        dtype = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16}
        return saved(
            [("MatMul", ["x", "w"], "y", {})], ROW, {"y": ["batch", 64]}, {"w": given}, dtype=dtype[given.dtype.name]
        )

    return save


@pytest.mark.parametrize(
    ("recipe", "ratio", "db", "operators", "notes"),
    [
        (
            "int8-dynamic",
            (3.5, 4),
            30,
            {"Cast": 1, "DynamicQuantizeLinear": 1, "MatMulInteger": 1, "Mul": 2},
            (BATCH_NOTE,),
        ),
        ("int4-weights", (6, 7), 18, {"MatMulNBits": 1}, ()),
    ],
)
def test_weights_shrink_and_outputs_stay_close(
    wide, store, noise_db, weight, capfd, caplog, recipe, ratio, db, operators, notes
):
    source = wide()
    root = logging.getLogger()
    before = (list(root.handlers), list(root.filters))
    with caplog.at_level(logging.INFO):
        small = compress(source, recipe, store=store)
    assert (root.handlers, root.filters) == before
    assert not [record for record in caplog.records if record.name.startswith("onnxruntime")]
    assert capfd.readouterr() == ("", "")
    assert (small.variant, small.signature) == (recipe, source.signature)
    assert source.initializer_bytes / ratio[1] < small.initializer_bytes < source.initializer_bytes / ratio[0]
    assert noise_db(small, source, weight(32, 64))["y"] > db
    step = small.lineage[-1]
    assert (step.stage, step.parent, step.notes) == ("compression", source.sha256, notes)
    assert step.settings["recipe"] == recipe
    assert step.settings["nodes_before"] == {"MatMul": 1}
    assert step.settings["nodes_after"] == operators
    assert set(step.versions) == {"onnx", "onnxruntime"}


@pytest.mark.parametrize(
    ("recipe", "operator", "kernel"),
    [
        ("int8-dynamic", "Conv", (3, 2, 1)),
        ("int8-dynamic", "ConvTranspose", (2, 3, 1)),
        ("int4-weights", "Conv", (3, 2, 1)),
    ],
)
def test_layers_that_stay_in_float_are_noted(saved, store, weight, recipe, operator, kernel):
    nodes = [(operator, ["x", "k"], "h", {}), ("MatMul", ["h", "w"], "y", {})]
    weights = {"k": weight(*kernel), "w": weight(8, 4)}
    small = compress(saved(nodes, {"x": ["batch", 2, 8]}, {"y": ["batch", 3, 4]}, weights), recipe, store=store)
    assert small.lineage[-1].notes[0] == f"left in float: {operator} ×1 (node_h)"
    assert small.lineage[-1].settings["nodes_after"][operator] == 1


def test_gemm_with_a_factor_stays_in_float_in_int4(saved, store, weight):
    """No MatMul can express the factor."""
    nodes = [("Gemm", ["x", "w"], "h", {"alpha": 0.5}), ("MatMul", ["h", "v"], "y", {})]
    source = saved(nodes, ROW, {"y": None}, {"w": weight(64, 64), "v": weight(64, 8)})
    assert compress(source, "int4-weights", store=store).lineage[-1].notes == ("left in float: Gemm ×1 (node_h)",)


@pytest.mark.parametrize(
    ("recipe", "shape", "note"),
    [
        ("int8-dynamic", (1, 1), "initializers did not shrink: 4 bytes before, 6 after"),
        ("int4-weights", (2, 4), "initializers did not shrink: 32 bytes before, 84 after"),
    ],
)
def test_model_that_does_not_shrink_is_noted(saved, store, weight, recipe, shape, note):
    ends = {"x": ["batch", shape[0]]}, {"y": ["batch", shape[1]]}
    source = saved([("MatMul", ["x", "w"], "y", {})], *ends, {"w": weight(*shape)})
    assert note in compress(source, recipe, store=store).lineage[-1].notes


@pytest.mark.parametrize("recipe", WEIGHTS_ONLY)
def test_model_without_products_is_refused(saved, refusal, weight, recipe):
    operators = {"int8-dynamic": "MatMul, Gemm, LSTM or Gather", "int4-weights": "MatMul or Gemm"}[recipe]
    source = saved([("Conv", ["x", "k"], "y", {})], {"x": ["batch", 2, 8]}, {"y": None}, {"k": weight(3, 2, 1)})
    assert refusal(source, recipe) == (
        f"recipe '{recipe}' on net / fp32: there is nothing to quantize: no {operators} with constant float32 weights "
        "among Conv ×1; 'int8-static' quantizes convolutions"
    )


@pytest.mark.parametrize(
    ("recipe", "value", "reason"),
    [
        ("int8-dynamic", np.float32(np.nan), "initializer 'w' holds 1 NaN, so it has no int8 form"),
        # onnxruntime's quantizer makes zeros of the block and reports success.
        ("int4-weights", np.float32(np.nan), "initializer 'w' holds 1 NaN, so it has no int4 form"),
        (
            "int8-dynamic",
            np.float32(np.inf),
            "'w_scale' became NaN or infinite: the weights behind it are infinite or too large",
        ),
        ("int4-weights", np.float32(np.inf), "no int4 scale for 'w': it holds infinite values, or ones too large"),
        (
            "int8-dynamic",
            np.float16(1),
            "the weights are float16 and quantization needs float32: quantize the fp32 model",
        ),
        (
            "int8-dynamic",
            np.float64(1),
            "there is nothing to quantize: no MatMul, Gemm, LSTM or Gather with constant float32 weights among MatMul ×1; "
            "its weights are float64: export the model in float32",
        ),
        ("int4-weights", np.float64(1), "the weights of MatMul 'node_y' are float64: export the model in float32"),
    ],
)
def test_weights_that_cannot_be_quantized_are_refused_by_name(wide, refusal, weight, recipe, value, reason):
    weights = weight(64, 64).astype(value.dtype)
    weights[3, 5] = value
    assert refusal(wide(weights), recipe) == f"recipe '{recipe}' on net / fp32: {reason}"


@pytest.mark.parametrize("second", WEIGHTS_ONLY)
@pytest.mark.parametrize(
    ("first", "operators"),
    [("int4-weights", "MatMulNBits ×1"), ("int8-dynamic", "DynamicQuantizeLinear ×1, MatMulInteger ×1")],
)
def test_quantizing_twice_is_refused(wide, store, first, second, operators):
    small = compress(wide(), first, store=store)
    with pytest.raises(RecipeError) as caught:
        compress(small, second, store=store)
    assert str(caught.value) == (
        f"recipe '{second}' on net / {first}: the model is quantized already ({operators}): quantize its source"
    )


def test_output_of_a_row_depends_on_its_batch_in_int8_dynamic(mlp, store, outputs_of, weight):
    """One scale for the whole batch: a large row takes the steps of a small one. In fp32 rows are independent."""
    source = mlp()
    small = compress(source, "int8-dynamic", store=store)
    row = weight(1, 8)
    batch = np.concatenate([row, row * np.float32(50)])

    def change(artifact):
        return np.abs(outputs_of(artifact, row)["y"] - outputs_of(artifact, batch)["y"][:1]).max()

    assert change(source) < 1e-5
    assert change(small) > 0.1


def test_lookup_alone_does_not_depend_on_its_batch(saved, store, weight):
    nodes = [("Cast", ["x"], "ids", {"to": TensorProto.INT64}), ("Gather", ["table", "ids"], "y", {})]
    source = saved(nodes, {"x": ["batch"]}, {"y": None}, {"table": weight(9, 8)})
    assert BATCH_NOTE not in compress(source, "int8-dynamic", store=store).lineage[-1].notes


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_is_quantized_to_int4(saved, store, noise_db, weight, transposed):
    """onnxruntime's quantizer by itself quantizes nothing here and reports success."""
    weights = {"w": weight(16, 64) if transposed else weight(64, 16), "b": weight(16)}
    nodes = [("Gemm", ["x", "w", "b"], "y", {"transB": transposed})]
    source = saved(nodes, ROW, {"y": ["batch", 16]}, weights)
    small = compress(source, "int4-weights", store=store)
    assert small.lineage[-1].settings["nodes_after"] == {"Add": 1, "MatMulNBits": 1}
    assert noise_db(small, source, weight(32, 64))["y"] > 18


def test_two_layers_with_one_weight_stay_right(saved, store, noise_db, weight):
    nodes = [("Gemm", ["x", "w"], "h", {"transB": 1}), ("Gemm", ["h", "w"], "y", {})]
    source = saved(nodes, ROW, {"y": ["batch", 64]}, {"w": weight(64, 64)})
    small = compress(source, "int4-weights", store=store)
    assert small.lineage[-1].settings["nodes_after"] == {"MatMulNBits": 2}
    assert noise_db(small, source, weight(32, 64))["y"] > 15


def test_missing_onnx_ir_names_the_extra(wide, store, monkeypatch):
    monkeypatch.delitem(sys.modules, "onnxruntime.quantization.matmul_nbits_quantizer", raising=False)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(MissingDependencyError, match=r"needs onnx-ir.*pip install 'pytest-modelserve\[compress\]'"):
        compress(wide(), "int4-weights", store=store)


def test_importing_the_quantizer_leaves_the_root_logger_as_it_was(wide, store, monkeypatch):
    """It calls logging.basicConfig: every INFO of the process would go to standard error from then on."""
    root = logging.getLogger()
    level = root.level
    monkeypatch.delitem(sys.modules, "onnxruntime.quantization.matmul_nbits_quantizer", raising=False)
    monkeypatch.setattr(root, "handlers", [])
    compress(wide(), "int4-weights", store=store)
    assert (root.handlers, root.level) == ([], level)


def body(nodes, inputs, outputs, weights):
    def values(shapes):
        return [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in shapes.items()]

    made = [helper.make_node(op, takes, [gives], name=f"node_{gives}", **rest) for op, takes, gives, rest in nodes]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    return helper.make_graph(made, "body", values(inputs), values(outputs), stored)


@pytest.fixture
def branching(saved, weight):
    """A layer in each branch: the weights of one are stored outside, those of the other inside."""
    floats = (TensorProto.FLOAT, ["batch", 32])
    one = body([("Gemm", ["x", "w", "b"], "a", {"transB": 1})], {}, {"a": floats}, {})
    other = body([("MatMul", ["x", "v"], "c", {})], {}, {"c": floats}, {"v": weight(64, 32)})
    nodes = [
        ("ReduceSum", ["x"], "sum", {"keepdims": 0}),
        ("Greater", ["sum", "zero"], "positive", {}),
        ("If", ["positive"], "y", {"then_branch": one, "else_branch": other}),
    ]
    weights = {"w": weight(32, 64), "b": weight(32), "zero": np.array(0, np.float32)}
    return saved(nodes, ROW, {"y": ["batch", 32]}, weights)


@pytest.fixture
def looping(saved, weight):
    """Three rounds of one layer."""
    nodes = [("MatMul", ["h", "w"], "m", {}), ("Tanh", ["m"], "next", {}), ("Identity", ["go"], "more", {})]
    floats, truth = (TensorProto.FLOAT, ["batch", 64]), (TensorProto.BOOL, [])
    inputs = {"i": (TensorProto.INT64, []), "go": truth, "h": floats}
    inner = body(nodes, inputs, {"more": truth, "next": floats}, {"w": weight(64, 64) / 8})
    weights = {"n": np.array(3), "yes": np.array(True)}
    return saved([("Loop", ["n", "yes", "x"], "y", {"body": inner})], ROW, {"y": ["batch", 64]}, weights)


@pytest.mark.parametrize(("recipe", "ratio", "db"), [("int8-dynamic", 0.3, 28), ("int4-weights", 0.25, 10)])
@pytest.mark.parametrize("kind", ["branching", "looping"])
def test_layers_in_branches_and_loops_are_quantized(kind, request, store, noise_db, weight, recipe, ratio, db):
    source = request.getfixturevalue(kind)
    small = compress(source, recipe, store=store)
    assert small.initializer_bytes < ratio * source.initializer_bytes
    for rows in (np.abs(weight(16, 64)), -np.abs(weight(16, 64))):  # each branch once
        assert noise_db(small, source, rows)["y"] > db


def test_layer_in_a_branch_can_stay_in_float(branching, store):
    small = compress(branching, "int8-dynamic", exclude="node_c", store=store)
    assert small.lineage[-1].notes[0] == "left in float: MatMul ×1 (node_c)"


def test_int8_static_says_that_it_does_not_enter_branches(branching, refusal, weight):
    assert refusal(branching, "int8-static", calibration=weight(8, 64)) == (
        "recipe 'int8-static' on net / fp32: there is nothing to quantize: no operator with constant float32 weights "
        "among Gemm ×1, Greater ×1, If ×1, MatMul ×1, ReduceSum ×1; int8-static does not quantize inside branches and "
        "loops (If 'node_y'): use 'int8-dynamic', which enters them"
    )


def test_weights_of_which_one_column_vanishes_are_refused_with_the_channel(mlp, refusal, store, weight):
    """int8-dynamic has one scale a weight: beside a column 100,000 times larger, another becomes 0."""
    weights = weight(32, 4)
    weights[:, 2] *= 1e-5
    source = mlp(w2=weights, b2=np.zeros(4, np.float32))
    message = refusal(source, "int8-dynamic")
    assert "output 'y' channel 2 of axis 1: channel 2 is 0 where the reference goes from " in message
    assert "exclude= with the first nodes of sensitivity(artifact, recipe, rows)" in message
    assert compress(source, "int8-dynamic", exclude="node_y", store=store).variant == "int8-dynamic"
