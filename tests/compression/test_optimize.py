from __future__ import annotations

import io
from contextlib import redirect_stdout

import numpy as np
import onnxruntime
import pytest
from onnxruntime.quantization.shape_inference import quant_pre_process

from pytest_modelserve.artifacts import load_model
from pytest_modelserve.compression import compress
from pytest_modelserve.errors import RecipeError


def test_nodes_are_fused_and_answers_stay(mlp, store, answers, weight, capfd):
    source = mlp()
    fused = compress(source, "optimize", store=store)
    assert (fused.variant, fused.signature) == ("optimize", source.signature)
    assert fused.lineage[-1].settings["nodes_after"] == {"FusedGemm": 1, "Gemm": 1}
    x = weight(9, 8)
    np.testing.assert_allclose(answers(fused, x)["y"], answers(source, x)["y"], rtol=1e-5)
    assert capfd.readouterr() == ("", "")


def test_note_says_what_the_file_is_tied_to(mlp, store):
    assert compress(mlp(), "optimize", store=store).lineage[-1].notes == (
        f"optimized by onnxruntime {onnxruntime.__version__} for its CPU provider: the model has operators of onnxruntime (FusedGemm); serve it with that version, and quantize before this recipe, not after it",
    )


def test_result_of_standard_operators_is_told_as_such_and_declares_no_others(saved, store, weight):
    nodes = [("Identity", ["x"], "same", {}), ("MatMul", ["same", "w"], "y", {})]
    plain = compress(
        saved(nodes, {"x": ["batch", 8]}, {"y": ["batch", 4]}, {"w": weight(8, 4)}), "optimize", store=store
    )
    assert plain.lineage[-1].settings["nodes_after"] == {"MatMul": 1}
    assert "the model has standard operators only;" in plain.lineage[-1].notes[0]
    assert [item.domain for item in load_model(plain).opset_import] == [""]


def test_optimizing_what_is_optimized_is_refused(mlp, store):
    fused = compress(mlp(), "optimize", store=store)
    with pytest.raises(RecipeError) as caught:
        compress(fused, "optimize", store=store)
    assert str(caught.value) == (
        "recipe 'optimize' on net / optimize: there is nothing to optimize: the same nodes (2) and initializers (4) as "
        "before"
    )


def test_quantizing_afterwards_tells_the_fused_layer_that_stays_in_float(mlp, store):
    small = compress(mlp(), ["optimize", "int8-dynamic"], store=store)
    assert small.lineage[-1].notes[0] == "left in float: FusedGemm ×1 (fused node_h)"


def test_failure_of_onnxruntime_is_told(mlp, refusal, monkeypatch):
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
    ("recipe", "told"),
    [
        ("int8-dynamic", "left in float: FusedGemm ×1 (fused node_h)"),
        ("int4-weights", "left in float: FusedGemm ×1 (fused node_h)"),
        (
            "int8-static",
            "recipe 'int8-static' on net / optimize: the model has operators outside the ONNX standard (FusedGemm), "
            "behind which no range can be measured: quantize first, and use 'optimize' afterwards",
        ),
    ],
)
def test_incomplete_shape_inference_is_told_as_what_it_means(mlp, store, weight, recipe, told, tmp_path, monkeypatch):
    """onnxruntime's preparation for its quantizers ends there; without it they skip what has no shape, in silence."""
    monkeypatch.chdir(tmp_path)  # where onnxruntime leaves a model and its weights as it fails
    fused = compress(mlp(), "optimize", store=store)
    with pytest.raises(Exception, match="Incomplete symbolic shape inference"), redirect_stdout(io.StringIO()):
        quant_pre_process(fused.path, store.root / "prepared.onnx", skip_optimization=True)
    if recipe == "int8-static":
        with pytest.raises(RecipeError) as caught:
            compress(fused, recipe, calibration=weight(8, 8), store=store)
        assert str(caught.value) == told
    else:
        assert told in compress(fused, recipe, store=store).lineage[-1].notes
