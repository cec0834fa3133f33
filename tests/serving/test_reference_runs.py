"""The other ways to run a reference: that they compute the same model, and what cannot be run another way."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from pytest_modelserve.errors import ArtifactError, UsageError
from pytest_modelserve.serving import CallablePredictor, OnnxPredictor, TorchPredictor
from pytest_modelserve.serving.reference_runs import alternative_runs, convert_to_float64

NODE = helper.make_node
X = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)


def test_an_onnx_file_is_run_in_three_other_ways(linear):
    predictor = OnnxPredictor(linear)
    exact = X.astype(np.float64) @ np.arange(6).reshape(3, 2) + [10, 20]
    found = {how: run(X)["y"] for how, run in alternative_runs(predictor).items()}
    assert list(found) == ["in float64", "without graph optimizations", "row by row"]
    assert found["in float64"].dtype == np.float64
    np.testing.assert_array_equal(found["in float64"], exact)
    for how in ("without graph optimizations", "row by row"):
        assert found[how].dtype == np.float32
        np.testing.assert_allclose(found[how], exact, rtol=1e-6)


def test_a_fixed_batch_cannot_be_run_row_by_row(onnx_file):
    path = onnx_file([NODE("Relu", ["x"], ["y"])], {"x": ("float32", [6, 3])}, {"y": ("float32", [6, 3])})
    assert alternative_runs(OnnxPredictor(path))["row by row"](X) is None


def test_an_output_without_rows_cannot_be_put_together(onnx_file):
    path = onnx_file(
        [NODE("ReduceSum", ["x"], ["y"], keepdims=0)], {"x": ("float32", ["n", 3])}, {"y": ("float32", [])}
    )
    assert alternative_runs(OnnxPredictor(path))["row by row"](X) is None


def test_operators_that_the_evaluator_does_not_know_are_left_out(onnx_file):
    path = onnx_file(
        [NODE("Gelu", ["x"], ["y"], domain="com.microsoft")],
        {"x": ("float32", ["n", 3])},
        {"y": ("float32", ["n", 3])},
        domains=["com.microsoft"],
    )
    assert alternative_runs(OnnxPredictor(path))["in float64"](X) is None


def test_file_that_has_changed_is_not_taken_for_one_that_the_evaluator_lacks(linear):
    predictor = OnnxPredictor(linear)
    model = onnx.load(linear)
    model.graph.initializer[0].raw_data = bytes(24)
    onnx.save(model, linear)
    with pytest.raises(ArtifactError, match="has changed since it was opened"):
        alternative_runs(predictor)["in float64"](X)


def test_every_float32_of_a_graph_is_widened_in_subgraphs_too():
    branch = helper.make_graph(
        [NODE("Constant", [], ["t"], value=onnx.numpy_helper.from_array(np.ones(1, np.float32)))],
        "branch",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, [1])],
    )
    graph = helper.make_graph(
        [
            NODE("If", ["c"], ["z"], then_branch=branch, else_branch=branch),
            NODE("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
        ],
        "graph",
        [
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("i", TensorProto.INT64, [2]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("z", "y")],
        [
            onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"),
            onnx.numpy_helper.from_array(np.ones(2, np.int64), "k"),
        ],
    )
    model = helper.make_model(graph)
    wide = str(convert_to_float64(model))
    assert "elem_type: 11" in wide
    assert "elem_type: 1\n" not in wide
    assert "data_type: 1\n" not in wide
    assert "data_type: 7" in wide
    assert "i: 11" in wide
    assert "data_type: 1\n" in str(model)  # the original is as it was


def test_a_torch_module_is_run_in_float64_and_stays_as_it_is():
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2).eval()
    predictor = TorchPredictor(module)
    ((how, run),) = alternative_runs(predictor).items()
    answer = run(X)["output"]
    assert how == "in float64"
    weight, bias = (p.detach().double().numpy() for p in module.parameters())
    np.testing.assert_allclose(answer, X.astype(np.float64) @ weight.T + bias, rtol=1e-15)
    assert module.weight.dtype == torch.float32
    assert run({"input": X})["output"].dtype == np.float64


def test_a_module_that_insists_on_float32_says_so():
    class Stubborn(torch.nn.Module):
        def forward(self, x):
            return x @ torch.ones(3, 2)

    with pytest.raises(UsageError) as caught:
        alternative_runs(TorchPredictor(Stubborn().eval(), subject=None))["in float64"](X)
    assert str(caught.value).startswith(
        "Stubborn / torch does not run in float64, which estimates its rounding error (RuntimeError: "
    )
    assert str(caught.value).endswith("): pass both rtol and atol")


def test_a_function_cannot_be_run_another_way():
    with pytest.raises(UsageError, match="mine, a Python callable, cannot be run another way to estimate its rounding"):
        alternative_runs(CallablePredictor(lambda x: x, name="mine"))
