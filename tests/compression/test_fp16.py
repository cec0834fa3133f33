import ast
import re
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_modelserve.artifacts import load_model, save_artifact
from pytest_modelserve.compression import compress
from pytest_modelserve.compression.fp16 import unrepresentable_constants
from pytest_modelserve.errors import RecipeError

ROW = {"x": ["batch", 8]}


def scalar(value):
    return np.array(value, np.float32)


def dtypes(artifact):
    return {tensor.name: numpy_helper.to_array(tensor).dtype.name for tensor in load_model(artifact).graph.initializer}


def test_weights_take_half_the_space_and_outputs_stay_close(mlp, store, noise_db, weight):
    source = mlp()
    small = compress(source, "fp16", store=store)
    assert (small.variant, small.signature) == ("fp16", source.signature)
    assert small.initializer_bytes == source.initializer_bytes / 2
    assert noise_db(small, source, weight(64, 8))["y"] > 60
    assert small.lineage[-1].notes == ()


def test_result_is_in_the_order_that_onnx_demands(mlp, store):
    onnx.checker.check_model(load_model(compress(mlp(b1=np.full(32, 1e-12, np.float32)), "fp16", store=store)))


@pytest.fixture
def there_and_back(saved, weight):
    """x · c / c in front of a layer: with onnxruntime's converter alone, 0.21 becomes 3172 for c = 1e9."""

    def save(c, nodes=(), weights=None):
        given = {"c": scalar(c), "w": weight(8, 8)} if weights is None else weights
        chain = [
            *nodes,
            ("Mul", ["x", "c"], "large", {}),
            ("Unsqueeze", ["large", "one"], "wide", {}),
            ("Squeeze", ["wide", "one"], "narrow", {}),
            ("Div", ["narrow", "d"], "same", {}),
            ("MatMul", ["same", "w"], "y", {}),
        ]
        return saved(chain, ROW, {"y": ["batch", 8]}, {**given, "d": scalar(c), "one": np.array([1])})

    return save


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (1e9, "holds 1e+09, beyond the largest fp16, 65504"),
        (-3.4e38, "holds 3.4e+38, beyond the largest fp16, 65504"),
        (1e-12, "holds 1e-12, below the smallest fp16, 5.96e-08"),
    ],
)
def test_constant_that_would_be_clamped_keeps_its_nodes_in_fp32(there_and_back, store, noise_db, weight, value, reason):
    source = there_and_back(value)
    x = weight(5, 8) * scalar(0.1)
    small = compress(source, "fp16", store=store)
    assert noise_db(small, source, x)["y"] > 55
    assert dtypes(small) == {"c": "float32", "d": "float32", "w": "float16", "one": "int64"}
    # One cast before the layer in fp16 and one after: the CPU provider hides it if there are more on the way.
    assert small.lineage[-1].settings["nodes_after"]["Cast"] == 2
    assert "Identity" not in small.lineage[-1].settings["nodes_after"]
    assert small.lineage[-1].notes == (
        "left in fp32: Mul 'node_large', Unsqueeze 'node_wide', Squeeze 'node_narrow', Div 'node_same', because "
        f"'c' {reason}; 'd' {reason}",
    )


def test_output_of_a_node_in_fp32_does_not_pass_through_fp16(saved, store, noise_db, weight):
    nodes = [("MatMul", ["x", "w"], "h", {}), ("Mul", ["h", "c"], "y", {})]
    source = saved(nodes, ROW, {"y": ["batch", 8]}, {"w": weight(8, 8), "c": scalar(1e9)})
    small = compress(source, "fp16", store=store)
    assert small.lineage[-1].settings["nodes_after"] == {"Cast": 2, "Identity": 1, "MatMul": 1, "Mul": 1}
    assert noise_db(small, source, weight(5, 8))["y"] > 55


