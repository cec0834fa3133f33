"""Inputs that are parameters of operators get values that these take, from the graph alone or by asking the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import pytest_modelserve as ms
from benchmarks import onnx_inputs
from pytest_modelserve.artifacts import TensorSpec
from pytest_modelserve.robustness.base_rows import BaseRowGenerator
from pytest_modelserve.robustness.mutations import edge_cases
from pytest_modelserve.robustness.operator_inputs import BOUNDED, JOINT, OperatorUse
from pytest_modelserve.robustness.strategies import source_of

r = ms.relations


def drawn(strategy: Any, count: int = 20) -> list[Any]:
    return [strategy.at(rows=1 + seed % 2, edits=seed % 4, seed=seed) for seed in range(count)]


def sample() -> list[tuple[str, Any]]:
    """One case of every operator that onnx has cases for, in the order of their names."""
    first: dict[str, tuple[str, Any]] = {}
    for name, model in onnx_inputs.cases():
        first.setdefault(model.graph.node[-1].op_type, (name, model))
    return list(first.values())


def test_models_of_onnx_own_cases_get_inputs_that_they_take() -> None:
    harmless = [(name, model) for name, model in sample() if "empty" not in name]
    told = {name: onnx_inputs.outcome(model) for name, model in harmless}
    loaded = {name: outcome for name, outcome in told.items() if outcome["loaded"]}
    missed = [name for name, outcome in loaded.items() if not onnx_inputs.is_accepted(outcome)]
    assert len(loaded) > 150
    assert len(missed) / len(loaded) <= 1 - onnx_inputs.GOAL, missed


def test_an_index_reaches_every_row_of_its_table_and_none_beyond(onnx_model: Any) -> None:
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"])]
    inputs, outputs = {"ids": ("int64", ["batch", 4])}, {"y": ("float32", ["batch", 4, 2])}
    model = ms.serve(onnx_model(nodes, inputs, outputs, table=np.zeros((9, 2), np.float32)))
    ids = np.concatenate([feed["ids"] for feed in drawn(ms.strategies.inputs(model), 200)])
    assert set(np.unique(ids)) == set(range(9))
    assert source_of(ms.strategies.inputs(model)).accepts is None  # type: ignore[union-attr]


def test_a_cast_or_an_identity_in_between_hides_no_parameter(onnx_model: Any) -> None:
    nodes = [
        helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Identity", ["wide"], ["same"]),
        helper.make_node("Gather", ["table", "same"], ["y"]),
    ]
    inputs, outputs = {"ids": ("int32", ["batch"])}, {"y": ("float32", ["batch", 2])}
    path = onnx_model(nodes, inputs, outputs, table=np.zeros((9, 2), np.float32))
    ids = np.concatenate([feed["ids"] for feed in drawn(ms.strategies.inputs(ms.open_artifact(path)), 200)])
    assert ids.max() == 8


def test_joint_parameters_change_from_example_to_example_and_stay_right(onnx_model: Any) -> None:
    nodes = [helper.make_node("Slice", ["x", "starts", "ends", "axes"], ["y"])]
    inputs = {"x": ("float32", [4, 6, 3]), **{name: ("int64", [2]) for name in ("starts", "ends", "axes")}}
    model = ms.serve(onnx_model(nodes, inputs, {"y": ("float32", ["a", "b", "c"])}))
    strategy = ms.strategies.inputs(model)
    assert source_of(strategy).accepts is None  # type: ignore[union-attr]
    seen = {tuple(feed["axes"]) for feed in drawn(strategy, 40)}
    assert len(seen) > 2
    assert all(len({axis % 3 for axis in axes}) == 2 for axes in seen)
    space = source_of(strategy).space()  # type: ignore[union-attr]
    base = {tuple(axes) for axes in space.base["axes"]}
    assert {tuple(axes) for rows, _ in edge_cases(space, 2000) for axes in rows["axes"]} <= base
    evidence = ms.measure_relation(model, strategy, r.determinism())
    assert evidence.details["rejected"] == 0


def test_a_parameter_that_no_table_knows_is_found_by_asking_the_model(onnx_model: Any) -> None:
    # The shape of the reshape is computed, so that only the model itself can tell which numbers it takes.
    nodes = [
        helper.make_node("Mul", ["half", "two"], ["shape"]),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    inputs = {"x": ("float32", [4, 6]), "half": ("int64", [2])}
    path = onnx_model(nodes, inputs, {"y": ("float32", ["a", "b"])}, two=np.array([2, 2]))
    model = ms.serve(path)
    strategy = ms.strategies.inputs(model)
    for feed in drawn(strategy):
        assert model.predict(feed)["y"].size == 24
    assert repr(strategy.at(seed=3)["half"]) == repr(ms.strategies.inputs(model).at(seed=3)["half"])


def test_a_model_that_takes_nothing_still_gets_the_plain_rows(onnx_model: Any) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "computed"], ["y"]),
    ]
    nodes.insert(0, helper.make_node("Mul", ["n", "zero"], ["computed"]))
    inputs = {"x": ("float32", [5]), "n": ("int64", [2])}
    path = onnx_model(nodes, inputs, {"y": ("float32", ["a", "b"])}, zero=np.array([0, 0]))
    strategy = ms.strategies.inputs(ms.serve(path))
    assert strategy.at()["x"].shape == (5,)


def test_parameters_of_the_rows_at_hand_are_not_edited(onnx_model: Any) -> None:
    nodes = [helper.make_node("TopK", ["x", "k"], ["y", "places"])]
    inputs = {"x": ("float32", ["n", 6]), "k": ("int64", [1])}
    outputs = {"y": ("float32", ["n", "m"]), "places": ("int64", ["n", "m"])}
    model = ms.serve(onnx_model(nodes, inputs, outputs))
    like = {"x": np.eye(3, 6, dtype=np.float32), "k": np.array([2])}
    feeds = drawn(ms.strategies.inputs(model, like=like, domain=("like", "far", "special")), 60)
    assert {int(feed["k"][0]) for feed in feeds} == {2}
    assert len({feed["x"].tobytes() for feed in feeds}) > 10


@pytest.mark.parametrize("data", [None, (), (1,), (3, 0, 2), ("n", 4, 4)])
@pytest.mark.parametrize("size", [None, 0, 3, 8])
def test_no_graph_however_odd_keeps_a_strategy_from_being_made(data: Any, size: int | None) -> None:
    shape = () if size is None else (size,)
    specs = (TensorSpec("x", "float32", data), *(TensorSpec(f"p{slot}", "int64", shape) for slot in range(1, 5)))
    names = tuple(spec.name for spec in specs)
    for op in {*JOINT, *(op for op, _ in BOUNDED)}:
        for attributes in ({}, {"axis": 2, "axes": [0, 5], "kernel_shape": [2], "time_axis": 1, "batch_dims": 1}):
            uses = (
                OperatorUse(op, attributes, names, {}, {}, (None, (2, 2))),
                OperatorUse(op, attributes, names[::-1], {}, {}, ()),
            )
            rows = BaseRowGenerator(specs, 0, uses).generate({}, seed=1)
            assert {len(array) for array in rows.values()} == {8}


def test_sequences_and_optional_values_are_drawn_as_they_are_served() -> None:
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    sequence = helper.make_sequence_type_proto(kind)
    graph = helper.make_graph(
        [helper.make_node("ConcatFromSequence", ["items"], ["y"], axis=0)],
        "graph",
        [helper.make_value_info("items", sequence)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert onnx_inputs.is_accepted(onnx_inputs.outcome(model))


def test_malformed_sequences_are_refused(tmp_path: Any) -> None:
    import onnx

    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2]))
    graph = helper.make_graph(
        [helper.make_node("ConcatFromSequence", ["items"], ["y"], axis=0)],
        "graph",
        [helper.make_value_info("items", sequence)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    model = ms.serve(tmp_path / "m.onnx")
    from pytest_modelserve.robustness.strategies import fault_names, generate_malformed

    source = source_of(ms.strategies.inputs(model))
    assert source is not None
    for fault in fault_names(source):
        with pytest.raises(ms.InputError):
            model.predict(dict(generate_malformed(source, fault, seed=1)))
