"""Quantization to a budget: nodes leave int8 in the order of their damage."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import pytest_modelserve as ms
from pytest_modelserve.artifacts import save_artifact
from pytest_modelserve.errors import UsageError
from pytest_modelserve.tuning import tune
from pytest_modelserve.tuning.variant_search import _counts


@pytest.fixture(scope="module")
def fragile(tmp_path_factory):
    """A network of five layers of which one loses its signal in 8 bits: one weight of each channel takes all steps."""
    rng = np.random.default_rng(0)
    weights = {f"w{number}": rng.standard_normal((32, 32)).astype(np.float32) / 6 for number in range(4)}
    weights["w4"] = rng.standard_normal((32, 4)).astype(np.float32)
    weights["w0"][:, 0] = 0
    weights["w1"][0] = 8
    nodes, value = [], "x"
    for number in range(5):
        output = "y" if number == 4 else f"h{number}"
        nodes.append(helper.make_node("MatMul", [value, f"w{number}"], [output], name=f"layer{number}"))
        value = f"t{number}"
        if number < 4:
            nodes.append(helper.make_node("Tanh", [output], [value], name=f"tanh{number}"))
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", w]) for n, w in (("x", 32), ("y", 4))]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return save_artifact(model, tmp_path_factory.mktemp("m") / "net.onnx", name="net", variant="fp32", lineage=())


@pytest.fixture(scope="module")
def rows(fragile):
    x = np.random.default_rng(1).standard_normal((4000, 32)).astype(np.float32)
    with ms.serve(fragile) as predictor:
        outputs = predictor.predict(x)["y"]
    return x, outputs, outputs.argmax(axis=1)


def _tuned(fragile, rows, store, *, max_drop, count=4000, **options):
    x, outputs, labels = (each[:count] for each in rows)
    return tune(
        fragile,
        x[:1],
        gates=lambda candidate: ms.assert_accuracy_parity(candidate, outputs, x, labels, max_drop=max_drop),
        store=store,
        **{"recipe": "int8-dynamic", "objective": "size", **options},
    )


def test_the_damaging_node_leaves_int8_until_the_gate_holds(fragile, rows, store):
    found = _tuned(fragile, rows, store, max_drop=0.05)
    step = found.chosen.lineage[-1]
    assert step.settings["exclude"] == ["layer1"]
    assert found.best.name == "int8-dynamic without 1 node"
    all_nodes = next(trial for trial in found.trials if trial.name == "int8-dynamic")
    assert all_nodes.outcome in ("not shown", "fails")
    assert all_nodes.probability < 0.5
    assert found.selection.family <= 6
    assert "70 % of rows that were not searched" in str(found)


def test_a_budget_that_all_nodes_keep_excludes_none(fragile, rows, store):
    assert _tuned(fragile, rows, store, max_drop=0.9).best.name == "int8-dynamic"


def test_a_budget_that_no_number_of_nodes_keeps_is_reported(fragile, rows, store):
    found = _tuned(fragile, rows, store, max_drop=0.0005)
    assert found.chosen is None
    assert found.nearest is not None
    with pytest.raises((ms.GateFailure, ms.GateInconclusive)):
        found.require()


def test_too_few_rows_to_divide_are_refused(fragile, rows, store):
    with pytest.raises(UsageError, match="40 independent rows, too few to search on 30 % of them"):
        _tuned(fragile, rows, store, max_drop=0.05, count=40)


def test_static_quantization_takes_its_calibration(fragile, rows, store):
    found = _tuned(
        fragile, rows, store, max_drop=0.05, recipe="int8-static", calibration=[rows[0][:64], rows[0][64:96]]
    )
    assert found.best.name.startswith("int8-static without ")


@pytest.mark.parametrize("needed", [0, 1, 3, 11, 40])
def test_numbers_of_nodes_are_doubled_and_then_halved(needed):
    counts = list(_counts(41, lambda count: 1.0 if count >= needed else 0.0))
    assert needed in counts
    assert len(counts) == len(set(counts)) <= 15
    assert counts[:2] == [0, 1]