@pytest.mark.parametrize(
    "attributes", [{"value_float": 1e9}, {"value": numpy_helper.from_array(scalar(1e9))}, {"value_floats": [1e9]}]
)
def test_constants_in_nodes_are_seen_too(there_and_back, store, noise_db, weight, attributes):
    source = there_and_back(1e9, [("Constant", [], "c", attributes)], {"w": weight(8, 8)})
    small = compress(source, "fp16", store=store)
    assert noise_db(small, source, weight(5, 8) * scalar(0.1))["y"] > 55


def test_constant_of_shape_is_seen_too(saved, store, outputs_of, weight):
    """A mask of the lowest float32 number, as torch writes it: in fp16 the row would be -65504 and no mask to 1e5."""
    nodes = [
        ("Shape", ["x"], "shape", {}),
        ("ConstantOfShape", ["shape"], "low", {"value": numpy_helper.from_array(np.array([-3e38], np.float32))}),
        ("Where", ["x_is_low", "low", "x"], "masked", {}),
        ("Softmax", ["masked"], "soft", {}),
        ("MatMul", ["soft", "w"], "y", {}),
    ]
    mask = np.array([True] * 4 + [False] * 4)
    source = saved(nodes, ROW, {"y": ["batch", 8]}, {"w": weight(8, 8), "x_is_low": mask})
    small = compress(source, "fp16", store=store)
    assert small.lineage[-1].notes == (
        "left in fp32: ConstantOfShape 'node_low', Where 'node_masked', Softmax 'node_soft', because "
        "'low' holds 3e+38, beyond the largest fp16, 65504",
    )
    x = weight(3, 8)
    np.testing.assert_allclose(outputs_of(small, x)["y"], outputs_of(source, x)["y"], atol=5e-3)


