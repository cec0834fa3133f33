import io

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_modelserve._onnx.graph import has_omitted_data
from pytest_modelserve._onnx.serialization import (
    MalformedError,
    copy_without_weights,
    read_without_weights,
    restore_weights,
    serialize,
)
from pytest_modelserve.artifacts import load_model, open_artifact, read_graph, save_artifact
from pytest_modelserve.errors import ArtifactError


@pytest.fixture
def model():
    """Heavy and light weights, heavy indices, a heavy Constant, a branch, a local function and metadata."""
    rng = np.random.default_rng(0)
    heavy = rng.standard_normal((64, 64)).astype(np.float32)
    stored = {
        "w": heavy,
        "b": heavy[0],
        "half": heavy.astype(np.float16),
        "rows": np.arange(1000),
        "yes": np.array(True),
    }
    values = {"y": ("x", "w"), "z": ("x", "b")}
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("MatMul", values[result], [result])],
            name,
            [],
            [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)],
        )
        for name, result in (("then", "y"), ("else", "z"))
    }
    nodes = [
        helper.make_node("If", ["yes"], ["out"], **branches),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(heavy, "c")),
        helper.make_node("Twice", ["half"], ["h"], domain="own"),
    ]
    add = helper.make_node("Add", ["x", "x"], ["y"])
    twice = helper.make_function("own", "Twice", ["x"], ["y"], [add], [helper.make_opsetid("", 20)])
    result = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    # A heavy tensor that does not lie in raw data.
    tensors.append(helper.make_tensor("listed", TensorProto.FLOAT, [4096], heavy.ravel()))
    graph = helper.make_graph(nodes, "g", [given], [result], tensors, doc_string="d" * 5000)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    made = helper.make_model(graph, opset_imports=opsets, functions=[twice], ir_version=10, producer_name="us")
    made.metadata_props.add(key="k", value="v")
    return made


def read_back(chunks):
    return onnx.ModelProto.FromString(b"".join(chunks))


def test_what_is_written_is_the_model(model):
    assert read_back(serialize(copy_without_weights(model), model)) == model
    assert read_back(serialize(model, None)) == model


def test_light_copy_filled_again_is_the_model(model):
    before = model.SerializeToString(deterministic=True)
    light = copy_without_weights(model)
    assert model.SerializeToString(deterministic=True) == before
    assert [tensor.name for tensor in light.graph.initializer if has_omitted_data(tensor)] == ["w", "half"]
    restore_weights(light, model)
    assert light == model


@pytest.mark.parametrize("written", ["by protobuf", "by us"])
def test_reading_without_weights_gives_the_light_copy(model, tmp_path, written):
    ours = b"".join(serialize(copy_without_weights(model), model))
    content = model.SerializeToString() if written == "by protobuf" else ours
    (tmp_path / "m.onnx").write_bytes(content)
    assert read_graph(tmp_path / "m.onnx") == copy_without_weights(model)
    assert len(read_without_weights(io.BytesIO(content))) < len(content) - 64 * 64 * 6


def test_weights_that_are_not_read_are_counted(model, tmp_path):
    onnx.save(model, tmp_path / "m.onnx")
    # w, b, half, rows, yes, listed; and the Constant.
    assert open_artifact(tmp_path / "m.onnx").initializer_bytes == 64 * 64 * (4 + 2 + 4 + 4) + 256 + 8000 + 1


def test_saved_model_is_read_back_with_its_weights(model, tmp_path):
    artifact = save_artifact(model, tmp_path / "m.onnx", name="n", variant="", lineage=())
    assert artifact == open_artifact(artifact.path)
    assert load_model(artifact).graph == model.graph


@pytest.mark.parametrize("written", ["by protobuf", "by us"])
def test_no_cut_of_a_model_with_weights_is_a_model(model, tmp_path, written):
    content = (
        model.SerializeToString()
        if written == "by protobuf"
        else b"".join(serialize(copy_without_weights(model), model))
    )
    path = tmp_path / "m.onnx"
    for length in range(1, len(content), 997):
        path.write_bytes(content[:length])
        try:
            open_artifact(path)
        except ArtifactError:
            continue
        assert onnx.ModelProto.FromString(content[:length]).graph == model.graph  # only what follows the graph is gone


@pytest.mark.parametrize(
    "content", [b"\x3a\xff", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x3b", b"\x3a\x05abc", b"\x09ab"]
)
def test_bytes_that_are_no_message_are_reported(content):
    with pytest.raises(MalformedError):
        read_without_weights(io.BytesIO(content))
