"""Recipes on artifacts: chains, keys, refused sources and results, and full disks."""

import errno
import subprocess
import sys

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


def test_several_recipes_are_applied_in_order_to_a_copy_and_each_step_is_in_the_lineage(wordy, store):
    source = wordy()
    before = source.path.read_bytes()
    small = compress(source, ["simplify", "int8-dynamic"], store=store)
    assert small.variant == "simplify+int8-dynamic"
    export, simplify, quantize = small.lineage
    assert (export,) == source.lineage
    assert simplify.parent == source.sha256
    assert quantize.parent == compress(source, "simplify", store=store).sha256
    assert source.path.read_bytes() == before


def test_variant_of_a_model_from_elsewhere_stays(mlp, store):
    assert compress(mlp(variant="champion"), "int8-dynamic", store=store).variant == "champion+int8-dynamic"


def test_same_recipe_on_the_same_artifact_runs_once(mlp, store, monkeypatch):
    source = mlp()
    first = compress(source, "int8-dynamic", store=store)
    monkeypatch.setattr("onnxruntime.quantization.onnx_quantizer.ONNXQuantizer", None)
    assert compress(source, "int8-dynamic", store=store) == first


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("simplfy", f"unknown recipe 'simplfy': did you mean 'simplify'? Known: {KNOWN}"),
        (["simplify", "bitnet"], f"unknown recipe 'bitnet': known: {KNOWN}"),
        (8, f"unknown recipe 8: known: {KNOWN}"),
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


def test_recipe_that_fixes_the_batch_is_refused_without_lines_of_onnxruntime(mlp, recipe, refusal, capfd):
    def fix(model):
        model.graph.node[-1].output[0] = "before"
        model.graph.node.append(helper.make_node("Reshape", ["before", "two"], ["y"]))
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 4]), "two"))

    recipe(fix)
    message = refusal(mlp(), "planted")
    assert message.startswith(
        "recipe 'planted' on net / fp32: the result does not run on x [5, 8], on which the source does"
    )
    assert capfd.readouterr() == ("", "")


def test_recipe_that_changes_the_signature_is_refused(mlp, recipe, refusal):
    def rename(model):
        model.graph.input[0].name = model.graph.node[0].input[0] = "z"

    recipe(rename)
    assert refusal(mlp(), "planted") == (
        "recipe 'planted' on net / fp32: the signature changed from x: float32[batch, 8] -> y: float32[batch, 4] to "
        "z: float32[batch, 8] -> y: float32[batch, 4]"
    )


@pytest.mark.parametrize(
    ("recipe", "function", "tool"),
    [
        ("simplify", "onnxsim.simplify", "onnxsim"),
        ("fp16", "onnxruntime.transformers.float16.convert_float_to_float16", "onnxruntime's float16 converter"),
        (
            "int8-static",
            "onnxruntime.quantization.qdq_quantizer.QDQQuantizer.quantize_model",
            "onnxruntime's quantizer",
        ),
        (
            "int4-weights",
            "onnxruntime.quantization.matmul_nbits_quantizer.MatMulNBitsQuantizer.process",
            "onnxruntime's quantizer",
        ),
    ],
)
def test_failure_of_a_library_is_reported(wordy, refusal, weight, needed, monkeypatch, recipe, function, tool):
    def fail(*_, **__):
        raise ValueError("no such type")

    source = wordy()
    monkeypatch.setattr(function, fail)
    message = refusal(source, recipe, **needed(recipe, weight(8, 8)))
    assert message == f"recipe {recipe!r} on net / fp32: {tool} failed: no such type"


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


def test_source_that_onnxruntime_itself_cannot_run_is_reported(saved, store):
    """A float64 model with a GELU, for one."""
    nodes = [("MatMul", ["x", "w"], "h", {}), ("Erf", ["h"], "y", {})]
    source = saved(nodes, {"x": ["batch", 8]}, {"y": ["batch", 8]}, {"w": np.ones((8, 8))}, dtype=TensorProto.DOUBLE)
    with pytest.raises(ArtifactError) as caught:
        compress(source, "int8-dynamic", store=store)
    assert str(caught.value) == (
        f"onnxruntime refuses the model {source.path}: 9 : NOT_IMPLEMENTED : Could not find an implementation for "
        "Erf(13) node with name 'node_y'"
    )


def test_file_that_was_damaged_after_it_was_opened_is_refused(mlp, store):
    source = mlp()
    source.path.write_bytes(source.path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="it is truncated, or not an ONNX model"):
        compress(source, "fp16", store=store)


def test_a_path_is_opened_and_anything_else_is_a_usage_error(mlp, store):
    artifact = mlp()
    assert compress(str(artifact.path), "fp16", store=store).sha256 == compress(artifact, "fp16", store=store).sha256
    with pytest.raises(UsageError, match=r"artifact must be an Artifact, the path of an ONNX file, .*; got int"):
        compress(7, "fp16", store=store)


