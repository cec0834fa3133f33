"""Tolerances learnt from the reference: rounding passes, anything else is found, and where it cannot be learnt."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import pytest_modelserve as ms

X = np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32)


def saved(path: Path, weights: list[Any]) -> Path:
    """A chain of MatMul and Tanh."""
    nodes, tensors, value = [], [], "x"
    for layer, weight in enumerate(weights):
        tensors.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [f"m{layer}"]))
        value = "y" if layer == len(weights) - 1 else f"t{layer}"
        nodes.append(helper.make_node("Tanh", [f"m{layer}"], [value]))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.save(model, path)
    return path


@pytest.fixture
def weights() -> list[Any]:
    rng = np.random.default_rng(1)
    return [(rng.standard_normal((64, 64)) / 8).astype(np.float32) for _ in range(6)]


@pytest.fixture
def pair(tmp_path: Path, weights: list[Any]) -> Iterator[tuple[ms.Predictor, ms.Predictor]]:
    """A model, and the same with its hidden units in another order, which sums in another order."""
    order = np.random.default_rng(2).permutation(64)
    turned = [w.copy() for w in weights]
    for before, after in itertools.pairwise(turned):
        before[:], after[:] = before[:, order], after[order]
    with ms.serve(saved(tmp_path / "a.onnx", weights)) as a, ms.serve(saved(tmp_path / "b.onnx", turned)) as b:
        yield a, b


def test_another_order_of_sums_passes_without_a_tolerance_from_anybody(pair: Any) -> None:
    candidate, reference = pair
    assert ms.measure_output_parity(candidate, reference, X, rtol=0, atol=0).verdict is ms.Verdict.FAIL
    evidence = ms.assert_output_parity(candidate, reference, X)
    assert evidence.verdict is ms.Verdict.PASS
    assert 0 < evidence.quantities[0].value < 0.5


def test_a_change_of_one_part_in_ten_thousand_is_found(tmp_path: Path, weights: list[Any], pair: Any) -> None:
    weights[2][5, 7] *= np.float32(1 + 1e-4)
    weights[2][5] += np.float32(1e-4)
    with ms.serve(saved(tmp_path / "c.onnx", weights)) as candidate:
        assert ms.measure_output_parity(candidate, pair[1], X).verdict is ms.Verdict.FAIL


def test_the_calibration_is_told(pair: Any) -> None:
    evidence = ms.measure_output_parity(*pair, X)
    assert evidence.method.name == (
        "every element compared, tolerance calibrated: 4 × what the reference's own answers move when it is run in "
        "float64 and without graph optimisations and row by row, at least 16 steps of the dtype, relative to the "
        "output's scale plus the element"
    )
    (told,) = evidence.findings
    assert told.startswith("output 'y': the floor is 1.91e-06 of its scale 0.")
    (details,) = evidence.details["calibration"]
    assert details["output"] == "y"
    assert set(details["differences"]) == {"in float64", "without graph optimisations", "row by row"}
    assert 0 < details["differences"]["in float64"] < details["floor"] * details["scale"]
    evidence.to_json()


def test_a_failure_tells_the_floor_and_where_it_came_from(tmp_path: Path) -> None:
    x = np.tile(np.arange(64, dtype=np.float32), (3, 1))

    def biased(name: str, bias: float) -> Path:
        graph = helper.make_graph(
            [helper.make_node("Add", ["x", "b"], ["y"])],
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
            [numpy_helper.from_array(np.full(64, bias, np.float32), "b")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
        model.ir_version = 10
        onnx.save(model, tmp_path / f"{name}.onnx")
        return tmp_path / f"{name}.onnx"

    with ms.serve(biased("one", 1)) as reference, ms.serve(biased("other", 1.5)) as candidate:
        evidence = ms.measure_output_parity(candidate, reference, x)
    assert evidence.verdict is ms.Verdict.FAIL
    assert (evidence.findings[0], evidence.findings[-1]) == (
        "output 'y': 192 of 192 elements are beyond rtol 1.90735e-06, atol 0.00012207; the worst is 4.03e+03 × its "
        "tolerance at [0, 0] (candidate 1.5, reference 1.0)",
        "output 'y': the floor is 1.91e-06 of its scale 64; the reference moved by at most 0 in float64, 0 without "
        "graph optimisations, 0 row by row",
    )


def test_a_stream_is_calibrated_on_its_first_batch(pair: Any) -> None:
    evidence = ms.measure_output_parity(*pair, (X[start : start + 50] for start in range(0, 200, 50)))
    assert (evidence.verdict, evidence.n) == (ms.Verdict.PASS, 200)


def test_a_torch_reference_is_held_against_its_float64_self(weights: list[Any], pair: Any) -> None:
    layers: list[torch.nn.Module] = []
    for weight in weights:
        linear = torch.nn.Linear(64, 64, bias=False)
        linear.weight.data = torch.from_numpy(weight.T.copy())
        layers += [linear, torch.nn.Tanh()]
    reference = ms.serve(torch.nn.Sequential(*layers).eval())
    evidence = ms.assert_output_parity(pair[0], reference, X)
    assert "when it is run in float64, at least" in evidence.method.name


def test_a_model_whose_rows_influence_each_other_has_no_floor(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x", "axes"], ["m"]),
            helper.make_node("Sub", ["x", "m"], ["y"]),
        ],
        "batch_mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(np.array([0]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "batch_mean.onnx")
    with ms.serve(tmp_path / "batch_mean.onnx") as reference, pytest.raises(ms.UsageError) as caught:
        ms.measure_output_parity(reference, reference, X)
    words = str(caught.value)
    assert words.startswith("output 'y' of batch_mean moves by ")
    assert words.endswith(
        " of its scale when it is run row by row, which is more than rounding of float32: give both rtol and atol"
    )


def test_a_function_as_reference_needs_tolerances(pair: Any) -> None:
    with pytest.raises(ms.UsageError, match=r"cannot be run another way .* give both rtol and atol"):
        ms.measure_output_parity(pair[0], ms.serve(lambda x: x), X)
