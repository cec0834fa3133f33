import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, None)


def save(path, nodes, inputs, outputs, weights=None):
    graph = helper.make_graph(
        nodes, "g", inputs, outputs, [numpy_helper.from_array(w, name) for name, w in (weights or {}).items()]
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 10
    onnx.save(model, path)
    return path


@pytest.fixture
def linear(tmp_path):
    """y = x @ w + b for x of shape [n, 3], and the top class."""
    return save(
        tmp_path / "linear.onnx",
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["y"]),
            helper.make_node("ArgMax", ["y"], ["top"], axis=1, keepdims=0),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2]),
            helper.make_tensor_value_info("top", TensorProto.INT64, ["n"]),
        ],
        {"w": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.array([1, -1], np.float32)},
    )


@pytest.fixture
def everything(tmp_path):
    """Text and a sequence in; text, a sequence, maps of classes, optional values and float16 out."""
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.STRING, FLOATS))
    sequence = helper.make_sequence_type_proto(FLOATS)
    return save(
        tmp_path / "everything.onnx",
        [
            helper.make_node("ZipMap", ["x"], ["p"], domain="ai.onnx.ml", classlabels_strings=["no", "yes"]),
            helper.make_node("SequenceInsert", ["s", "x"], ["longer"]),
            helper.make_node("Optional", ["x"], ["some"]),
            helper.make_node("Optional", [], ["none"], type=FLOATS),
            helper.make_node("Identity", ["t"], ["u"]),
            helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        ],
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2]),
            helper.make_value_info("s", sequence),
            helper.make_tensor_value_info("t", TensorProto.STRING, ["k"]),
        ],
        [
            helper.make_value_info("p", maps),
            helper.make_value_info("longer", sequence),
            helper.make_value_info("some", helper.make_optional_type_proto(FLOATS)),
            helper.make_value_info("none", helper.make_optional_type_proto(FLOATS)),
            helper.make_tensor_value_info("u", TensorProto.STRING, ["k"]),
            helper.make_tensor_value_info("h", TensorProto.FLOAT16, ["n", 2]),
        ],
    )


@pytest.fixture
def narrow(tmp_path):
    """bfloat16 and int4 out."""
    return save(
        tmp_path / "narrow.onnx",
        [
            helper.make_node("Cast", ["x"], ["b"], to=TensorProto.BFLOAT16),
            helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT4),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [
            helper.make_tensor_value_info("b", TensorProto.BFLOAT16, ["n", 3]),
            helper.make_tensor_value_info("i", TensorProto.INT4, ["n", 3]),
        ],
    )
