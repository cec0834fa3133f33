"""The recipes that keep outputs the same: simplify and optimize."""

import io
import os
import sys
from contextlib import nullcontext, redirect_stdout

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization.shape_inference import quant_pre_process

from pytest_modelserve.artifacts import load_model, open_artifact
from pytest_modelserve.compression import compress
from pytest_modelserve.errors import MissingDependencyError, RecipeError


def test_simplify_removes_nodes_and_keeps_outputs_axes_and_names(wordy, store, outputs_of, weight, capfd):
    source = wordy()
    simple = compress(source, "simplify", store=store)
    assert simple.signature == source.signature
    assert simple.variant == "simplify"
    assert simple.lineage[-1].settings["nodes_before"] == {"Add": 1, "Identity": 1, "MatMul": 1, "Mul": 1}
    assert simple.lineage[-1].settings["nodes_after"] == {"MatMul": 1, "Mul": 1}
    x = weight(9, 8)
    np.testing.assert_allclose(outputs_of(simple, x)["y"], outputs_of(source, x)["y"], rtol=1e-5)
    assert capfd.readouterr() == ("", "")


def test_simplify_leaves_no_report_in_the_file(wordy, store):
    simple = compress(wordy(), "simplify", store=store)
    assert [entry.key for entry in load_model(simple).metadata_props] == ["pytest_modelserve"]


def test_nodes_that_stay_keep_the_metadata_that_onnxsim_drops(save, wordy, store):
    model = load_model(wordy())
    for node in model.graph.node:
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value=f"line of {node.name}")
    simple = compress(save(model), "simplify", store=store)
    kept = {node.name: [entry.value for entry in node.metadata_props] for node in load_model(simple).graph.node}
    assert kept["node_y"] == ["line of node_y"]


def test_nothing_to_simplify_gives_the_same_model_with_a_note(mlp, store):
    source = mlp()
    same = compress(source, "simplify", store=store)
    assert (same.variant, same.signature) == ("simplify", source.signature)
    assert load_model(same).graph == load_model(source).graph
    assert same.lineage[-1].notes == (
        "there was nothing to simplify: the same nodes (3) and initializers (4) as before",
    )


def test_optimize_reads_weights_in_a_file_of_a_folder_below(wordy, store, tmp_path, outputs_of, weight):
    model = load_model(wordy())
    (tmp_path / "weights").mkdir()
    onnx.save(model, tmp_path / "ext.onnx", save_as_external_data=True, location="weights/w.bin", size_threshold=0)
    source = open_artifact(tmp_path / "ext.onnx")
    optimized = compress(source, "optimize", store=store)
    assert optimized.external == ()
    x = weight(9, 8)
    np.testing.assert_allclose(outputs_of(optimized, x)["y"], outputs_of(source, x)["y"], rtol=1e-5)


@pytest.fixture
def tied(saved, weight):
    """A language model in small: one table looks ids up and, transposed, scores them."""
    nodes = [
        ("Gather", ["table", "ids"], "found", {}),
        ("Tanh", ["found"], "h", {}),
        ("Transpose", ["table"], "turned", {"perm": [1, 0]}),
        ("MatMul", ["h", "turned"], "y", {}),
        ("Cast", ["x"], "ids", {"to": TensorProto.INT64}),
    ]
    nodes = [nodes[-1], *nodes[:-1]]
    return lambda: saved(nodes, {"x": ["batch"]}, {"y": ["batch", 50]}, {"table": weight(50, 16)})


@pytest.mark.parametrize("recipe", ["simplify", "optimize"])
def test_tied_weights_stay_tied(tied, store, outputs_of, recipe):
    source = tied()
    result = compress(source, recipe, store=store)
    assert result.initializer_bytes == source.initializer_bytes
    assert any(
        "left unfolded, because the file would grow: 'turned' (0 bytes stored for it, 3,200 folded)" in note
        for note in result.lineage[-1].notes
    )
    x = np.arange(7, dtype=np.float32)
    np.testing.assert_array_equal(outputs_of(result, x)["y"], outputs_of(source, x)["y"])


