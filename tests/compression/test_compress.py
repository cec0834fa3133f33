from __future__ import annotations

import logging
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_modelserve.artifacts import LineageStep, Store, load_model, open_artifact, save_artifact
from pytest_modelserve.compression import RECIPES, Recipe, compress
from pytest_modelserve.compression.recipe import Applied
from pytest_modelserve.errors import ArtifactError, MissingDependencyError, RecipeError, UsageError
from pytest_modelserve.serving import serve

RNG = np.random.default_rng(0)
KNOWN = "'simplify', 'optimize', 'fp16', 'int8-dynamic', 'int8-static', 'int4-weights'"
EXPORTED = LineageStep("export", {"traced": {"batch": 2, "time": 12}}, None, {})


def weight(*shape, dtype=np.float32):
    return RNG.standard_normal(shape).astype(dtype)


def built(nodes, inputs, outputs, weights, dtype=TensorProto.FLOAT):
    """A model of `nodes`, each (operator, inputs, output, attributes)."""

    def values(shapes):
        return [helper.make_tensor_value_info(name, dtype, shape) for name, shape in shapes.items()]

    made = [
        helper.make_node(op, takes, [gives], name=f"node_{gives}", **attributes)
        for op, takes, gives, attributes in nodes
    ]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(made, "g", values(inputs), values(outputs), stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def mlp(**changes):
    weights = {"w1": weight(8, 32), "b1": weight(32), "w2": weight(32, 4), "b2": weight(4), **changes}
    nodes = [
        ("Gemm", ["x", "w1", "b1"], "h", {}),
        ("Relu", ["h"], "r", {}),
        ("Gemm", ["r", "w2", "b2"], "y", {}),
    ]
    dtype = helper.np_dtype_to_tensor_dtype(weights["w1"].dtype)
    return built(nodes, {"x": ["batch", 8]}, {"y": ["batch", 4]}, weights, dtype)


def wordy():
    """An MLP with a constant to fold and a node that does nothing."""
    nodes = [
        ("Add", ["one", "one"], "two", {}),
        ("Mul", ["x", "two"], "scaled", {}),
        ("Identity", ["scaled"], "same", {}),
        ("MatMul", ["same", "w"], "y", {}),
    ]
    return built(nodes, {"x": ["batch", 8]}, {"y": ["batch", 4]}, {"one": np.ones(8, np.float32), "w": weight(8, 4)})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


@pytest.fixture
def saved(tmp_path):
    def save(model, *, name="net", variant="fp32", lineage=(EXPORTED,)):
        return save_artifact(model, tmp_path / f"{name}.onnx", name=name, variant=variant, lineage=lineage)

    return save


@pytest.fixture
def recipe(monkeypatch):
    """Install a recipe made of a function that changes the model in place or returns another."""

    def install(function, *, is_exact=False):
        def apply(model, material):
            return Applied(function(model) or model)

        monkeypatch.setitem(RECIPES, "planted", Recipe("planted", apply, (), is_exact))

    return install


def answers(artifact, inputs):
    with serve(artifact) as predictor:
        return predictor.predict(inputs)


def noise_db(artifact, source, inputs):
    """The quantisation noise of each output below its signal."""
    got, expected = answers(artifact, inputs), answers(source, inputs)
    return {name: 10 * np.log10((y**2).sum() / ((y - got[name]) ** 2).sum()) for name, y in expected.items()}


def refusal(artifact, recipe, store):
    with pytest.raises(RecipeError) as caught:
        compress(artifact, recipe, store=store)
    assert not list((store.root / "entries").iterdir())
    return str(caught.value)


# simplify ------------------------------------------------------------------------------------------------------------


def test_simplify_removes_nodes_and_keeps_answers_axes_and_names(saved, store, capfd):
    source = saved(wordy())
    simple = compress(source, "simplify", store=store)
    assert simple.signature == source.signature
    assert simple.variant == "simplify"
    assert simple.lineage[-1].settings["nodes_before"] == {"Add": 1, "Identity": 1, "MatMul": 1, "Mul": 1}
    assert simple.lineage[-1].settings["nodes_after"] == {"MatMul": 1, "Mul": 1}
    x = weight(9, 8)
    np.testing.assert_allclose(answers(simple, x)["y"], answers(source, x)["y"], rtol=1e-5)
    assert capfd.readouterr() == ("", "")


def test_simplify_leaves_no_report_in_the_file(saved, store):
    simple = compress(saved(wordy()), "simplify", store=store)
    assert [entry.key for entry in load_model(simple).metadata_props] == ["pytest_modelserve"]


def test_nodes_that_stay_keep_the_metadata_that_onnxsim_drops(saved, store):
    model = wordy()
    for node in model.graph.node:
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value=f"line of {node.name}")
    simple = compress(saved(model), "simplify", store=store)
    kept = {node.name: [entry.value for entry in node.metadata_props] for node in load_model(simple).graph.node}
    assert kept["node_y"] == ["line of node_y"]


