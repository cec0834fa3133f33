"""Signature, lineage and label of a model."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pytest_modelserve._onnx.graph import dtype_name
from pytest_modelserve.artifacts import LineageStep, Signature, TensorSpec, signature_of
from pytest_modelserve.artifacts.metadata import METADATA_KEY, Label, elem_type, read_label, value_info, write_label
from pytest_modelserve.errors import ArtifactError, UsageError

ELEMENT_TYPES = [number for number in TensorProto.DataType.values() if number != TensorProto.UNDEFINED]


def _model(inputs, outputs, initializers=()):
    graph = helper.make_graph([], "graph", inputs, outputs, list(initializers))
    return helper.make_model(graph, ir_version=10)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (["batch", None, 8, 8], ("batch", None, 8, 8)),
        ([-1, 0], (None, 0)),
        (["", 0], (None, 0)),
        (None, None),
        ([], ()),
    ],
    ids=["symbols and sizes", "negative", "empty name", "unknown rank", "scalar"],
)
def test_signature_reads_names_dtypes_and_all_kinds_of_shapes(shape, expected):
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, shape)
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])
    assert signature_of(_model([image], [scores])) == Signature(
        inputs=(TensorSpec("image", "uint8", expected),), outputs=(TensorSpec("scores", "float32", ("batch", 10)),)
    )


def test_signature_prints_as_an_engineer_would_write_it():
    signature = Signature(
        inputs=(TensorSpec("image", "uint8", ("batch", 8, 8)), TensorSpec("mask", "bool", None)),
        outputs=(
            TensorSpec("loss", "float32", ()),
            TensorSpec("boxes", "float32", (None, 4)),
            TensorSpec("scores", "sequence(map(int64, float32))", ()),
        ),
    )
    assert str(signature) == (
        "image: uint8[batch, 8, 8], mask: bool[...] -> "
        "loss: float32[], boxes: float32[?, 4], scores: sequence(map(int64, float32))"
    )


def test_an_initializer_that_is_listed_as_an_input_is_no_input():
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    weight = helper.make_tensor_value_info("weight", TensorProto.FLOAT, [1])
    tensor = onnx.numpy_helper.from_array(np.ones(1, np.float32), "weight")
    assert [spec.name for spec in signature_of(_model([x, weight], [x], [tensor])).inputs] == ["x"]


@pytest.mark.parametrize("number", ELEMENT_TYPES)
def test_every_onnx_element_type_has_a_name_that_leads_back_to_it(number):
    assert elem_type(dtype_name(number)) == number


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (TensorProto.DOUBLE, "float64"),
        (TensorProto.STRING, "str"),
        (TensorProto.BFLOAT16, "bfloat16"),
        (9999, "unknown(9999)"),
    ],
)
def test_dtype_names_are_those_of_numpy(number, name):
    assert dtype_name(number) == name


def test_a_dtype_that_onnx_lacks_is_refused_with_the_nearest_one():
    with pytest.raises(UsageError, match=r"unknown dtype 'float31': did you mean 'float32'\? Known"):
        elem_type("float31")


def test_values_that_are_no_tensors_say_what_they_are():
    floats = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    rows = helper.make_map_type_proto(TensorProto.INT64, floats)
    kinds = {
        "sequence(float32)": helper.make_sequence_type_proto(floats),
        "optional(float32)": helper.make_optional_type_proto(floats),
        "map(int64, float32)": rows,
        "sequence(map(int64, float32))": helper.make_sequence_type_proto(rows),
        "sparse(float64)": helper.make_sparse_tensor_type_proto(TensorProto.DOUBLE, [3]),
        "undefined": onnx.TypeProto(),
        "opaque": onnx.TypeProto(opaque_type=onnx.TypeProto.Opaque(name="thing")),
    }
    outputs = [helper.make_value_info(f"o{index}", kind) for index, kind in enumerate(kinds.values())]
    specs = signature_of(_model([], outputs)).outputs
    assert {spec.dtype for spec in specs} == set(kinds)
    assert all(spec.shape == () and not spec.is_tensor for spec in specs)


@pytest.mark.parametrize("shape", [None, (), ("batch", None, 3)])
def test_a_spec_survives_being_declared(shape):
    spec = TensorSpec("x", "float16", shape)
    assert signature_of(_model([value_info(spec)], [])).inputs == (spec,)


STEP = LineageStep("export", {"dynamic": ("batch",), "opset": 20}, "ab" * 32, {"torch": "2.13.0"}, ("verified",))


def _metadata(model):
    return {entry.key: entry.value for entry in model.metadata_props}


def test_a_label_is_read_back_as_it_was_written():
    model = onnx.ModelProto()
    assert read_label(model, default_name="model") == Label("model", "", ())
    write_label(model, Label("digits", "int8", (STEP, STEP)))
    label = read_label(model, default_name="other")
    assert label == Label("digits", "int8", (STEP, STEP))
    assert label.lineage[0].settings == {"dynamic": ["batch"], "opset": 20}
    assert len({STEP, *label.lineage}) == 1


def test_writing_a_label_replaces_the_earlier_one_and_keeps_other_metadata():
    model = onnx.ModelProto()
    model.metadata_props.add(key="author", value="us")
    write_label(model, Label("first", "", ()))
    write_label(model, Label("second", "", ()))
    assert len(model.metadata_props) == 2
    assert _metadata(model)["author"] == "us"
    assert json.loads(_metadata(model)[METADATA_KEY])["name"] == "second"


@pytest.mark.parametrize("value", [float("nan"), object(), float("inf")])
def test_settings_that_json_cannot_hold_are_refused(value):
    with pytest.raises(UsageError, match=r"^settings of the lineage step 'train' are not valid JSON: "):
        LineageStep("train", {"rate": value}, None, {})


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": 1}', '{"schema": 1, "name": "a", "variant": "", "lineage": [3]}']
)
def test_a_damaged_label_is_reported(text):
    model = onnx.ModelProto()
    model.metadata_props.add(key=METADATA_KEY, value=text)
    with pytest.raises(ArtifactError, match=r"^its metadata entry 'pytest_modelserve' cannot be read: "):
        read_label(model, default_name="model")


def test_a_label_of_a_newer_schema_names_the_way_out():
    model = onnx.ModelProto()
    model.metadata_props.add(key=METADATA_KEY, value='{"schema": 2}')
    with pytest.raises(ArtifactError, match="its metadata entry 'pytest_modelserve' has schema 2, and this version"):
        read_label(model, default_name="model")
