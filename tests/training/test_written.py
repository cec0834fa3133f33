from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pytest_modelserve.artifacts import signature_of
from pytest_modelserve.errors import ArtifactError, BakedAxisError, ExportError, UnsupportedOperatorError
from pytest_modelserve.training.export_checks import Probe, check_written, correct_outputs, remove_shapes, runtime_error
from pytest_modelserve.training.export_request import Tracing

TRACING = Tracing({"x": np.zeros((2, 4), np.float32)}, {"x": {0: "batch", 1: "time"}})


def model(inputs=("batch", "time"), outputs=("batch", "time"), opset=20):
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", inputs), ("y", outputs))]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    extra = helper.make_opsetid("com.microsoft", 1)
    return helper.make_model(graph, opset_imports=[extra, helper.make_opsetid("", opset)])


def probes(*runs):
    return [Probe(sizes, {"y": np.zeros(shape)}, {}) for sizes, shape in runs]


def outputs_of(written):
    return signature_of(written).outputs[0].shape


def test_faithful_file_passes():
    check_written(model(), TRACING, ["y"], 20)


def test_another_opset_than_asked_for_is_told():
    with pytest.raises(ExportError) as caught:
        check_written(model(opset=18), TRACING, ["y"], 13)
    assert str(caught.value) == (
        "opset=13 is not available: the exporter wrote opset 18. Pass opset=18 or leave it out"
    )


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (("batch", 4), "axis 1 of input 'x' ('time' in `dynamic`) is not free: the exporter fixed it as 4"),
        ((2, "time"), "axis 0 of input 'x' ('batch' in `dynamic`) is not free: the exporter fixed it as 2"),
        (("batch",), "axis 1 of input 'x' ('time' in `dynamic`) is not free: the exporter fixed it as nothing"),
    ],
)
def test_fixed_axis_is_told_with_its_input(shape, told):
    with pytest.raises(BakedAxisError) as caught:
        check_written(model(shape), TRACING, ["y"], None)
    assert str(caught.value) == told


def test_input_that_the_exporter_left_out_is_told():
    tracing = Tracing({}, {"mask": {0: "batch"}})
    with pytest.raises(ExportError) as caught:
        check_written(model(), tracing, ["y"], None)
    assert str(caught.value) == (
        "input 'mask' is missing in the exported model because forward does not use it: remove it"
    )


def test_outputs_under_other_names_are_told():
    with pytest.raises(ExportError) as caught:
        check_written(model(), TRACING, ["y", "z"], None)
    assert str(caught.value) == "the module's outputs are 'y', 'z'; the exported model's are 'y'"


REFUSED = "onnxruntime refuses the model x.onnx: 9 : NOT_IMPLEMENTED : Could not find an implementation for Identity(1)"


def test_operator_without_a_kernel_is_told_with_the_line_that_it_comes_from(tmp_path):
    (tmp_path / "net.py").write_text("def forward(x):\n    return x\n")
    written = model()
    entry = written.graph.node[0].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.stack_trace", f'File "{tmp_path}/net.py", line 2, in forward\n    return x'
    error = runtime_error(ArtifactError(REFUSED), written)
    assert type(error) is UnsupportedOperatorError
    assert str(error) == (
        f"onnxruntime cannot run the operator Identity, from {tmp_path}/net.py:2, in forward, `return x`: write it "
        "with other operators (9 : NOT_IMPLEMENTED : Could not find an implementation for Identity(1))"
    )


def test_any_other_refusal_is_told_in_onnxruntime_s_words():
    error = runtime_error(ArtifactError("onnxruntime refuses the model x.onnx: 1 : FAIL : no"), model())
    assert type(error) is ExportError
    assert str(error) == "onnxruntime rejects the exported model: 1 : FAIL : no"


def test_opset_newer_than_the_runtime_is_told_in_one_line():
    newer = "the model has opset 90, and onnxruntime 1.32.0 supports up to 28: upgrade onnxruntime, or export with an older opset"
    error = runtime_error(ArtifactError(f"onnxruntime refuses the model x.onnx: {newer}"), model())
    assert str(error) == f"onnxruntime rejects the exported model: {newer}"


def test_shapes_inside_the_graph_are_forgotten():
    written = model()
    written.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [12]))
    remove_shapes(written)
    assert not written.graph.value_info


def test_output_dim_that_runs_show_to_be_free_gets_its_name():
    written = model(outputs=("batch", 4))
    runs = probes(
        ({"batch": 2, "time": 4}, (2, 4)), ({"batch": 3, "time": 4}, (3, 4)), ({"batch": 2, "time": 5}, (2, 5))
    )
    assert correct_outputs(written, runs) == ("output 'y', axis 1: the exporter wrote 4, observed time",)
    assert outputs_of(written) == ("batch", "time")


def test_output_dim_that_never_changes_is_fixed():
    written = model(outputs=("batch", "time"))
    runs = probes(({"batch": 2, "time": 4}, (2, 1)), ({"batch": 3, "time": 5}, (3, 1)))
    assert correct_outputs(written, runs) == ("output 'y', axis 1: the exporter wrote time, observed 1",)
    assert outputs_of(written) == ("batch", 1)


def test_output_dim_that_follows_no_axis_is_unknown():
    written = model(outputs=("batch", 4))
    runs = probes(({"batch": 2}, (2, 4)), ({"batch": 3}, (3, 6)))
    assert correct_outputs(written, runs) == ("output 'y', axis 1: the exporter wrote 4, observed ?",)
    assert outputs_of(written) == ("batch", None)


def test_symbolic_dim_that_is_no_free_axis_stays():
    written = model(outputs=("batch", "2*time"))
    assert correct_outputs(written, probes(({"batch": 2, "time": 4}, (2, 8)))) == ()
    assert outputs_of(written) == ("batch", "2*time")


def test_right_shapes_need_no_note():
    written = model()
    before = written.SerializeToString()
    assert correct_outputs(written, probes(({"batch": 2, "time": 4}, (2, 4)))) == ()
    assert written.SerializeToString() == before


def test_model_of_these_tests_is_valid():
    onnx.checker.check_model(model())