def test_nothing_to_simplify_is_an_error_that_says_so(saved, store):
    assert refusal(saved(mlp()), "simplify", store) == (
        "recipe 'simplify' on net / fp32: there is nothing to simplify: the same nodes (3) and initializers (4) as before"
    )


def test_traced_length_that_a_file_wrongly_claims_is_not_baked_in(saved, store):
    # What torch 2.13 writes after a recurrent layer with a free time axis.
    nodes = [
        ("Shape", ["x"], "dims", {}),
        ("Cast", ["dims"], "numbers", {"to": TensorProto.FLOAT}),  # nothing infers a shape through these two
        ("Cast", ["numbers"], "shape", {"to": TensorProto.INT64}),
        ("Reshape", ["x", "shape"], "h", {}),
        ("Identity", ["h"], "same", {}),
        ("MatMul", ["same", "w"], "product", {}),
        ("Add", ["product", "b"], "y", {}),
    ]
    weights = {"w": weight(2, 3), "b": weight(3)}
    model = built(nodes, {"x": ["batch", "time", 2]}, {"y": ["batch", "time", 3]}, weights)
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["batch", 12, 2]))
    simple = compress(saved(model), "simplify", store=store)
    assert answers(simple, weight(5, 7, 2))["y"].shape == (5, 7, 3)


def test_missing_onnxsim_names_the_extra(saved, store, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    with pytest.raises(MissingDependencyError) as caught:
        compress(saved(wordy()), "simplify", store=store)
    assert str(caught.value) == (
        "the recipe 'simplify' needs onnxsim, which is not installed: pip install 'pytest-modelserve[compress]'"
    )


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        ((wordy(), False), "onnxsim's own check found other answers after simplifying than before"),
        (RuntimeError("shape inference"), "onnxsim failed: shape inference"),
    ],
)
def test_failure_of_onnxsim_is_told(saved, store, monkeypatch, outcome, told):
    import onnxsim

    def simplify(*_, check_n, **__):
        assert check_n > 0  # without, its "ok" means nothing
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(onnxsim, "simplify", simplify)
    assert refusal(saved(mlp()), "simplify", store) == f"recipe 'simplify' on net / fp32: {told}"


# int8-dynamic --------------------------------------------------------------------------------------------------------


def test_int8_shrinks_the_weights_and_stays_close(saved, store):
    source = saved(mlp())
    small = compress(source, "int8-dynamic", store=store)
    assert small.variant == "int8-dynamic"
    assert small.signature == source.signature
    assert small.initializer_bytes < source.initializer_bytes / 2
    assert noise_db(small, source, weight(64, 8))["y"] > 30
    step = small.lineage[-1]
    assert (step.stage, step.parent, step.notes) == ("compression", source.sha256, ())
    assert step.settings["recipe"] == "int8-dynamic"
    assert step.settings["nodes_before"] == {"Gemm": 2, "Relu": 1}
    assert step.settings["nodes_after"]["MatMulInteger"] == 2
    assert set(step.versions) == {"onnx", "onnxruntime"}


def test_convolutions_stay_in_float_where_they_are_faster(saved, store):
    nodes = [("Conv", ["x", "k"], "h", {}), ("MatMul", ["h", "w"], "y", {})]
    model = built(nodes, {"x": ["batch", 2, 8]}, {"y": ["batch", 3, 4]}, {"k": weight(3, 2, 1), "w": weight(8, 4)})
    small = compress(saved(model), "int8-dynamic", store=store)
    assert small.lineage[-1].notes == ("left in float: Conv ×1 (node_h)",)
    assert small.lineage[-1].settings["nodes_after"]["MatMulInteger"] == 1


def test_layers_without_an_int8_form_are_noted(saved, store):
    nodes = [("ConvTranspose", ["x", "k"], "h", {}), ("MatMul", ["h", "w"], "y", {})]
    model = built(nodes, {"x": ["batch", 2, 8]}, {"y": ["batch", 3, 4]}, {"k": weight(2, 3, 1), "w": weight(8, 4)})
    small = compress(saved(model), "int8-dynamic", store=store)
    assert small.lineage[-1].notes == ("left in float: ConvTranspose ×1 (node_h)",)


