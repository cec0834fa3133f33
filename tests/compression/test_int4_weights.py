from __future__ import annotations

import logging
import sys

import numpy as np
import pytest

from pytest_modelserve.compression import compress
from pytest_modelserve.errors import MissingDependencyError, RecipeError

ROW = {"x": ["batch", 64]}


@pytest.fixture
def wide(saved, weight):
    """One product with 64 inputs and 64 outputs, of which the weights can be given."""

    def save(weights=None, dtype=1):
        given = weight(64, 64) if weights is None else weights
        return saved([("MatMul", ["x", "w"], "y", {})], ROW, {"y": ["batch", 64]}, {"w": given}, dtype=dtype)

    return save


def refused(told, artifact="net / fp32"):
    return f"recipe 'int4-weights' on {artifact}: {told}"


def test_weights_take_a_sixth_of_the_room_and_answers_stay_near(wide, store, noise_db, weight, capfd):
    source = wide()
    small = compress(source, "int4-weights", store=store)
    assert (small.variant, small.signature) == ("int4-weights", source.signature)
    assert source.initializer_bytes / 7 < small.initializer_bytes < source.initializer_bytes / 6
    assert noise_db(small, source, weight(32, 64))["y"] > 18
    assert small.lineage[-1].settings["nodes_after"] == {"MatMulNBits": 1}
    assert small.lineage[-1].notes == ()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_is_quantized_too(saved, store, noise_db, weight, transposed):
    """onnxruntime's quantizer by itself quantizes nothing here and reports success."""
    weights = {"w": weight(16, 64) if transposed else weight(64, 16), "b": weight(16)}
    nodes = [("Gemm", ["x", "w", "b"], "y", {"transB": transposed})]
    source = saved(nodes, ROW, {"y": ["batch", 16]}, weights)
    small = compress(source, "int4-weights", store=store)
    assert small.lineage[-1].settings["nodes_after"] == {"Add": 1, "MatMulNBits": 1}
    assert noise_db(small, source, weight(32, 64))["y"] > 18


def test_two_layers_with_one_weight_stay_right(saved, store, noise_db, weight):
    nodes = [("Gemm", ["x", "w"], "h", {"transB": 1}), ("Gemm", ["h", "w"], "y", {})]
    source = saved(nodes, ROW, {"y": ["batch", 64]}, {"w": weight(64, 64)})
    small = compress(source, "int4-weights", store=store)
    assert small.lineage[-1].settings["nodes_after"] == {"MatMulNBits": 2}
    assert noise_db(small, source, weight(32, 64))["y"] > 15


def test_layers_that_stay_in_float_are_noted(saved, store, weight):
    nodes = [
        ("Gemm", ["x", "w"], "h", {"alpha": 0.5}),  # which no MatMul can say
        ("Reshape", ["h", "image"], "i", {}),
        ("Conv", ["i", "k"], "c", {}),
        ("MatMul", ["c", "v"], "y", {}),
    ]
    weights = {"w": weight(64, 64), "image": np.array([-1, 2, 32]), "k": weight(3, 2, 1), "v": weight(32, 8)}
    small = compress(saved(nodes, ROW, {"y": None}, weights), "int4-weights", store=store)
    assert small.lineage[-1].notes == ("left in float: Conv ×1 (node_c)", "left in float: Gemm ×1 (node_h)")


def test_layer_with_fewer_inputs_than_a_block_is_told_not_to_shrink(saved, store, weight):
    source = saved([("MatMul", ["x", "w"], "y", {})], {"x": ["batch", 2]}, {"y": ["batch", 4]}, {"w": weight(2, 4)})
    assert compress(source, "int4-weights", store=store).lineage[-1].notes == (
        "initializers did not shrink: 32 bytes before, 84 after",
    )


def test_infinite_weights_are_refused_by_name(wide, refusal, weight):
    weights = weight(64, 64)
    weights[3, 5] = np.inf
    assert refusal(wide(weights), "int4-weights") == refused(
        "no int4 scale for 'w': it holds infinite values, or ones too large"
    )


def test_nan_weights_are_refused(wide, refusal, weight):
    """onnxruntime's quantizer makes zeros of their block and reports success."""
    weights = weight(64, 64)
    weights[3, 5] = np.nan
    assert refusal(wide(weights), "int4-weights") == refused("initializer 'w' holds 1 NaN, so it has no int4 form")


def test_float64_is_refused(wide, refusal):
    assert refusal(wide(np.ones((64, 64)), dtype=11), "int4-weights") == refused(
        "the weights of MatMul 'node_y' are float64: export the model in float32"
    )


def test_model_without_products_is_refused(saved, refusal, weight):
    source = saved([("Conv", ["x", "k"], "y", {})], {"x": ["batch", 2, 8]}, {"y": None}, {"k": weight(3, 2, 1)})
    assert refusal(source, "int4-weights") == refused(
        "there is nothing to quantize: no MatMul or Gemm with constant float32 weights among Conv ×1"
    )


@pytest.mark.parametrize("second", ["int4-weights", "int8-dynamic"])
def test_quantizing_twice_is_refused(wide, store, second):
    with pytest.raises(RecipeError) as caught:
        compress(compress(wide(), "int4-weights", store=store), second, store=store)
    assert str(caught.value) == (
        f"recipe '{second}' on net / int4-weights: the model is quantized already (MatMulNBits ×1): quantize its source"
    )


def test_missing_onnx_ir_is_told(wide, store, monkeypatch):
    monkeypatch.delitem(sys.modules, "onnxruntime.quantization.matmul_nbits_quantizer", raising=False)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(MissingDependencyError) as caught:
        compress(wide(), "int4-weights", store=store)
    assert (
        str(caught.value)
        == "the recipe 'int4-weights' needs onnx-ir, which is not installed: pip install 'pytest-modelserve[compress]'"
    )


def test_failure_of_the_quantizer_is_told(wide, refusal, monkeypatch):
    from onnxruntime.quantization import matmul_nbits_quantizer

    def fail(*_, **__):
        raise ValueError("no such block")

    monkeypatch.setattr(matmul_nbits_quantizer.MatMulNBitsQuantizer, "process", fail)
    assert refusal(wide(), "int4-weights") == refused("onnxruntime's quantizer failed: no such block")


def test_importing_the_quantizer_leaves_the_root_logger_as_it_was(wide, store, monkeypatch):
    """It calls logging.basicConfig: every INFO of the process would go to standard error from then on."""
    root = logging.getLogger()
    level = root.level
    monkeypatch.delitem(sys.modules, "onnxruntime.quantization.matmul_nbits_quantizer", raising=False)
    monkeypatch.setattr(root, "handlers", [])
    compress(wide(), "int4-weights", store=store)
    assert (root.handlers, root.level) == ([], level)


def test_talk_of_the_quantizer_about_every_node_stays_untold(wide, store, caplog):
    with caplog.at_level(logging.INFO):
        compress(wide(), "int4-weights", store=store)
    assert not [record for record in caplog.records if record.name.startswith("onnxruntime")]
