from types import SimpleNamespace

import pytest
from onnx import numpy_helper

from pytest_modelserve.artifacts import load_model
from pytest_modelserve.compression import LayerSensitivity, compress, sensitivity
from pytest_modelserve.compression.recipe import check_excluded, selected_names
from pytest_modelserve.errors import UsageError

INTEGER = ["int8-dynamic", "int8-static", "int4-weights"]


def weight_dtypes(artifact):
    """Of every stored matrix, by the first two letters of its name: "w1", "w2"..."""
    stored = load_model(artifact).graph.initializer
    return {tensor.name[:2]: numpy_helper.to_array(tensor).dtype.name for tensor in stored if len(tensor.dims) > 1}


@pytest.mark.parametrize("recipe", INTEGER)
def test_layer_that_sensitivity_ranks_first_is_worth_excluding(outlier_layer, store, weight, noise_db, recipe, needed):
    source, rows = outlier_layer(), weight(128, 64)
    ranking = sensitivity(source, recipe, rows)
    assert ranking[0].node == "node_b"
    whole = compress(source, recipe, store=store, **needed(recipe, rows))
    spared = compress(source, recipe, store=store, exclude=ranking[:1], **needed(recipe, rows))
    assert noise_db(spared, source, rows)["y"] > noise_db(whole, source, rows)["y"] + 3
    assert weight_dtypes(spared)["w2"] == "float32"
    assert weight_dtypes(spared)["w1"] != "float32"
    assert weight_dtypes(spared)["w3"] != "float32"


@pytest.mark.parametrize("recipe", [*INTEGER, "fp16"])
def test_lineage_tells_what_was_excluded(outlier_layer, store, weight, needed, recipe):
    small = compress(
        outlier_layer(), recipe, exclude=["node_y", "node_b"], store=store, **needed(recipe, weight(64, 64))
    )
    step = small.lineage[-1]
    assert step.settings["exclude"] == ["node_b", "node_y"]
    assert any("node_b" in note and "node_y" in note for note in step.notes)
    assert weight_dtypes(small)["w2"] == weight_dtypes(small)["w3"] == "float32"


def test_fp16_keeps_excluded_nodes_in_fp32_and_says_why(outlier_layer, store, noise_db, weight):
    source, rows = outlier_layer(), weight(64, 64)
    small = compress(source, "fp16", exclude="node_b", store=store)
    assert weight_dtypes(small) == {"w1": "float16", "w2": "float32", "w3": "float16"}
    assert small.lineage[-1].notes == ("left in fp32: Gemm 'node_b', because exclude= names it",)
    assert noise_db(small, source, rows)["y"] > 55


@pytest.mark.parametrize("recipe", [*INTEGER, "fp16"])
def test_excluding_everything_is_refused(mlp, refusal, weight, needed, recipe):
    message = refusal(
        mlp(),
        recipe,
        exclude=["node_h", "node_r", "node_y"][:: 1 if recipe == "fp16" else 2],
        **needed(recipe, weight(64, 8)),
    )
    named = "'node_h', 'node_r', 'node_y' in fp32" if recipe == "fp16" else "'node_h', 'node_y' in float"
    verb = "convert" if recipe == "fp16" else "quantize"
    assert message == f"recipe '{recipe}' on net / fp32: there is nothing left to {verb}: exclude= leaves {named}"


@pytest.mark.parametrize("recipe", [*INTEGER, "fp16"])
def test_unknown_node_is_a_usage_error_with_the_nearest_layer(mlp, store, weight, needed, recipe):
    with pytest.raises(UsageError) as caught:
        compress(mlp(), recipe, exclude=["node_h", "node-yy"], store=store, **needed(recipe, weight(64, 8)))
    others = "'node_h', 'node_r'" if recipe in ("int8-static", "fp16") else "'node_h'"
    assert str(caught.value) == (
        f"recipe '{recipe}' on net / fp32: unknown node in exclude= 'node-yy': did you mean 'node_y'? Known: 'node_y', "
        f"{others}"
    )
    assert not list((store.root / "entries").iterdir())