@pytest.fixture
def everything(saved, weight):
    """A model with something to do for every recipe."""
    nodes = [
        ("Add", ["one", "one"], "two", {}),
        ("Mul", ["x", "two"], "scaled", {}),
        ("Gemm", ["scaled", "w", "b"], "h", {}),
        ("Relu", ["h"], "y", {}),
    ]
    weights = {"one": np.ones(64, np.float32), "w": weight(64, 64), "b": weight(64)}
    return saved(nodes, {"x": ["batch", 64]}, {"y": ["batch", 64]}, weights)


def failure(source, store, attempt):
    """What is said when `attempt` fails for want of room; the source is as it was, and nothing lies in the store."""
    before = source.path.read_bytes()
    with pytest.raises(ArtifactError) as caught:
        attempt()
    assert source.path.read_bytes() == before
    for folder in ("entries", "building"):
        assert not list((store.root / folder).iterdir())
    return str(caught.value)


def full_disk_message(store, code, text):
    return (
        f"the cache folder {store.root} cannot be written: [Errno {code}] {text}. "
        "Free space or grant permission there, or choose another folder with --modelserve-cache"
    )


def test_disk_that_fills_while_a_tool_is_handed_the_model(everything, store, weight, monkeypatch):
    options = {"recipe": "int8-static", "calibration": weight(8, 64)}

    def fill(*_):
        yield b"half a model"
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("pytest_modelserve._onnx.serialization.serialize", fill)
        message = failure(everything, store, lambda: compress(everything, store=store, **options))
    assert message == full_disk_message(store, errno.ENOSPC, "No space left on device")
    assert compress(everything, store=store, **options).variant == "int8-static"


_LIMITED = """
import resource, sys
from pathlib import Path
from pytest_modelserve.artifacts import Store, open_artifact
from pytest_modelserve.compression import compress
from pytest_modelserve.errors import ArtifactError

source, root, recipe, limit = sys.argv[1:]
source, store = open_artifact(source), Store(Path(root))
free = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), free[1]))
try:
    compress(source, recipe, store=store)
except ArtifactError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, free)
compress(source, recipe, store=store)
"""


@pytest.mark.parametrize("recipe", ["int8-dynamic", "optimize"])
def test_limit_on_the_size_of_files_is_reported_without_any_stand_in(everything, store, recipe):
    """What the file system itself refuses: a file that onnx writes, and one that onnxruntime writes in C++."""
    ran = subprocess.run(
        # -B: Python does not notice bytecode that the limit cuts, and later processes could not import it.
        [sys.executable, "-B", "-c", _LIMITED, everything.path, store.root, recipe, "4096"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"the cache folder {store.root} cannot be written: [Errno 27]")


def test_full_temporary_folder_is_reported_as_full(mlp, store, monkeypatch):
    """What comes from a generator lies there while it is read."""

    def rows():
        yield np.ones((2, 8), np.float32)
        raise AssertionError("read on although the disk is full")

    def fill(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", fill)
    with pytest.raises(ArtifactError) as caught:
        compress(mlp(), "int8-static", calibration=rows(), store=store)
    start, _, end = str(caught.value).partition(": ")
    assert start.startswith("batch 0 of calibration= cannot be written to ")
    assert end == (
        "No space left on device. Batches from a generator are spooled there: set TMPDIR to a folder with more space, or pass a list"
    )
    assert not store.root.exists()


def test_failure_of_the_users_own_generator_passes_through(mlp, store):
    def rows():
        yield np.ones((2, 8), np.float32)
        raise FileNotFoundError("shard 2 is gone")

    with pytest.raises(FileNotFoundError, match="shard 2 is gone"):
        compress(mlp(), "int8-static", calibration=rows(), store=store)


@pytest.fixture
def categories(save, weight):
    """A text column that is looked up, beside a number."""
    names = ["tea", "coffee", "water", "none"]
    nodes = [
        helper.make_node(
            "LabelEncoder", ["drink"], ["id"], domain="ai.onnx.ml", keys_strings=names, values_int64s=[0, 1, 2, 3]
        ),
        helper.make_node("Gather", ["table", "id"], ["found"], name="node_found"),
        helper.make_node("Concat", ["found", "x"], ["row"], name="node_row", axis=1),
        helper.make_node("MatMul", ["row", "w"], ["h"], name="node_h"),
        helper.make_node("Identity", ["h"], ["y"], name="node_y"),
    ]
    inputs = [
        helper.make_tensor_value_info("drink", TensorProto.STRING, ["batch"]),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16])]
    stored = [numpy_helper.from_array(weight(4, 56), "table"), numpy_helper.from_array(weight(64, 16), "w")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    return save(helper.make_model(graph, opset_imports=opsets, ir_version=10))


@pytest.mark.parametrize("recipe", RECIPES)
def test_model_with_text_inputs_takes_every_recipe(categories, store, noise_db, weight, recipe):
    rng = np.random.default_rng(0)
    rows = {"drink": rng.choice(["tea", "coffee", "water"], 32).astype(object), "x": weight(32, 8)}
    options = {"calibration": iter([rows, rows])} if RECIPES[recipe].calibrates else {}
    small = compress(categories, recipe, store=store, **options)
    assert small.signature == categories.signature
    assert noise_db(small, categories, rows)["y"] > (15 if recipe == "int4-weights" else 30)