@pytest.mark.parametrize("recipe", ["simplify", "optimize"])
def test_mask_that_is_expanded_from_one_number_is_not_stored(saved, store, weight, outputs_of, recipe):
    """Beside it an idle node, which goes, and a small constant, which is folded."""
    nodes = [
        ("Expand", ["low", "shape"], "full", {}),
        ("Trilu", ["full"], "mask", {"upper": 1}),
        ("Add", ["one", "one"], "two", {}),
        ("Mul", ["x", "two"], "scaled", {}),
        ("Identity", ["scaled"], "same", {}),
        ("Add", ["same", "mask"], "y", {}),
    ]
    weights = {"low": np.array(-30, np.float32), "shape": np.array([64, 64]), "one": np.ones(64, np.float32)}
    source = saved(nodes, {"x": ["batch", 64, 64]}, {"y": ["batch", 64, 64]}, weights)
    result = compress(source, recipe, store=store)
    assert result.lineage[-1].settings["nodes_after"] == {"Add": 1, "Expand": 1, "Mul": 1, "Trilu": 1}
    assert result.initializer_bytes <= source.initializer_bytes
    assert result.lineage[-1].notes[-1] == (
        "left unfolded, because the file would grow: 'mask' (20 bytes stored for it, 16,384 folded)"
    )
    x = weight(3, 64, 64)
    np.testing.assert_array_equal(outputs_of(result, x)["y"], outputs_of(source, x)["y"])


def test_growth_that_is_not_avoided_is_noted(tied, store, monkeypatch):
    """Without shapes nothing is known to grow before it has grown."""

    def fail(*_, **__):
        raise RuntimeError("no shapes")

    source = tied()
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", fail)
    grown = compress(source, "simplify", store=store)
    assert grown.lineage[-1].notes == ("stored tensors grew from 3,200 to 6,400 bytes",)


def test_traced_length_that_a_file_wrongly_claims_is_not_baked_in(built, save, store, outputs_of, weight):
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
    simple = compress(save(model), "simplify", store=store)
    assert outputs_of(simple, weight(5, 7, 2))["y"].shape == (5, 7, 3)


