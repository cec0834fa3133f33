"""A model with its steps in one graph: the same bits as apart, under the names that callers know."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pytest_modelserve.artifacts import (
    ArgMax,
    Clip,
    Impute,
    Scale,
    Softmax,
    Standardize,
    TopK,
    compose,
    composition as chain,
    open_artifact,
    save_artifact,
    steps_artifact,
)
from pytest_modelserve.errors import ArtifactError, UsageError

FLOAT = TensorProto.FLOAT
FACTOR = 0.0837


def _features(n=257, features=64, seed=0):
    return (np.random.default_rng(seed).normal(size=(n, features)) * 7).astype(np.float32)


def _matmul(make_model, features=64, classes=32):
    weight = np.random.default_rng(1).normal(size=(features, classes)).astype(np.float32)
    ends = {"features": (FLOAT, ["batch", features])}, {"logits": (FLOAT, ["batch", classes])}
    return make_model([helper.make_node("MatMul", ["features", "w"], ["logits"])], *ends, {"w": weight})


def _gemm(make_model, features=64, classes=32):
    rng = np.random.default_rng(1)
    weights = {"w": rng.normal(size=(features, classes)).astype("f"), "b": rng.normal(size=classes).astype("f")}
    ends = {"features": (FLOAT, ["batch", features])}, {"logits": (FLOAT, ["batch", classes])}
    return make_model([helper.make_node("Gemm", ["features", "w", "b"], ["logits"])], *ends, weights)


def _convolution(make_model):
    weights = {"w": np.random.default_rng(1).normal(size=(5, 1, 3)).astype("f")}
    ends = {"features": (FLOAT, ["batch", 1, 64])}, {"logits": (FLOAT, ["batch", 5, 62])}
    return make_model([helper.make_node("Conv", ["features", "w"], ["logits"])], *ends, weights)


MODELS = {"matmul": _matmul, "gemm": _gemm, "convolution": _convolution}
STEPS = {
    "scale": [Scale(FACTOR)],
    "scale-offset": [Scale(FACTOR, 0.31)],
    "standardize": [Standardize(0.3, FACTOR)],
    "standardize-each": [Standardize(np.linspace(-1, 1, 64), np.linspace(0.1, 3, 64))],
    "all": [Impute(0.5), Clip(-9, 9), Standardize(np.linspace(-1, 1, 64), np.linspace(0.1, 3, 64)), Scale(FACTOR)],
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_steps_alone_and_then_the_model_give_the_bits_of_the_composed_model(make_model, saved, store, run, kind, steps):
    artifact = saved(MODELS[kind](make_model))
    x = _features()
    x[0, :3] = np.nan
    x = x[:, None] if kind == "convolution" else x
    alone = steps_artifact(steps, artifact.signature.inputs[0], name="steps", store=store)
    apart = run(artifact, features=run(alone, features=x)["prepared"])["logits"]
    together = run(compose(artifact, preprocess=steps, store=store), features=x)["logits"]
    np.testing.assert_array_equal(together, apart)


@pytest.mark.parametrize("steps", [[Scale(FACTOR)], [Standardize(0.3, FACTOR)], [Standardize(0.0, FACTOR)]])
@pytest.mark.parametrize("kind", MODELS)
def test_the_model_and_then_steps_alone_give_the_bits_of_the_composed_model(make_model, saved, store, run, kind, steps):
    artifact = saved(MODELS[kind](make_model))
    x = _features()
    x = x[:, None] if kind == "convolution" else x
    alone = steps_artifact(steps, artifact.signature.outputs[0], name="steps", store=store)
    apart = run(alone, logits=run(artifact, features=x)["logits"])["prepared"]
    together = run(compose(artifact, postprocess=steps, store=store), features=x)["logits"]
    np.testing.assert_array_equal(together, apart)


def test_without_the_boundary_the_runtime_would_round_otherwise(make_model, saved, store, run, monkeypatch):
    # Should this fail, then onnxruntime no longer fuses a factor into a MatMul, and the boundary may have had its day.
    def nothing(_, spec):
        return chain.small_graph([chain.node("Identity", ["x"], ["y"])], spec, {"y": spec}, {})

    monkeypatch.setattr(chain.FusionBarrier, "graph", nothing)
    artifact = saved(_matmul(make_model))
    alone = steps_artifact([Scale(FACTOR)], artifact.signature.inputs[0], name="steps", store=store)
    apart = run(artifact, features=run(alone, features=_features())["prepared"])["logits"]
    together = run(compose(artifact, preprocess=[Scale(FACTOR)], store=store), features=_features())["logits"]
    assert not np.array_equal(together, apart)
    np.testing.assert_allclose(together, apart, rtol=1e-2, atol=1e-4)


def test_names_and_symbolic_dims_stay_and_the_dtype_is_what_callers_send(linear, saved, store, run):
    artifact = saved(linear(4, 3), name="digits", variant="fp32")
    composed = compose(artifact, preprocess=[Scale(1 / 16)], input_dtype="uint8", store=store)
    assert str(composed.signature) == "features: uint8[batch, 4] -> logits: float32[batch, 3]"
    assert (composed.name, composed.variant) == ("digits", "fp32")
    pixels = np.arange(8, dtype=np.uint8).reshape(2, 4)
    expected = run(artifact, features=pixels.astype(np.float32) * np.float32(1 / 16))["logits"]
    np.testing.assert_array_equal(run(composed, features=pixels)["logits"], expected)


@pytest.mark.parametrize(
    ("steps", "keep", "signature"),
    [
        ([Softmax()], (), "probabilities: float32[batch, 3]"),
        ([ArgMax()], (), "label: int64[batch]"),
        ([ArgMax(["a", "b", "c"])], (), "label: str[batch]"),
        ([TopK(2)], (), "top_labels: int64[batch, 2], top_scores: float32[batch, 2]"),
        ([Softmax(), ArgMax()], (), "label: int64[batch]"),
        ([Softmax(), ArgMax()], ("probabilities",), "label: int64[batch], probabilities: float32[batch, 3]"),
        (
            [Softmax(), TopK(1)],
            ("logits", "probabilities"),
            "top_labels: int64[batch, 1], top_scores: float32[batch, 1], logits: float32[batch, 3], "
            "probabilities: float32[batch, 3]",
        ),
        ([Scale(2.0)], (), "logits: float32[batch, 3]"),
        ([Clip(0, 1), Scale(2.0)], (), "logits: float32[batch, 3]"),
        ([Softmax(), Scale(100)], (), "probabilities: float32[batch, 3]"),
        ([Clip(-5, 5), Softmax()], ("logits",), "probabilities: float32[batch, 3], logits: float32[batch, 3]"),
    ],
)
def test_outputs_are_named_for_what_they_are(linear, saved, store, run, steps, keep, signature):
    artifact = saved(linear(4, 3))
    composed = compose(artifact, postprocess=steps, keep=keep, store=store)
    assert str(composed.signature) == f"features: float32[batch, 4] -> {signature}"
    # What the steps alone make of the logits is what the composed model gives.
    x = _features(5, 4)
    logits = run(artifact, features=x)["logits"]
    alone = run(steps_artifact(steps, artifact.signature.outputs[0], name="s", store=store), logits=logits)
    together = run(composed, features=x)
    for name, value in alone.items():
        np.testing.assert_array_equal(together["logits" if name == "prepared" else name], value)
    for name in keep:
        scores = np.exp(logits - logits.max(1, keepdims=True))
        expected = logits if name == "logits" else scores / scores.sum(1, keepdims=True)
        np.testing.assert_allclose(together[name], expected, rtol=1e-5)


def test_a_composed_model_can_be_composed_again(linear, saved, store, run):
    artifact = saved(linear(4, 3))
    twice = compose(compose(artifact, preprocess=[Scale(2.0)], store=store), preprocess=[Scale(0.5)], store=store)
    x = _features(5, 4)
    np.testing.assert_array_equal(run(twice, features=x)["logits"], run(artifact, features=x)["logits"])
    assert [step.stage for step in twice.lineage] == ["compose", "compose"]


def test_the_lineage_says_what_was_composed(linear, saved, store):
    artifact = saved(linear(4, 3))
    (step,) = compose(artifact, preprocess=[Standardize(1, [1, 2, 3, 4])], store=store).lineage
    assert step.parent == artifact.sha256
    assert step.settings == {
        "preprocess": [{"step": "Standardize", "mean": 1.0, "std": [1.0, 2.0, 3.0, 4.0], "axis": -1}],
        "postprocess": [],
        "input": None,
        "input_dtype": None,
        "output": None,
        "keep": [],
    }
    assert step.versions["onnx"] == onnx.__version__


def test_the_same_steps_are_composed_once_and_other_steps_again(linear, saved, store):
    artifact = saved(linear(4, 3))
    first = compose(artifact, preprocess=[Scale(2.0)], store=store)
    before = first.path.stat().st_mtime_ns
    assert compose(artifact, preprocess=[Scale(2.0)], store=store) == first
    assert first.path.stat().st_mtime_ns == before
    others = [
        compose(artifact, preprocess=[Scale(3.0)], store=store),
        compose(artifact, postprocess=[Scale(2.0)], store=store),
        compose(open_artifact(artifact.path, name="other"), preprocess=[Scale(2.0)], store=store),
        compose(saved(linear(4, 2), file="other.onnx"), preprocess=[Scale(2.0)], store=store),
    ]
    assert len({first.sha256, *(other.sha256 for other in others)}) == 5


def test_everything_else_of_the_model_stays(linear, saved, store):
    # The dynamo exporter writes the source line of every node into the node's metadata.
    model = linear(4, 3)
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File model.py, line 3")
    model.graph.metadata_props.add(key="graph", value="kept")
    model.metadata_props.add(key="author", value="us")
    model.graph.doc_string, model.producer_name, model.producer_version = "a toy", "pytorch", "2.13"
    before = model.graph.node[0]
    composed = compose(saved(model), preprocess=[Scale(2.0)], postprocess=[Softmax()], store=store)
    after = onnx.load(composed.path)
    (matmul,) = [node for node in after.graph.node if node.name == "matmul"]
    assert matmul.metadata_props == before.metadata_props
    assert [(entry.key, entry.value) for entry in after.graph.metadata_props] == [("graph", "kept")]
    assert ("author", "us") in [(entry.key, entry.value) for entry in after.metadata_props]
    assert (after.graph.name, after.graph.doc_string) == ("graph", "a toy")
    assert (after.producer_name, after.producer_version) == ("pytorch", "2.13")
    assert (after.ir_version, [entry.version for entry in after.opset_import]) == (10, [20])


@pytest.mark.parametrize("opset", [13, 17, 18, 21, onnx.defs.onnx_opset_version()])
def test_the_model_keeps_its_opset(linear, saved, store, run, opset):
    artifact = saved(linear(4, 3, opset=opset))
    steps = {"preprocess": [Impute(0), Clip(-9, 9), Standardize(1, 2)], "postprocess": [Softmax(), TopK(2)]}
    composed = compose(artifact, **steps, store=store)
    assert [entry.version for entry in onnx.load(composed.path).opset_import] == [opset]
    # The steps alone are written in one opset, whatever the model's: the bits agree all the same.
    before, after = artifact.signature.inputs[0], artifact.signature.outputs[0]
    x = _features(50, 4)
    prepared = run(steps_artifact(steps["preprocess"], before, name="before", store=store), features=x)["prepared"]
    logits = run(artifact, features=prepared)["logits"]
    apart = run(steps_artifact(steps["postprocess"], after, name="after", store=store), logits=logits)
    together = run(composed, features=x)
    for name in ("top_labels", "top_scores"):
        np.testing.assert_array_equal(together[name], apart[name])


def test_an_old_opset_is_refused(linear, saved, store):
    artifact = saved(linear(4, 3, opset=12))
    with pytest.raises(UsageError, match="the model has opset 12, and steps need 13 or later"):
        compose(artifact, postprocess=[Softmax()], store=store)


def test_a_model_of_other_operators_alone_gets_the_opset_of_the_steps(saved, store, run):
    ends = [[helper.make_tensor_value_info(name, FLOAT, ["n", 3])] for name in "xy"]
    scaler = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0], scale=[2.0])
    opsets = [helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(helper.make_graph([scaler], "graph", *ends), opset_imports=opsets, ir_version=10)
    composed = compose(saved(model), preprocess=[Scale(0.5)], store=store)
    np.testing.assert_array_equal(run(composed, x=np.ones((2, 3), np.float32))["y"], np.ones((2, 3)))


def _two_ended(make_model):
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Sub", ["a", "b"], ["difference"]),
        helper.make_node("Add", ["sum", "probabilities"], ["label"]),
        helper.make_node("Mul", ["label", "difference"], ["out"]),
    ]
    pair = {"a": (FLOAT, ["n", 2]), "b": (FLOAT, ["n", 2])}
    weights = {"probabilities": np.zeros(2, np.float32)}
    return make_model(nodes, pair, {"out": (FLOAT, ["n", 2]), "sum": (FLOAT, ["n", 2])}, weights)


def test_one_of_several_inputs_and_outputs_can_be_named(make_model, saved, store, run):
    artifact = saved(_two_ended(make_model))
    a, b = _features(4, 2), _features(4, 2, seed=1)
    prepared = compose(artifact, preprocess=[Scale(2.0)], input="b", store=store)
    assert [spec.name for spec in prepared.signature.inputs] == ["a", "b"]
    np.testing.assert_array_equal(run(prepared, a=a, b=b)["sum"], a + 2 * b)
    # The model has values of its own called "label" and "probabilities": they make room.
    steps = [Softmax(), ArgMax()]
    labeled = compose(artifact, postprocess=steps, output="sum", keep=["probabilities", "out"], store=store)
    assert [spec.name for spec in labeled.signature.outputs] == ["label", "probabilities", "out"]
    given = run(labeled, a=a, b=b)
    np.testing.assert_array_equal(given["label"], (a + b).argmax(1))
    np.testing.assert_array_equal(given["out"], (a + b) * (a - b))


def test_a_model_with_branches_reads_what_the_steps_prepared(make_model, saved, store, run):
    # Both branches read the input and a weight of the graph around them.
    branches = {
        f"{word}_branch": helper.make_graph(
            [helper.make_node(operator, ["x", "w"], [word])],
            word,
            [],
            [helper.make_tensor_value_info(word, FLOAT, None)],
        )
        for word, operator in (("then", "Add"), ("else", "Mul"))
    }
    nodes = [helper.make_node("If", ["c"], ["y"], **branches)]
    inputs = {"x": (FLOAT, ["n"]), "c": (TensorProto.BOOL, [])}
    artifact = saved(make_model(nodes, inputs, {"y": (FLOAT, ["n"])}, {"w": np.float32([3])}))
    composed = compose(artifact, preprocess=[Scale(10.0)], input="x", postprocess=[Scale(2.0)], store=store)
    x = np.float32([1, 2])
    np.testing.assert_array_equal(run(composed, x=x, c=np.array(True))["y"], (10 * x + 3) * 2)
    np.testing.assert_array_equal(run(composed, x=x, c=np.array(False))["y"], (10 * x * 3) * 2)


def test_functions_of_the_model_stay(saved, store, run):
    opset = helper.make_opsetid("", 20)
    double = helper.make_function("ours", "Double", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], [opset])
    graph = helper.make_graph(
        [helper.make_node("Double", ["x"], ["y"], domain="ours")],
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", FLOAT, ["n"])],
    )
    model = helper.make_model(
        graph, functions=[double], opset_imports=[opset, helper.make_opsetid("ours", 1)], ir_version=10
    )
    composed = compose(saved(model), preprocess=[Scale(3.0)], store=store)
    np.testing.assert_array_equal(run(composed, x=np.float32([1, 2]))["y"], [6, 12])


def test_external_weights_come_along_without_being_loaded(linear, store, tmp_path, run):
    model = linear(64, 32)
    (tmp_path / "model").mkdir()
    onnx.save(
        model, tmp_path / "model" / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    artifact = open_artifact(tmp_path / "model" / "m.onnx")
    composed = compose(artifact, preprocess=[Scale(0.5)], store=store)
    assert [path.name for path in composed.external] == ["weights.bin"]
    assert composed.path.stat().st_size < 3000
    assert composed.initializer_bytes == artifact.initializer_bytes + 4
    x = _features(3)
    expected = run(artifact, features=x * np.float32(0.5))["logits"]
    np.testing.assert_array_equal(run(composed, features=x)["logits"], expected)


def test_external_weights_under_the_name_of_the_result_are_refused(linear, store, tmp_path):
    onnx.save(linear(64, 32), tmp_path / "m.onnx", save_as_external_data=True, location="model.onnx", size_threshold=0)
    with pytest.raises(ArtifactError, match=r"/m\.onnx are named model\.onnx: rename them"):
        compose(open_artifact(tmp_path / "m.onnx"), preprocess=[Scale(0.5)], store=store)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "compose needs at least one step, in preprocess= or postprocess="),
        ({"preprocess": [Scale(2.0)]}, "the model has 2 inputs, 'a', 'b'"),
        ({"postprocess": [Softmax()]}, "the model has 2 outputs, 'out', 'sum'"),
        ({"preprocess": [Scale(2.0)], "input": "c"}, "unknown input 'c': known: 'a', 'b'"),
        ({"postprocess": [Softmax()], "output": "sun"}, "unknown output 'sun': did you mean 'sum'? Known"),
        ({"postprocess": [Softmax()], "output": "sum", "keep": ["outt"]}, "unknown output to keep 'outt'"),
        ({"postprocess": [Softmax()], "output": "sum", "keep": ["probabilities"]}, "keep= names 'probabilities'"),
        ({"postprocess": [Scale(2.0)], "output": "sum", "keep": ["sum"]}, "keep= names 'sum', which is the name"),
        ({"postprocess": [Softmax()], "output": "sum", "input": "a"}, "input= needs steps in preprocess="),
        ({"preprocess": [Scale(2.0)], "input": "a", "keep": ["sum"]}, "keep= needs steps in postprocess="),
        (
            {"preprocess": [Clip(0, 9)], "input": "a", "input_dtype": "uint8"},
            "preprocess= converts a: uint8[n, 2] to uint8, but the model takes a: float32[n, 2]",
        ),
        ({"preprocess": [Softmax()], "input": "a", "input_dtype": "unit8"}, "Softmax takes float32, float64, float16"),
        ({"postprocess": [ArgMax(), Scale(2.0)], "output": "sum"}, "Scale cannot follow ArgMax, which must"),
        ({"preprocess": [TopK(1)], "input": "a"}, "preprocess= has TopK, whose result is not an input"),
    ],
)
def test_what_cannot_be_composed_is_refused_and_leaves_nothing(make_model, saved, store, settings, message):
    artifact = saved(_two_ended(make_model))
    with pytest.raises(UsageError) as caught:
        compose(artifact, **settings, store=store)
    assert str(caught.value).startswith(message)
    assert not list(store.root.glob("entries/*"))


@pytest.mark.parametrize(("name", "keep"), [("label", ()), ("probabilities", ("probabilities",))])
def test_an_input_called_like_a_result_is_refused(make_model, saved, store, name, keep):
    node = helper.make_node("Neg", [name], ["y"])
    model = make_model([node], {name: (FLOAT, ["n", 2])}, {"y": (FLOAT, ["n", 2])})
    with pytest.raises(UsageError, match="of the steps has the name of an input of the model"):
        compose(saved(model), postprocess=[Softmax(), ArgMax()], keep=keep, store=store)


@pytest.mark.parametrize(("side", "word"), [("preprocess", "precede"), ("postprocess", "follow")])
def test_an_input_that_is_also_an_output_is_refused(make_model, saved, store, side, word):
    model = make_model([], {"x": (FLOAT, ["n"])}, {"x": (FLOAT, ["n"])})
    with pytest.raises(UsageError, match="the model returns its input 'x' unchanged, so no step can"):
        compose(saved(model), **{side: [Scale(2.0)]}, store=store)


def test_a_model_that_onnx_rejects_is_reported(linear, store, tmp_path):
    model = linear(4, 3)
    model.graph.node[0].op_type = "MatMull"
    artifact = save_artifact(model, tmp_path / "m.onnx", name="digits", variant="", lineage=())
    with pytest.raises(ArtifactError) as caught:
        compose(artifact, preprocess=[Scale(2.0)], store=store)
    assert str(caught.value).startswith("the model of digits with its steps is invalid (onnx.checker): ")
    assert "MatMull" in str(caught.value)
