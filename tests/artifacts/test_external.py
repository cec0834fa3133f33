import shutil
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_modelserve._onnx.graph import stored_bytes, tensors_of
from pytest_modelserve.artifacts import open_artifact, save_artifact
from pytest_modelserve.errors import ArtifactError


def _external(name, location, array=None, **entries):
    """A tensor whose content lies elsewhere."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32) if array is None else array, name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _model(*tensors, nodes=(), functions=()):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"]), *nodes], "graph", [x], [y], list(tensors))
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))


def _write(folder, model, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def _error(path):
    with pytest.raises(ArtifactError) as caught:
        open_artifact(path)
    prefix = f"cannot open the model {path}: "
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix)


def test_external_files_belong_to_the_artifact(tmp_path):
    path = _write(tmp_path, _model(_external("w", "weights")), weights=bytes(16))
    artifact = open_artifact(path)
    assert artifact.external == (tmp_path / "weights",)
    assert artifact.file_bytes == path.stat().st_size + 16
    assert artifact.initializer_bytes == 16


def test_the_digest_covers_every_byte_and_name_but_not_the_models_own_name(tmp_path):
    model = _model(_external("w", "weights"))
    first = open_artifact(_write(tmp_path / "a", model, weights=bytes(16)))
    again = open_artifact(_write(tmp_path / "b", model, weights=bytes(16)))
    flipped = open_artifact(_write(tmp_path / "c", model, weights=bytes(15) + b"\1"))
    longer = open_artifact(_write(tmp_path / "d", model, weights=bytes(17)))
    renamed = again.path.rename(again.path.with_name("renamed.onnx"))
    assert first.sha256 == open_artifact(renamed).sha256
    assert len({first.sha256, flipped.sha256, longer.sha256}) == 3


def test_a_byte_that_moves_from_one_file_to_the_next_changes_the_digest(tmp_path):
    model = _model(_external("w", "one"), _external("v", "two"))
    first = open_artifact(_write(tmp_path / "a", model, one=bytes(16) + b"x", two=bytes(16)))
    second = open_artifact(_write(tmp_path / "b", model, one=bytes(16), two=b"x" + bytes(16)))
    assert first.sha256 != second.sha256


def test_external_files_come_sorted_whatever_the_order_of_the_tensors(tmp_path):
    model = _model(_external("w", "two"), _external("v", "one"), _external("u", "two"))
    artifact = open_artifact(_write(tmp_path, model, one=bytes(16), two=bytes(16)))
    assert artifact.external == (tmp_path / "one", tmp_path / "two")


def test_opening_hashes_external_data_without_loading_them(tmp_path):
    size = 32 << 20
    path = _write(tmp_path, _model(_external("w", "weights", np.zeros(4, np.float32))))
    with open(tmp_path / "weights", "wb") as file:
        file.truncate(size)
    tracemalloc.start()
    try:
        open_artifact(path)
        assert tracemalloc.get_traced_memory()[1] < size / 8
    finally:
        tracemalloc.stop()


def _in_subgraph(tensor):
    branch = helper.make_graph([], "branch", [], [], [tensor])
    return {"nodes": [helper.make_node("If", ["c"], ["o"], then_branch=branch, else_branch=branch)]}


def _in_attribute(tensor):
    return {"nodes": [helper.make_node("Constant", [], ["o"], value=tensor)]}


def _in_list_attribute(tensor):
    return {"nodes": [helper.make_node("Custom", [], ["o"], domain="ours", values=[tensor])]}


def _in_sparse_attribute(tensor):
    sparse = helper.make_sparse_tensor(tensor, numpy_helper.from_array(np.arange(4), "i"), [9])
    return {"nodes": [helper.make_node("Constant", [], ["o"], sparse_value=sparse)]}


def _in_function(tensor):
    nodes = [helper.make_node("Constant", [], ["o"], value=tensor)]
    return {"functions": [helper.make_function("ours", "F", [], ["o"], nodes, [helper.make_opsetid("", 20)])]}


@pytest.mark.parametrize("place", [_in_subgraph, _in_attribute, _in_list_attribute, _in_sparse_attribute, _in_function])
def test_a_missing_file_is_found_missing_wherever_its_tensor_sits(tmp_path, place):
    path = _write(tmp_path, _model(**place(_external("hidden", "gone"))))
    assert _error(path) == (
        "tensor 'hidden' is stored in 'gone', which does not exist: copy that file together with the model"
    )


def test_a_sparse_initializer_counts_and_is_searched(tmp_path):
    model = _model()
    sparse = helper.make_sparse_tensor(_external("hidden", "gone"), numpy_helper.from_array(np.arange(4), "i"), [9])
    model.graph.sparse_initializer.append(sparse)
    assert stored_bytes(model) == 4 * 4 + 4 * 8
    assert _error(_write(tmp_path, model)).startswith("tensor 'hidden' is stored in 'gone', which does not exist")


@pytest.mark.parametrize(
    "location",
    ["../weights", "a/../../weights", "/etc/passwd", "", "C:\\weights", "..\\weights", "\\\\host\\share\\weights"],
)
def test_a_location_outside_the_folder_is_refused(tmp_path, location):
    (tmp_path / "weights").write_bytes(bytes(16))
    path = _write(tmp_path / "models", _model(_external("w", location)))
    assert _error(path) == (f"tensor 'w' is stored in {location!r}, which is not a file name inside the model's folder")


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "weights").write_bytes(bytes(16))
    path = _write(tmp_path / "models", _model(_external("w", "weights")))
    (tmp_path / "models" / "weights").symlink_to(tmp_path / "weights")
    assert _error(path) == (
        "tensor 'w' is stored in 'weights', a link to a file outside the model's folder: replace it by a copy of the file (cp --dereference)"
    )


def test_a_model_that_names_itself_as_its_data_is_refused(tmp_path):
    path = _write(tmp_path, _model(_external("w", "model.onnx")))
    assert _error(path) == "tensor 'w' is stored in 'model.onnx', which is the model file itself"


def test_a_link_inside_the_folder_and_a_subfolder_are_fine(tmp_path):
    path = _write(tmp_path, _model(_external("w", "sub/weights")), real=bytes(16))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights").symlink_to(tmp_path / "real")
    assert open_artifact(path).external == (tmp_path / "sub" / "weights",)


def test_a_file_that_is_too_short_is_reported_with_the_bytes(tmp_path):
    path = _write(tmp_path, _model(_external("w", "weights", offset=8, length=16)), weights=bytes(23))
    assert _error(path) == (
        "tensor 'w' has bytes 8 to 24 of 'weights', which has only 23: "
        "the file was truncated, or belongs to another model"
    )


def test_a_length_that_is_not_that_of_the_tensor_is_reported(tmp_path):
    path = _write(tmp_path, _model(_external("w", "weights", length=12)), weights=bytes(16))
    assert _error(path) == "tensor 'w' has 16 bytes, but its entry says that 'weights' holds 12"


@pytest.mark.parametrize("offset", ["-1", "x", "0x10", "", "٣"])
def test_an_offset_that_is_no_number_is_reported(tmp_path, offset):
    path = _write(tmp_path, _model(_external("w", "weights", offset=offset)), weights=bytes(64))
    assert _error(path) == f"tensor 'w' has the external offset {offset!r}, which is not a number of bytes"


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (helper.make_tensor("w", TensorProto.INT4, [5], [1, 2, 3, 4, 5]), 3),
        (helper.make_tensor("w", TensorProto.FLOAT, [2, 3], range(6)), 24),
        (helper.make_tensor("w", TensorProto.FLOAT16, [3], [1, 2, 3]), 6),
        (helper.make_tensor("w", TensorProto.BOOL, [3], [1, 0, 1]), 3),
        (helper.make_tensor("w", TensorProto.STRING, [2], [b"ab", b"c"]), 3),
        (helper.make_tensor("w", TensorProto.FLOAT, [], [1.0]), 4),
        (helper.make_tensor("w", TensorProto.FLOAT, [0], []), 0),
        (numpy_helper.from_array(np.zeros(3), "w"), 24),
        (_external("w", "weights", np.zeros((3, 5), np.int8)), 15),
    ],
)
def test_stored_bytes_are_those_of_the_tensors(tensor, expected):
    assert stored_bytes(_model(tensor)) == expected


def test_weights_in_constants_count_as_weights():
    constant = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    assert stored_bytes(_model(**_in_attribute(constant))) == stored_bytes(_model(constant)) == 16


def test_saving_keeps_references_to_files_beside_the_model(tmp_path):
    weights = np.arange(4, dtype=np.float32)
    path = _write(tmp_path / "a", _model(_external("w", "weights")), weights=weights.tobytes())
    model = onnx.load(path, load_external_data=False)
    (tmp_path / "b").mkdir()
    with pytest.raises(ArtifactError, match="which does not exist"):
        save_artifact(model, tmp_path / "b" / "model.onnx", name="toy", variant="", lineage=())
    shutil.copy(tmp_path / "a" / "weights", tmp_path / "b")
    artifact = save_artifact(model, tmp_path / "b" / "model.onnx", name="toy", variant="", lineage=())
    assert artifact.external == (tmp_path / "b" / "weights",)
    assert [tensor.name for tensor in tensors_of(onnx.load(artifact.path))] == ["w"]