def test_missing_onnxsim_names_the_extra(wordy, store, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    with pytest.raises(MissingDependencyError, match="the recipe 'simplify' needs onnxsim, which is not installed"):
        compress(wordy(), "simplify", store=store)


def test_wrong_outputs_are_found_although_onnxsim_reports_success(wordy, refusal, monkeypatch):
    """Its own check compares nothing unless it is asked to, and reports success."""
    import onnxsim

    really = onnxsim.simplify

    def simplify(*args, **options):
        simple, agrees = really(*args, **options)
        simple.graph.node[0].op_type = "Sub"
        return simple, agrees

    monkeypatch.setattr(onnxsim, "simplify", simplify)
    message = refusal(wordy(), "simplify")
    assert message.startswith(
        "recipe 'simplify' on net / fp32: outputs differ from the source on random x [2, 8]: output 'y': "
        "8 of 8 elements are beyond rtol 0.0001"
    )


@pytest.mark.parametrize("fails", [False, True])
def test_lines_of_the_library_underneath_stay_off_standard_error(wordy, store, monkeypatch, capfd, caplog, fails):
    import onnxsim

    really = onnxsim.simplify

    def simplify(*args, **options):
        os.write(2, b"[E:onnxruntime] a line from C++\n")
        if fails:
            raise RuntimeError("shape inference")
        return really(*args, **options)

    monkeypatch.setattr(onnxsim, "simplify", simplify)
    with caplog.at_level("DEBUG", "pytest_modelserve"), pytest.raises(RecipeError) if fails else nullcontext():
        compress(wordy(), "simplify", store=store)
    assert capfd.readouterr() == ("", "")
    assert "[E:onnxruntime] a line from C++" in caplog.messages


def test_nodes_are_fused_and_outputs_stay(mlp, store, outputs_of, weight, capfd):
    source = mlp()
    fused = compress(source, "optimize", store=store)
    assert (fused.variant, fused.signature) == ("optimize", source.signature)
    assert fused.lineage[-1].settings["nodes_after"] == {"FusedGemm": 1, "Gemm": 1}
    x = weight(9, 8)
    np.testing.assert_allclose(outputs_of(fused, x)["y"], outputs_of(source, x)["y"], rtol=1e-5)
    assert capfd.readouterr() == ("", "")


def test_note_says_what_the_file_is_tied_to(mlp, store):
    assert compress(mlp(), "optimize", store=store).lineage[-1].notes == (
        f"optimized by onnxruntime {onnxruntime.__version__} for its CPU provider: the model has operators of onnxruntime (FusedGemm); serve it with that version, and quantize before this recipe, not after it",
    )


def test_result_of_standard_operators_is_reported_as_full_and_declares_no_others(saved, store, weight):
    nodes = [("Identity", ["x"], "same", {}), ("MatMul", ["same", "w"], "y", {})]
    plain = compress(
        saved(nodes, {"x": ["batch", 8]}, {"y": ["batch", 4]}, {"w": weight(8, 4)}), "optimize", store=store
    )
    assert plain.lineage[-1].settings["nodes_after"] == {"MatMul": 1}
    assert "the model has standard operators only;" in plain.lineage[-1].notes[0]
    assert [item.domain for item in load_model(plain).opset_import] == [""]


def test_optimizing_what_is_optimized_gives_the_same_model_with_a_note(mlp, store):
    fused = compress(mlp(), "optimize", store=store)
    twice = compress(fused, "optimize", store=store)
    assert load_model(twice).graph == load_model(fused).graph
    assert twice.lineage[-1].notes == (
        "there was nothing to optimize: the same nodes (2) and initializers (4) as before",
    )


def test_failure_of_onnxruntime_is_reported(mlp, refusal, monkeypatch):
    source = mlp()
    monkeypatch.setattr(onnxruntime, "InferenceSession", _failing(onnxruntime.InferenceSession))
    assert refusal(source, "optimize") == "recipe 'optimize' on net / fp32: onnxruntime failed: no such kernel"


def _failing(session):
    """A session that fails where it is to write its optimized model, at the level where files stay portable."""

    def make(path, options, **rest):
        if not options.optimized_model_filepath:
            return session(path, options, **rest)
        assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        raise RuntimeError("no such kernel")

    return make


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("int8-dynamic", "left in float: FusedGemm ×1 (fused node_h)"),
        ("int4-weights", "left in float: FusedGemm ×1 (fused node_h)"),
        ("int8-static", "recipe 'int8-static' on net / optimize"),
    ],
)
def test_incomplete_shape_inference_is_reported_as_a_fused_layer(
    mlp, store, weight, recipe, message, tmp_path, monkeypatch
):
    """onnxruntime's preparation for its quantizers ends there; without it they skip what has no shape, in silence."""
    pytest.importorskip("sympy")
    monkeypatch.chdir(tmp_path)  # where onnxruntime leaves a model and its weights as it fails
    fused = compress(mlp(), "optimize", store=store)
    with pytest.raises(Exception, match="Incomplete symbolic shape inference"), redirect_stdout(io.StringIO()):
        quant_pre_process(fused.path, store.root / "prepared.onnx", skip_optimization=True)
    if recipe == "int8-static":
        with pytest.raises(RecipeError) as caught:
            compress(fused, recipe, calibration=weight(8, 8), store=store)
        assert str(caught.value).startswith(message)
    else:
        assert message in compress(fused, recipe, store=store).lineage[-1].notes