def test_node_that_the_recipe_never_treats_is_no_layer_to_exclude(mlp, store):
    """To take it would be to promise what changes nothing."""
    with pytest.raises(UsageError, match="exclude= names Relu 'node_r', which the recipe does not change"):
        compress(mlp(), "int8-dynamic", exclude="node_r", store=store)


def test_chain_in_which_nothing_can_be_excluded_is_a_usage_error(wordy, store):
    with pytest.raises(UsageError, match="exclude= does not apply to 'simplify', 'optimize': remove it"):
        compress(wordy(), ["simplify", "optimize"], exclude="node_y", store=store)
    assert not store.root.exists()


def test_name_is_looked_up_in_the_model_that_the_recipe_is_handed(outlier_layer, store, weight):
    """After `optimize` a Gemm and what follows it are one node of another name."""
    nodes_exist = compress(outlier_layer("MatMul"), ["int8-dynamic", "optimize"], exclude="node_b", store=store)
    assert "exclude" not in nodes_exist.lineage[-1].settings
    assert nodes_exist.lineage[-2].settings["exclude"] == ["node_b"]


def test_name_that_an_earlier_recipe_removed_is_a_usage_error(mlp, store):
    with pytest.raises(UsageError, match="recipe 'int8-dynamic' on net / optimize: unknown node in exclude= 'node_h'"):
        compress(mlp(), ["optimize", "int8-dynamic"], exclude="node_h", store=store)


def test_exclusion_is_part_of_the_key_whatever_its_form(mlp, store):
    source = mlp()

    def path(**options):
        return compress(source, "int8-dynamic", store=store, **options).path

    named = path(exclude="node_h")
    assert named == path(exclude=["node_h"]) == path(exclude=(LayerSensitivity("node_h", "Gemm", 1.0),))
    assert named == path(exclude=iter(["node_h", "node_h"]))
    assert named != path() == path(exclude=())
    assert named != path(exclude="node_y")


def test_weights_shared_with_a_node_in_fp16_are_refused(saved, refusal, weight):
    nodes = [("MatMul", ["x", "w"], "h", {}), ("MatMul", ["h", "w"], "y", {})]
    source = saved(nodes, {"x": ["batch", 8]}, {"y": ["batch", 8]}, {"w": weight(8, 8)})
    assert refusal(source, "fp16", exclude="node_h") == (
        "recipe 'fp16' on net / fp32: MatMul 'node_h' shares 'w' with a node in fp16, so its weights are rounded anyway: name every node that reads them in exclude="
    )


def test_nodes_without_names_are_known_by_what_sensitivity_calls_them(mlp, save, store, weight):
    model = load_model(mlp())
    for node in model.graph.node:
        node.name = ""
    source = save(model)
    ranking = sensitivity(source, "int8-dynamic", weight(16, 8))
    small = compress(source, "int8-dynamic", exclude=ranking[:1], store=store)
    assert small.lineage[-1].settings["exclude"] == [ranking[0].node]
    assert small.lineage[-1].settings["nodes_after"]["MatMulInteger"] == 1


@pytest.mark.parametrize(("given", "wrong"), [(3, "3"), ([3], "3"), ([SimpleNamespace(node=7)], "namespace(node=7)")])
def test_what_names_no_node_is_a_usage_error(given, wrong):
    with pytest.raises(UsageError, match="pass node names, or layers from a sensitivity ranking"):
        selected_names(given)


def test_a_mistyped_name_lists_few_others():
    nodes = [SimpleNamespace(name=f"layer{number}", op_type="MatMul") for number in range(100)]
    model = SimpleNamespace(graph=SimpleNamespace(node=nodes))
    with pytest.raises(UsageError) as caught:
        check_excluded(["layer_57"], model, nodes, "recipe")
    assert "did you mean 'layer57'?" in str(caught.value)
    assert str(caught.value).endswith("'layer10' and 88 more")
