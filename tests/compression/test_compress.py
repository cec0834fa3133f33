from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_modelserve.artifacts import load_model, open_artifact
from pytest_modelserve.compression import RECIPES, Recipe, compress
from pytest_modelserve.compression.recipe import RecipeResult
from pytest_modelserve.errors import ArtifactError, RecipeError, UsageError

KNOWN = "'simplify', 'optimize', 'fp16', 'int8-dynamic', 'int8-static', 'int4-weights'"


@pytest.fixture
def recipe(monkeypatch):
    """Install a recipe made of a function that changes the model in place or returns another."""

    def install(function, *, is_exact=False):
        class Planted(Recipe):
            name = "planted"
            packages = ()

            def apply(self, model, context):  # noqa: ARG002
                return RecipeResult(function(model) or model)

        Planted.is_exact = is_exact
        monkeypatch.setitem(RECIPES, "planted", Planted())

    return install


def test_several_recipes_are_applied_in_order_and_each_step_is_in_the_lineage(wordy, store):
    source = wordy()
    small = compress(source, ["simplify", "int8-dynamic"], store=store)
    assert small.variant == "simplify+int8-dynamic"
    export, simplify, quantize = small.lineage
    assert (export,) == source.lineage
    assert simplify.parent == source.sha256
    assert quantize.parent == compress(source, "simplify", store=store).sha256


def test_variant_of_a_model_from_elsewhere_stays(mlp, store):
    assert compress(mlp(variant="champion"), "int8-dynamic", store=store).variant == "champion+int8-dynamic"


def test_same_recipe_on_the_same_artifact_runs_once(mlp, store, monkeypatch):
    source = mlp()
    first = compress(source, "int8-dynamic", store=store)
    monkeypatch.setattr("onnxruntime.quantization.onnx_quantizer.ONNXQuantizer", None)
    assert compress(source, "int8-dynamic", store=store) == first


def test_source_is_not_touched(wordy, store):
    source = wordy()
    before = source.path.read_bytes()
    compress(source, ["simplify", "int8-dynamic"], store=store)
    assert source.path.read_bytes() == before


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("simplfy", f"unknown recipe 'simplfy': did you mean 'simplify'? Known: {KNOWN}"),
        (["simplify", "bitnet"], f"unknown recipe 'bitnet': Known: {KNOWN}"),
        ([], f"recipe is empty; known: {KNOWN}"),
    ],
)
def test_unknown_recipe_is_refused_before_any_work(wordy, store, recipe, message):
    with pytest.raises(UsageError) as caught:
        compress(wordy(), recipe, store=store)
    assert str(caught.value) == message
    assert not store.root.exists()


def test_exact_recipe_that_changes_an_output_is_refused(mlp, recipe, refusal):
    def nudge(model):
        bias = numpy_helper.to_array(model.graph.initializer[3]) + np.float32(0.01)
        model.graph.initializer[3].CopyFrom(numpy_helper.from_array(bias, "b2"))

    recipe(nudge, is_exact=True)
    message = refusal(mlp(), "planted")
    assert message.startswith(
        "recipe 'planted' on net / fp32: outputs differ from the source on random x [2, 8]: output 'y': "
        "8 of 8 elements are beyond rtol 0.0001"
    )


def test_recipe_that_makes_nan_is_refused(mlp, recipe, refusal):
    def spoil(model):
        model.graph.initializer[3].CopyFrom(numpy_helper.from_array(np.full(4, np.nan, np.float32), "b2"))

    recipe(spoil)
    assert refusal(mlp(), "planted") == (
        "recipe 'planted' on net / fp32: output 'y' has 8 NaN or infinite values on random x [2, 8] where the source has none"
    )


def test_recipe_that_fixes_the_batch_is_refused(mlp, recipe, refusal):
    def fix(model):
        model.graph.node[-1].output[0] = "before"
        model.graph.node.append(helper.make_node("Reshape", ["before", "two"], ["y"]))
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 4]), "two"))

    recipe(fix)
    message = refusal(mlp(), "planted")
    assert message.startswith(
        "recipe 'planted' on net / fp32: the result does not run on x [5, 8], on which the source does"
    )


def test_recipe_that_changes_the_signature_is_refused(mlp, recipe, refusal):
    def rename(model):
        model.graph.input[0].name = model.graph.node[0].input[0] = "z"

    recipe(rename)
    assert refusal(mlp(), "planted") == (
        "recipe 'planted' on net / fp32: the signature changed from x: float32[batch, 8] -> y: float32[batch, 4] to "
        "z: float32[batch, 8] -> y: float32[batch, 4]"
    )