def test_nodes_without_names_stay_in_fp32_as_well(store, tmp_path, weight, noise_db):
    nodes = [
        helper.make_node("Mul", ["x", "c"], ["h"]),
        helper.make_node("Div", ["h", "c"], ["z"]),
        helper.make_node("MatMul", ["z", "w"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8]) for name in "xy"]
    stored = [numpy_helper.from_array(scalar(1e9), "c"), numpy_helper.from_array(weight(8, 8), "w")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    source = save_artifact(model, tmp_path / "net.onnx", name="net", variant="", lineage=())
    small = compress(source, "fp16", store=store)
    assert small.lineage[-1].notes[0].startswith("left in fp32: Mul 'Mul_h', Div 'Div_z', because")
    assert dtypes(small) == {"c": "float32", "w": "float16"}
    assert noise_db(small, source, weight(5, 8) * scalar(0.1))["y"] > 55


def test_infinities_stay_what_they_are(saved, store, outputs_of, weight):
    mask = np.array([0, -np.inf] * 4, np.float32)
    nodes = [("MatMul", ["x", "w"], "h", {}), ("Add", ["h", "mask"], "m", {}), ("Softmax", ["m"], "y", {})]
    small = compress(saved(nodes, ROW, {"y": ["batch", 8]}, {"w": weight(8, 8), "mask": mask}), "fp16", store=store)
    assert small.lineage[-1].notes == ()
    assert (outputs_of(small, weight(3, 8))["y"][:, 1::2] == 0).all()


def test_few_tiny_weights_of_a_sum_are_noted_and_become_fp16(mlp, store, weight):
    weights = weight(32, 4)
    weights[0, :2] = 1e-9, -1e-30
    small = compress(mlp(w2=weights), "fp16", store=store)
    assert dtypes(small)["w2"] == "float16"
    assert small.lineage[-1].notes == (
        "2 of the 128 values of 'w2' became ±5.96e-08, the smallest fp16: negligible against the other values",
    )


def test_lookup_table_with_a_few_tiny_values_becomes_fp16(saved, store, weight):
    """Also transposed, as the table of a language model is read a second time."""
    table = weight(50, 8)
    table[3, 3] = 3e-8
    nodes = [
        ("Cast", ["x"], "ids", {"to": TensorProto.INT64}),
        ("Gather", ["table", "ids"], "found", {}),
        ("Transpose", ["table"], "turned", {"perm": [1, 0]}),
        ("MatMul", ["found", "turned"], "y", {}),
    ]
    source = saved(nodes, {"x": ["batch"]}, {"y": ["batch", 50]}, {"table": table})
    small = compress(source, "fp16", store=store)
    assert small.initializer_bytes == source.initializer_bytes / 2
    assert small.lineage[-1].notes[0] == (
        "1 of the 400 values of 'table' became ±5.96e-08, the smallest fp16: negligible against the other values"
    )


@pytest.mark.parametrize(("op", "name"), [("Div", "float32"), ("Mul", "float16"), ("Add", "float16")])
def test_tiny_value_beside_large_ones_matters_where_a_node_divides_by_it(saved, store, weight, op, name):
    factors = np.ones(8, np.float32)
    factors[2] = 1e-8
    nodes = [("MatMul", ["x", "w"], "h", {}), (op, ["h", "c"], "y", {})]
    source = saved(nodes, ROW, {"y": ["batch", 8]}, {"w": weight(8, 8) * scalar(1e-4), "c": factors})
    assert dtypes(compress(source, "fp16", store=store))["c"] == name


def test_weights_that_are_all_tiny_stay_in_fp32(mlp, store):
    small = compress(mlp(w2=np.full((32, 4), 1e-9, np.float32)), "fp16", store=store)
    assert dtypes(small) == {"w1": "float16", "b1": "float16", "w2": "float32", "b2": "float32"}


def test_largest_and_smallest_fp16_numbers_are_no_clamp(mlp):
    assert unrepresentable_constants(load_model(mlp(b1=np.full(32, 65504, np.float32)))) == ()
    assert unrepresentable_constants(load_model(mlp(b1=np.full(32, 2**-24, np.float32)))) == ()
    assert len(unrepresentable_constants(load_model(mlp(b1=np.full(32, 65505, np.float32))))) == 1


def test_operators_that_the_converter_never_converts_are_reported(saved, store, weight):
    nodes = [("MatMul", ["x", "w"], "h", {}), ("Max", ["h", "x"], "y", {})]
    small = compress(saved(nodes, ROW, {"y": ["batch", 8]}, {"w": weight(8, 8)}), "fp16", store=store)
    assert small.lineage[-1].notes == ("left in fp32, as onnxruntime's converter always does: Max ×1",)


def test_values_that_overflow_inside_or_at_the_end_are_refused(saved, refusal):
    """onnxruntime's CPU provider computes this in float32 and gives finite answers; a GPU does not."""
    weights = {"w": np.full((8, 8), 6e4, np.float32)}
    inside = saved(
        [("MatMul", ["x", "w"], "h", {}), ("MatMul", ["h", "w"], "y", {})], ROW, {"y": ["batch", 8]}, weights
    )
    assert refusal(inside, "fp16") == (
        "recipe 'fp16' on net / fp32: value 'h' of MatMul 'node_h' reaches 424386 on random inputs, beyond the largest "
        "fp16, 65504 (1 more values do): hardware that computes in fp16 gets infinity; exclude=('node_h', 'node_y') "
        "leaves the nodes that write or read such values in fp32, or scale the inputs"
    )
    end = saved([("MatMul", ["x", "w"], "y", {})], ROW, {"y": ["batch", 8]}, weights)
    assert "value 'y' of MatMul 'node_y' reaches 424386 on random inputs" in refusal(end, "fp16")


@pytest.fixture
def root_mean_square(saved, weight):
    """A row over the root of its mean square, then a layer: the squares of a row of thousands are beyond fp16."""
    nodes = [
        ("Mul", ["x", "x"], "squares", {}),
        ("ReduceMean", ["squares", "last"], "mean", {}),
        ("Sqrt", ["mean"], "size", {}),
        ("Div", ["x", "size"], "unit", {}),
        ("MatMul", ["unit", "w"], "y", {}),
    ]
    weights = {"w": weight(8, 8), "last": np.array([1])}
    return lambda: saved(nodes, ROW, {"y": ["batch", 8]}, weights)


def test_overflow_is_found_on_the_rows_given_and_cured_by_the_exclusions_named(
    root_mean_square, store, refusal, noise_db, weight
):
    source, rows = root_mean_square(), weight(40, 8).clip(-2, 2) * scalar(1000)
    message = refusal(source, "fp16", calibration=rows)
    assert message.startswith(
        "recipe 'fp16' on net / fp32: value 'squares' of Mul 'node_squares' reaches 4e+06 on the calibration data"
    )
    excluded = ast.literal_eval(re.search(r"exclude=(\(.+?\))", message)[1])
    assert excluded == ("node_squares", "node_mean", "node_size")
    small = compress(source, "fp16", calibration=rows, exclude=excluded, store=store)
    assert dtypes(small)["w"] == "float16"
    assert noise_db(small, source, rows)["y"] > 60
    assert "calibration" in small.lineage[-1].settings
    assert compress(source, "fp16", store=store).lineage[-1].notes == ()  # nothing overflows on random rows


def test_value_that_leaves_an_excluded_node_for_fp16_is_found(root_mean_square, refusal, weight):
    rows = weight(40, 8).clip(-2, 2) * scalar(1000)
    message = refusal(root_mean_square(), "fp16", calibration=rows, exclude="node_squares")
    assert "value 'squares' of Mul 'node_squares' reaches 4e+06 on" in message


def test_truth_values_that_become_fp16_do_not_overflow(saved, store, weight):
    nodes = [
        ("Greater", ["x", "zero"], "positive", {}),
        ("Cast", ["positive"], "one_or_zero", {"to": TensorProto.FLOAT}),
        ("MatMul", ["one_or_zero", "w"], "y", {}),
    ]
    source = saved(nodes, ROW, {"y": ["batch", 8]}, {"w": weight(8, 8), "zero": scalar(0)})
    assert dtypes(compress(source, "fp16", store=store))["w"] == "float16"


def test_input_beyond_fp16_is_named(mlp, refusal, weight):
    rows = weight(4, 8)
    rows[2, 1] = 70_000
    assert "input 'x' reaches 70000 on the calibration data" in refusal(mlp(), "fp16", calibration=rows)


def test_overflow_on_random_inputs_does_not_count_if_rows_are_given(saved, store, weight):
    nodes = [("MatMul", ["x", "w"], "h", {}), ("MatMul", ["h", "v"], "y", {})]
    weights = {"w": np.full((8, 8), 6e4, np.float32), "v": weight(8, 8)}
    source = saved(nodes, ROW, {"y": ["batch", 8]}, weights)
    rows = weight(4, 8) * scalar(0.01)
    assert compress(source, "fp16", calibration=rows, store=store).variant == "fp16"


def test_transposed_inputs_on_which_onnxruntime_crashes_stay_in_fp32(saved, store, noise_db, weight):
    """onnxruntime 1.32 ends the process (SIGSEGV) on the fp16 form of this, at the level at which models are served."""
    nodes = [("Transpose", ["x"], "t", {"perm": [1, 0, 2]}), ("MatMul", ["t", "w"], "y", {})]
    source = saved(nodes, {"x": ["batch", 3, 8]}, {"y": None}, {"w": weight(8, 4)})
    small = compress(source, "fp16", store=store)
    assert dtypes(small) == {"w": "float16"}
    assert noise_db(small, source, weight(5, 3, 8))["y"] > 60
    assert small.lineage[-1].notes == (
        "left in fp32: Transpose 'node_t', because onnxruntime can crash on inputs that are transposed in fp16",
    )


def test_result_on_which_onnxruntime_crashes_is_refused(mlp, refusal, monkeypatch, tmp_path):
    (tmp_path / "crashing.py").write_text("import os\ndef crash(path): os.kill(os.getpid(), 11)")
    monkeypatch.syspath_prepend(tmp_path)
    module = sys.modules["pytest_modelserve.compression.compress"]  # whose name in the package is the function
    monkeypatch.setattr(module, "_OPENER", "crashing:crash")
    assert refusal(mlp(), "fp16") == (
        "recipe 'fp16' on net / fp32: onnxruntime crashes when it opens the result (killed by SIGSEGV), a fault of "
        "onnxruntime; leave this model in fp32. 'simplify' before helps some such models (a bidirectional RNN) and not "
        "others (a bidirectional GRU)"
    )


def test_constant_that_a_branch_reads_is_refused(saved, refusal, weight):
    def branch(name, op):
        node = helper.make_node(op, ["h", "c"], [name], name=f"node_{name}")
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    nodes = [
        ("MatMul", ["x", "w"], "h", {}),
        ("If", ["yes"], "y", {"then_branch": branch("product", "Mul"), "else_branch": branch("ratio", "Div")}),
    ]
    weights = {"w": weight(8, 8), "c": scalar(1e9), "yes": np.array(True)}
    assert refusal(saved(nodes, ROW, {"y": None}, weights), "fp16") == (
        "recipe 'fp16' on net / fp32: 'c' holds 1e+09, beyond the largest fp16, 65504, and Div 'node_ratio' reads it "
        "inside a branch or loop, where no node can stay in fp32: scale the constant, or leave this model in fp32"
    )


def test_tiny_constant_that_a_branch_adds_is_noted(saved, store, weight):
    def branch(name):
        node = helper.make_node("Add", ["h", "c"], [name], name=f"node_{name}")
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    nodes = [
        ("MatMul", ["x", "w"], "h", {}),
        ("If", ["yes"], "y", {"then_branch": branch("sum"), "else_branch": branch("other")}),
    ]
    weights = {"w": weight(8, 8), "c": scalar(3e-8), "yes": np.array(True)}
    small = compress(saved(nodes, ROW, {"y": ["batch", 8]}, weights), "fp16", store=store)
    assert small.lineage[-1].notes[0] == (
        "1 of the 1 values of 'c' became ±5.96e-08, the smallest fp16: a branch or loop adds it to values in fp16"
    )
    assert small.lineage[-1].notes[-1] == "not searched for overflow: values inside branches and loops (If 'node_y')"


def test_model_of_which_every_constant_is_too_small_is_refused_with_the_value(saved, refusal):
    weights = {"w": np.full((8, 8), 3e-8, np.float32)}
    source = saved([("MatMul", ["x", "w"], "y", {})], ROW, {"y": ["batch", 8]}, weights)
    assert refusal(source, "fp16") == (
        "recipe 'fp16' on net / fp32: no float32 initializer became fp16 among MatMul ×1; 'w' holds 3e-08, below the "
        "smallest fp16, 5.96e-08"
    )


def test_model_in_fp16_is_refused(mlp, store):
    with pytest.raises(RecipeError, match=r"recipe 'fp16' on net / fp16: the model is in fp16 already \(4"):
        compress(compress(mlp(), "fp16", store=store), "fp16", store=store)


def test_model_without_float32_weights_is_refused(mlp, refusal):
    shapes = {"w1": (8, 3), "b1": (3,), "w2": (3, 4), "b2": (4,)}
    source = mlp(**{name: np.ones(shape) for name, shape in shapes.items()})
    assert refusal(source, "fp16") == (
        "recipe 'fp16' on net / fp32: no float32 initializer became fp16 among Gemm ×2, Relu ×1; its weights "
        "are float64: export the model in float32"
    )