def test_model_that_does_not_shrink_is_noted(saved, store):
    model = built([("MatMul", ["x", "w"], "y", {})], {"x": ["batch", 1]}, {"y": ["batch", 1]}, {"w": weight(1, 1)})
    small = compress(saved(model), "int8-dynamic", store=store)
    assert small.lineage[-1].notes == ("initializers did not shrink: 4 bytes before, 6 after",)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            built([("Conv", ["x", "k"], "y", {})], {"x": ["batch", 2, 8]}, {"y": None}, {"k": weight(3, 2, 1)}),
            "there is nothing to quantise: no MatMul, Gemm, LSTM or Gather with constant float32 weights among Conv ×1",
        ),
        (
            built([("Relu", ["x"], "y", {})], {"x": ["batch", 2]}, {"y": ["batch", 2]}, {}),
            "there is nothing to quantise: no MatMul, Gemm, LSTM or Gather with constant float32 weights among Relu ×1",
        ),
        (
            mlp(
                **{
                    k: weight(*s, dtype=np.float64)
                    for k, s in {"w1": (8, 3), "b1": (3,), "w2": (3, 4), "b2": (4,)}.items()
                }
            ),
            "there is nothing to quantise: no MatMul, Gemm, LSTM or Gather with constant float32 weights among "
            "Gemm ×2, Relu ×1",
        ),
        (
            mlp(
                **{
                    k: weight(*s, dtype=np.float16)
                    for k, s in {"w1": (8, 3), "b1": (3,), "w2": (3, 4), "b2": (4,)}.items()
                }
            ),
            "the weights are float16 and quantisation takes float32: quantise the fp32 model",
        ),
        (
            mlp(w2=np.full((32, 4), np.nan, np.float32)),
            "initializer 'w2' holds 128 NaN, so it has no int8 form",
        ),
    ],
    ids=["convolutions only", "no weights", "float64", "float16", "NaN"],
)
def test_model_without_an_int8_form_is_refused(saved, store, model, told):
    assert refusal(saved(model), "int8-dynamic", store) == f"recipe 'int8-dynamic' on net / fp32: {told}"


def test_infinite_weights_are_refused(saved, store):
    weights = weight(32, 4)
    weights[0, 0] = np.inf
    assert refusal(saved(mlp(w2=weights)), "int8-dynamic", store) == (
        "recipe 'int8-dynamic' on net / fp32: 'w2_scale' came out NaN or infinite: the weights behind it are infinite or "
        "too large"
    )


def test_quantising_twice_is_refused(saved, store):
    small = compress(saved(mlp()), "int8-dynamic", store=store)
    with pytest.raises(RecipeError) as caught:
        compress(small, "int8-dynamic", store=store)
    assert str(caught.value) == (
        "recipe 'int8-dynamic' on net / int8-dynamic: the model is quantised already (DynamicQuantizeLinear ×2, "
        "MatMulInteger ×2): quantise the one that it was made from"
    )


def test_quantizer_leaves_logging_as_it_was(saved, store, caplog, monkeypatch):
    root = logging.getLogger()
    before = (list(root.handlers), list(root.filters))
    compress(saved(mlp()), "int8-dynamic", store=store)
    assert (root.handlers, root.filters) == before
    assert not caplog.records


# any recipe ----------------------------------------------------------------------------------------------------------


def test_several_recipes_are_applied_in_order_and_each_step_is_kept(saved, store):
    source = saved(wordy())
    small = compress(source, ["simplify", "int8-dynamic"], store=store)
    assert small.variant == "simplify+int8-dynamic"
    export, simplify, quantise = small.lineage
    assert export == EXPORTED
    assert simplify.parent == source.sha256
    assert quantise.parent == compress(source, "simplify", store=store).sha256


def test_variant_of_a_model_from_elsewhere_is_kept(saved, store):
    assert compress(saved(mlp(), variant="champion"), "int8-dynamic", store=store).variant == "champion+int8-dynamic"


def test_same_recipe_on_the_same_artifact_runs_once(saved, store, monkeypatch):
    import onnxruntime.quantization

    source = saved(mlp())
    first = compress(source, "int8-dynamic", store=store)
    monkeypatch.setattr(onnxruntime.quantization, "quantize_dynamic", None)
    assert compress(source, "int8-dynamic", store=store) == first


def test_source_is_not_touched(saved, store):
    source = saved(wordy())
    before = source.path.read_bytes()
    compress(source, ["simplify", "int8-dynamic"], store=store)
    assert source.path.read_bytes() == before


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("simplfy", f"unknown recipe 'simplfy': did you mean 'simplify'? Known: {KNOWN}"),
        (["simplify", "bitnet"], f"unknown recipe 'bitnet': Known: {KNOWN}"),
        ([], f"no recipe is given; known: {KNOWN}"),
    ],
)
def test_unknown_recipe_is_refused_before_any_work(saved, store, recipe, told):
    with pytest.raises(UsageError) as caught:
        compress(saved(wordy()), recipe, store=store)
    assert str(caught.value) == told
    assert not store.root.exists()