def test_output_shape_that_a_tool_forgets_is_put_back(mlp, store, recipe):
    def forget(model):
        model.graph.output[0].type.tensor_type.shape.dim[0].Clear()

    recipe(forget)
    source = mlp()
    assert compress(source, "planted", store=store).signature == source.signature


def test_result_that_onnxruntime_does_not_take_is_refused(mlp, recipe, refusal):
    def break_it(model):
        model.graph.node[1].op_type = "NoSuchOperator"

    recipe(break_it)
    assert "onnxruntime rejects the result" in refusal(mlp(), "planted")


def test_recipe_that_writes_to_its_source_is_found_out(mlp, store, recipe):
    source = mlp()

    def overwrite(model):
        source.path.write_bytes(source.path.read_bytes() + b"\x00")

    recipe(overwrite)
    with pytest.raises(ArtifactError):
        compress(source, "planted", store=store)
    assert not list((store.root / "entries").iterdir())


def test_artifact_that_changed_on_disk_is_refused(mlp, store):
    source = mlp()
    source.path.write_bytes(mlp(w1=np.ones((8, 32), np.float32)).path.read_bytes())
    with pytest.raises(ArtifactError, match="has changed since it was opened"):
        compress(source, "int8-dynamic", store=store)


def test_external_weights_are_read_and_their_loss_is_reported(mlp, store, noise_db, weight, tmp_path):
    model = load_model(mlp())
    onnx.save(model, tmp_path / "ext.onnx", save_as_external_data=True, location="ext.data", size_threshold=0)
    source = open_artifact(tmp_path / "ext.onnx")
    small = compress(source, "int8-dynamic", store=store)
    assert small.external == ()
    assert noise_db(small, source, weight(8, 8))["y"] > 30
    (tmp_path / "ext.data").unlink()
    with pytest.raises(ArtifactError):
        compress(source, "simplify", store=store)


def test_free_axis_keeps_its_name_when_a_tool_renames_it(saved, store, weight):
    """onnxsim 0.8 calls the batch axis "unk__0" once it has removed a Reshape that flattens what is flat."""
    nodes = [("Reshape", ["x", "flat"], "r", {}), ("MatMul", ["r", "w"], "y", {})]
    constants = {"flat": np.array([-1, 8], np.int64), "w": weight(8, 4)}
    simple = compress(saved(nodes, {"x": ["batch", 8]}, {"y": ["batch", 4]}, constants), "simplify", store=store)
    assert simple.lineage[-1].settings["nodes_after"] == {"MatMul": 1}
    assert str(simple.signature) == "x: float32[batch, 8] -> y: float32[batch, 4]"


def test_axis_that_a_tool_fixed_is_refused(built):
    from pytest_modelserve.compression.validation import check_signature

    source = built([("Relu", ["x"], "y", {})], {"x": ["batch", 8]}, {"y": ["batch", 8]}, {})
    fixed = built([("Relu", ["x"], "y", {})], {"x": [3, 8]}, {"y": [3, 8]}, {})
    with pytest.raises(
        RecipeError, match=r"the signature changed from x: float32\[batch, 8\] .* to x: float32\[3, 8\]"
    ):
        check_signature(fixed, source)


@pytest.mark.parametrize("recipe", RECIPES)
def test_source_that_onnxruntime_itself_cannot_run_is_reported(saved, store, needed, recipe):
    """A float64 model with a GELU, for one."""
    nodes = [("MatMul", ["x", "w"], "h", {}), ("Erf", ["h"], "y", {})]
    source = saved(nodes, {"x": ["batch", 8]}, {"y": ["batch", 8]}, {"w": np.ones((8, 8))}, dtype=TensorProto.DOUBLE)
    with pytest.raises(ArtifactError) as caught:
        compress(source, recipe, store=store, **needed(recipe, np.ones((2, 8))))
    assert str(caught.value) == (
        f"onnxruntime refuses the model {source.path}: 9 : NOT_IMPLEMENTED : Could not find an implementation for "
        "Erf(13) node with name 'node_y'"
    )


def test_result_that_does_not_run_leaves_no_lines_of_onnxruntime_on_standard_error(mlp, store, recipe, capfd):
    def fix(model):
        model.graph.node[-1].output[0] = "before"
        model.graph.node.append(helper.make_node("Reshape", ["before", "two"], ["y"]))
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 4]), "two"))

    recipe(fix)
    with pytest.raises(RecipeError):
        compress(mlp(), "planted", store=store)
    assert capfd.readouterr() == ("", "")
