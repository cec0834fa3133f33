"""Generated base rows: operator parameters get valid values, from the graph or by calling the model."""

import sys
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import pytest_modelserve as ms
from benchmarks import onnx_inputs
from pytest_modelserve.artifacts import TensorSpec
from pytest_modelserve.robustness.base_rows import BaseRowGenerator
from pytest_modelserve.robustness.mutations import edge_cases
from pytest_modelserve.robustness.operator_inputs import BOUNDED, JOINT, OperatorUse
from pytest_modelserve.robustness.strategies import fault_names, generate_malformed, source_of

r = ms.relations


def examples(strategy, count=20):
    return [strategy.at(rows=1 + seed % 2, edits=seed % 4, seed=seed) for seed in range(count)]


def source(strategy):
    found = source_of(strategy)
    assert found is not None
    return found


def test_one_model_of_every_operator_gets_inputs_that_it_accepts(monkeypatch):
    pytest.importorskip("hypothesis")
    for slow in ("averagepool", "lppool", "maxpool"):  # onnx computes reference outputs of these for 10 s
        module = f"onnx.backend.test.case.node.{slow}"
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    first = {}
    for name, model in onnx_inputs.cases():
        first.setdefault(model.graph.node[-1].op_type, (name, model))
    outcomes = {name: onnx_inputs.outcome(model) for name, model in first.values() if "empty" not in name}
    loaded = {name: outcome for name, outcome in outcomes.items() if outcome["loaded"]}
    missed = [name for name, outcome in loaded.items() if not onnx_inputs.is_accepted(outcome)]
    assert len(loaded) > 150
    assert len(missed) / len(loaded) <= 1 - onnx_inputs.GOAL, missed


@pytest.mark.parametrize("cast", [False, True])
def test_an_index_reaches_every_row_of_its_table_and_none_beyond(cast, onnx_model):
    nodes = [
        *([helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64)] if cast else []),
        helper.make_node("Identity", ["wide" if cast else "ids"], ["same"]),
        helper.make_node("Gather", ["table", "same"], ["y"]),
    ]
    inputs, outputs = {"ids": ("int32" if cast else "int64", ["batch", 4])}, {"y": ("float32", ["batch", 4, 2])}
    path = onnx_model(nodes, inputs, outputs, table=np.zeros((9, 2), np.float32))
    strategy = ms.strategies.inputs(ms.open_artifact(path) if cast else ms.serve(path))
    ids = np.concatenate([feed["ids"] for feed in examples(strategy, 200)])
    assert set(np.unique(ids)) == set(range(9))
    assert source(strategy).accepts is None


def test_joint_parameters_vary_and_stay_valid_in_examples_and_searches(onnx_model):
    nodes = [helper.make_node("Slice", ["x", "starts", "ends", "axes"], ["y"])]
    inputs = {"x": ("float32", [4, 6, 3]), **{name: ("int64", [2]) for name in ("starts", "ends", "axes")}}
    model = ms.serve(onnx_model(nodes, inputs, {"y": ("float32", ["a", "b", "c"])}))
    strategy = ms.strategies.inputs(model)
    assert source(strategy).accepts is None
    seen = {tuple(feed["axes"]) for feed in examples(strategy, 40)}
    assert len(seen) > 2
    assert all(len({axis % 3 for axis in axes}) == 2 for axes in seen)
    space = source(strategy).space()
    base = {tuple(axes) for axes in space.base["axes"]}
    assert {tuple(axes) for rows, _ in edge_cases(space, 2000) for axes in rows["axes"]} <= base
    assert ms.measure_relation(model, strategy, r.determinism()).n == 1000


def test_an_unknown_parameter_is_found_by_calling_the_model(onnx_model):
    # The shape is computed, so that only the model itself can tell which values are valid.
    nodes = [helper.make_node("Mul", ["half", "two"], ["shape"]), helper.make_node("Reshape", ["x", "shape"], ["y"])]
    inputs = {"x": ("float32", [4, 6]), "half": ("int64", [2])}
    model = ms.serve(onnx_model(nodes, inputs, {"y": ("float32", ["a", "b"])}, two=np.array([2, 2])))
    strategy = ms.strategies.inputs(model)
    assert all(model.predict(feed)["y"].size == 24 for feed in examples(strategy))
    assert repr(strategy.at(seed=3)["half"]) == repr(ms.strategies.inputs(model).at(seed=3)["half"])


def test_a_model_that_rejects_everything_still_gets_the_simple_rows(onnx_model):
    nodes = [helper.make_node("Mul", ["n", "zero"], ["shape"]), helper.make_node("Reshape", ["x", "shape"], ["y"])]
    inputs = {"x": ("float32", [5]), "n": ("int64", [2])}
    path = onnx_model(nodes, inputs, {"y": ("float32", ["a", "b"])}, zero=np.array([0, 0]))
    assert ms.strategies.inputs(ms.serve(path)).at()["x"].shape == (5,)


def test_parameters_of_given_rows_are_not_mutated(onnx_model):
    nodes = [helper.make_node("TopK", ["x", "k"], ["y", "places"])]
    inputs = {"x": ("float32", ["n", 6]), "k": ("int64", [1])}
    outputs = {"y": ("float32", ["n", "m"]), "places": ("int64", ["n", "m"])}
    model = ms.serve(onnx_model(nodes, inputs, outputs))
    like = {"x": np.eye(3, 6, dtype=np.float32), "k": np.array([2])}
    feeds = examples(ms.strategies.inputs(model, like=like, domain=("like", "far", "special")), 60)
    assert {int(feed["k"][0]) for feed in feeds} == {2}
    assert len({feed["x"].tobytes() for feed in feeds}) > 10


@pytest.mark.parametrize("data", [None, (), (1,), (3, 0, 2), ("n", 4, 4)])
@pytest.mark.parametrize("size", [None, 0, 3, 8])
def test_base_rows_are_generated_for_any_inconsistent_graph(data, size):
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


def test_sequences_are_generated_as_they_are_served_and_malformed_ones_are_rejected(tmp_path):
    pytest.importorskip("hypothesis")
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2]))
    graph = helper.make_graph(
        [helper.make_node("ConcatFromSequence", ["items"], ["y"], axis=0)],
        "graph",
        [helper.make_value_info("items", sequence)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert onnx_inputs.is_accepted(onnx_inputs.outcome(model))
    onnx.save(model, tmp_path / "m.onnx")
    predictor = ms.serve(tmp_path / "m.onnx")
    generator = source(ms.strategies.inputs(predictor))
    for fault in fault_names(generator):
        with pytest.raises(ms.InputError):
            predictor.predict(dict(generate_malformed(generator, fault, seed=1)))
