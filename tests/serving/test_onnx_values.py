"""Sequences, maps and optional values as arrays and back, by themselves and through onnxruntime."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pytest_modelserve.artifacts import TensorSpec
from pytest_modelserve.errors import ArtifactError, InputError
from pytest_modelserve.serving import OnnxPredictor
from pytest_modelserve.serving.onnx_predictor import as_arrays, as_value, split_inputs

NODE = helper.make_node
FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
X = np.array([[0.25, 0.75], [0.5, 0.125]], np.float32)


def listed(arrays):
    return {name: (array.tolist(), array.dtype.name, array.shape) for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("dtype", "value", "arrays"),
    [
        ("float32", X[0], {"y": ([0.25, 0.75], "float32", (2,))}),
        (
            "sequence(map(int64, float32))",
            [{3: 0.75, 1: 0.25}, {1: 0.5, 3: 0.125}],
            {"y.keys": ([1, 3], "int64", (2,)), "y": ([[0.25, 0.75], [0.5, 0.125]], "float32", (2, 2))},
        ),
        (
            "sequence(map(str, float32))",
            [{"b": 0.75, "a": 0.25}],
            {"y.keys": (["a", "b"], "object", (2,)), "y": ([[0.25, 0.75]], "float32", (1, 2))},
        ),
        ("sequence(map(int64, float32))", [], {"y.keys": ([], "int64", (0,)), "y": ([], "float32", (0, 0))}),
        ("map(int64, str)", {2: "x", 1: "z"}, {"y.keys": ([1, 2], "int64", (2,)), "y": (["z", "x"], "object", (2,))}),
        (
            "sequence(float32)",
            [X[0], X[:0]],
            {"y.length": (2, "int64", ()), "y[0]": ([0.25, 0.75], "float32", (2,)), "y[1]": ([], "float32", (0, 2))},
        ),
        ("sequence(float32)", [], {"y.length": (0, "int64", ())}),
        ("optional(float32)", None, {"y.present": (False, "bool", ())}),
        ("optional(float32)", X[0], {"y.present": (True, "bool", ()), "y": ([0.25, 0.75], "float32", (2,))}),
        (
            "optional(sequence(float32))",
            [X[0]],
            {"y.present": (True, "bool", ()), "y.length": (1, "int64", ()), "y[0]": ([0.25, 0.75], "float32", (2,))},
        ),
    ],
)
def test_a_value_is_arrays_and_the_arrays_are_the_value(dtype, value, arrays):
    spec = TensorSpec("y", dtype, None)
    found = as_arrays(spec, value)
    assert listed(found) == arrays
    again = as_value(spec, found)
    assert listed(as_arrays(spec, again)) == arrays


def test_rows_with_other_keys_have_no_column():
    with pytest.raises(ArtifactError, match=r"'p': row 1 has the keys \[2\] and row 0 \[1\]"):
        as_arrays(TensorSpec("p", "sequence(map(int64, float32))", ()), [{1: 0.5}, {2: 0.5}])


@pytest.mark.parametrize(
    ("dtype", "arrays", "message"),
    [
        ("sequence(float32)", {}, "input 'y.length' is missing: it is part of a value that is not a tensor"),
        (
            "sequence(float32)",
            {"y.length": np.array(2), "y[0]": X},
            "input 'y[1]' is missing: it is part of a value that is not a tensor",
        ),
        ("sequence(float32)", {"y.length": np.array([1, 2])}, "input 'y.length' has shape [2] where one value"),
        (
            "sequence(float32)",
            {"y.length": np.array(1), "y[0]": X.astype(np.float64)},
            "input 'y[0]' has dtype float64 where the model takes float32",
        ),
        ("map(int64, float32)", {"y.keys": np.array([1]), "y": X[0]}, "input 'y' has shape [2] where 'y.keys' has [1]"),
        ("optional(float32)", {"y.present": [True, [True]]}, "input 'y.present' is a list of items of different"),
    ],
)
def test_arrays_that_are_no_value_are_refused(dtype, arrays, message):
    with pytest.raises(InputError) as caught:
        as_value(TensorSpec("y", dtype, ()), arrays)
    assert str(caught.value).startswith(message)


def test_one_array_cannot_be_a_sequence():
    with pytest.raises(InputError, match="inputs must be a mapping from names to arrays: 's' cannot be a single array"):
        split_inputs(X, [TensorSpec("s", "sequence(float32)", ())])


def zip_map(**labels):
    key = TensorProto.STRING if "classlabels_strings" in labels else TensorProto.INT64
    kind = helper.make_sequence_type_proto(helper.make_map_type_proto(key, FLOATS))
    return [NODE("ZipMap", ["x"], ["p"], domain="ai.onnx.ml", **labels)], [helper.make_value_info("p", kind)]


@pytest.mark.parametrize(
    ("labels", "keys", "columns"),
    [
        ({"classlabels_strings": ["no", "yes"]}, ["no", "yes"], [0, 1]),
        ({"classlabels_strings": ["yes", "no"]}, ["no", "yes"], [1, 0]),
        ({"classlabels_int64s": [7, 5]}, [5, 7], [1, 0]),
    ],
)
def test_scores_of_a_converted_classifier_are_a_matrix_beside_its_classes(onnx_file, labels, keys, columns):
    nodes, outputs = zip_map(**labels)
    path = onnx_file(nodes, {"x": ("float32", ["n", 2])}, outputs, domains=["ai.onnx.ml"])
    answers = OnnxPredictor(path).predict(X)
    assert list(answers) == ["p.keys", "p"]
    assert answers["p.keys"].tolist() == keys
    np.testing.assert_array_equal(answers["p"], X[:, columns], strict=True)


def test_sequences_and_optional_values_come_out_beside_tensors(onnx_file):
    path = onnx_file(
        [NODE("SequenceConstruct", ["x", "x"], ["s"]), NODE("Optional", ["x"], ["o"]), NODE("Neg", ["x"], ["y"])],
        {"x": ("float32", ["n", 2])},
        [
            helper.make_value_info("s", helper.make_sequence_type_proto(FLOATS)),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2]),
            helper.make_value_info("o", helper.make_optional_type_proto(FLOATS)),
        ],
    )
    answers = OnnxPredictor(path).predict(X)
    assert list(answers) == ["s.length", "s[0]", "s[1]", "y", "o.present", "o"]
    np.testing.assert_array_equal(answers["s[1]"], X)
    np.testing.assert_array_equal(answers["y"], -X)


def test_what_comes_out_as_a_sequence_goes_in_as_one(onnx_file):
    kind = helper.make_sequence_type_proto(FLOATS)
    path = onnx_file([NODE("SequenceAt", ["s", "i"], ["y"])], {}, {"y": ("float32", None)})
    model = onnx.load(path)
    model.graph.input.extend(
        [helper.make_value_info("s", kind), helper.make_tensor_value_info("i", TensorProto.INT64, [])]
    )
    onnx.save(model, path)
    predictor = OnnxPredictor(path)
    inputs = {"s.length": np.array(2), "s[0]": X[0], "s[1]": X[1], "i": np.array(1)}
    np.testing.assert_array_equal(predictor.predict(inputs)["y"], X[1])
    with pytest.raises(InputError, match=r"input 's\[1\]' is missing"):
        predictor.predict({name: array for name, array in inputs.items() if name != "s[1]"})
    with pytest.raises(InputError, match=r"unknown input 'j'"):
        predictor.predict({**inputs, "j": X})


@pytest.mark.parametrize("present", [True, False])
def test_an_optional_input_may_be_absent(onnx_file, present):
    path = onnx_file([NODE("OptionalHasElement", ["o"], ["y"])], {}, {"y": ("bool", [])})
    model = onnx.load(path)
    model.graph.input.append(helper.make_value_info("o", helper.make_optional_type_proto(FLOATS)))
    onnx.save(model, path)
    inputs = {"o.present": np.array(present), **({"o": X} if present else {})}
    assert OnnxPredictor(path).predict(inputs)["y"].item() is present


NARROW = ["bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "int4", "uint4"]
NARROW += ["int2", "uint2"]


def cast(onnx_file, source, target, *, name):
    kinds = [helper.np_dtype_to_tensor_dtype(np.dtype(getattr(ml_dtypes, dtype, dtype))) for dtype in (source, target)]
    path = onnx_file([NODE("Cast", ["x"], ["y"], to=kinds[1])], {}, [], opset=25, name=name)
    model = onnx.load(path)
    model.ir_version = 13
    model.graph.input.append(helper.make_tensor_value_info("x", kinds[0], ["a", "b"]))
    model.graph.output.append(helper.make_tensor_value_info("y", kinds[1], ["a", "b"]))
    onnx.save(model, path)
    return OnnxPredictor(path)


@pytest.mark.parametrize("dtype", NARROW)
def test_numbers_of_ml_dtypes_come_out_and_go_in(onnx_file, dtype):
    values = np.array([[1, 0, 0], [1, 0, 1], [0, 1, 1]], np.float32)  # nine: an odd number of packed elements
    kind = np.dtype(getattr(ml_dtypes, dtype))
    answer = cast(onnx_file, "float32", dtype, name="out").predict(values)["y"]
    assert answer.dtype == kind
    np.testing.assert_array_equal(answer.astype(np.float32), values)
    back = cast(onnx_file, dtype, "float32", name="in")
    np.testing.assert_array_equal(back.predict(answer)["y"], values)
    np.testing.assert_array_equal(back.predict(np.asfortranarray(answer))["y"], values)
    assert cast(onnx_file, "float32", dtype, name="out").predict(values[:0])["y"].shape == (0, 3)


@pytest.mark.parametrize(("dtype", "values"), [("int4", [-8, 7, -1]), ("uint4", [0, 15, 8]), ("int2", [-2, 1, -1])])
def test_packed_integers_keep_their_signs(onnx_file, dtype, values):
    given = np.array([values], np.float32)
    answer = cast(onnx_file, "float32", dtype, name="out").predict(given)["y"]
    assert answer.astype(np.int64).tolist() == [values]
    np.testing.assert_array_equal(cast(onnx_file, dtype, "float32", name="in").predict(answer)["y"], given)


def test_an_output_in_bfloat16_outlives_the_session(onnx_file):
    predictor = cast(onnx_file, "float32", "bfloat16", name="out")
    first = predictor.predict(X)["y"]
    predictor.predict(X + 100)
    predictor.close()
    np.testing.assert_array_equal(first.astype(np.float32), X)