def test_exact_recipe_that_changes_an_answer_is_refused(saved, store, recipe):
    def nudge(model):
        bias = numpy_helper.to_array(model.graph.initializer[3]) + np.float32(0.01)
        model.graph.initializer[3].CopyFrom(numpy_helper.from_array(bias, "b2"))

    recipe(nudge, is_exact=True)
    told = refusal(saved(mlp()), "planted", store)
    assert told.startswith(
        "recipe 'planted' on net / fp32: the result answers otherwise than its source on random x [2, 8]: output 'y': "
        "8 of 8 elements are beyond rtol 0.0001"
    )


def test_recipe_that_makes_nan_is_refused(saved, store, recipe):
    def spoil(model):
        model.graph.initializer[3].CopyFrom(numpy_helper.from_array(np.full(4, np.nan, np.float32), "b2"))

    recipe(spoil)
    assert refusal(saved(mlp()), "planted", store) == (
        "recipe 'planted' on net / fp32: output 'y' has 8 NaN or infinities on random x [2, 8] that the source has not"
    )


def test_recipe_that_fixes_the_batch_is_refused(saved, store, recipe):
    def fix(model):
        model.graph.node[-1].output[0] = "before"
        model.graph.node.append(helper.make_node("Reshape", ["before", "two"], ["y"]))
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 4]), "two"))

    recipe(fix)
    told = refusal(saved(mlp()), "planted", store)
    assert told.startswith(
        "recipe 'planted' on net / fp32: the result does not run on x [5, 8], on which the source does"
    )


def test_recipe_that_changes_the_signature_is_refused(saved, store, recipe):
    def rename(model):
        model.graph.input[0].name = model.graph.node[0].input[0] = "z"

    recipe(rename)
    assert refusal(saved(mlp()), "planted", store) == (
        "recipe 'planted' on net / fp32: the signature changed from x: float32[batch, 8] -> y: float32[batch, 4] to "
        "z: float32[batch, 8] -> y: float32[batch, 4]"
    )


def test_output_shape_that_a_tool_forgets_is_put_back(saved, store, recipe):
    def forget(model):
        model.graph.output[0].type.tensor_type.shape.dim[0].Clear()

    recipe(forget)
    source = saved(mlp())
    assert compress(source, "planted", store=store).signature == source.signature


def test_result_that_onnxruntime_does_not_take_is_refused(saved, store, recipe):
    def break_it(model):
        model.graph.node[1].op_type = "NoSuchOperator"

    recipe(break_it)
    assert "onnxruntime does not take the result" in refusal(saved(mlp()), "planted", store)


def test_recipe_that_writes_to_its_source_is_found_out(saved, store, recipe):
    source = saved(mlp())

    def overwrite(model):
        source.path.write_bytes(source.path.read_bytes() + b"\x00")

    recipe(overwrite)
    with pytest.raises(ArtifactError):
        compress(source, "planted", store=store)
    assert not list((store.root / "entries").iterdir())


def test_artifact_that_changed_on_disk_is_refused(saved, store):
    source = saved(mlp())
    onnx.save(mlp(), source.path)
    with pytest.raises(ArtifactError, match="has changed since it was opened"):
        compress(source, "int8-dynamic", store=store)


def test_external_weights_are_read_and_their_loss_is_told(tmp_path, store):
    model = mlp()
    onnx.save(model, tmp_path / "ext.onnx", save_as_external_data=True, location="ext.data", size_threshold=0)
    source = open_artifact(tmp_path / "ext.onnx")
    small = compress(source, "int8-dynamic", store=store)
    assert small.external == ()
    assert noise_db(small, source, weight(8, 8))["y"] > 30
    (tmp_path / "ext.data").unlink()
    with pytest.raises(ArtifactError):
        compress(source, "simplify", store=store)


def test_free_axis_keeps_its_name_when_a_tool_renames_it(saved, store):
    """onnxsim 0.8 calls the batch axis "unk__0" once it has removed a Reshape that flattens what is flat."""
    nodes = [("Reshape", ["x", "flat"], "r", {}), ("MatMul", ["r", "w"], "y", {})]
    constants = {"flat": np.array([-1, 8], np.int64), "w": weight(8, 4)}
    simple = compress(saved(built(nodes, {"x": ["batch", 8]}, {"y": ["batch", 4]}, constants)), "simplify", store=store)
    assert simple.lineage[-1].settings["nodes_after"] == {"MatMul": 1}
    assert str(simple.signature) == "x: float32[batch, 8] -> y: float32[batch, 4]"


def test_axis_that_a_tool_fixed_is_refused():
    from pytest_modelserve.compression.after import check_signature

    source = built([("Relu", ["x"], "y", {})], {"x": ["batch", 8]}, {"y": ["batch", 8]}, {})
    fixed = built([("Relu", ["x"], "y", {})], {"x": [3, 8]}, {"y": [3, 8]}, {})
    with pytest.raises(
        RecipeError, match=r"the signature changed from x: float32\[batch, 8\] .* to x: float32\[3, 8\]"
    ):
        check_signature(fixed, source)
