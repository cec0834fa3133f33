from __future__ import annotations

import logging

import numpy as np
import pytest
from onnx import TensorProto

from pytest_modelserve.artifacts import load_model
from pytest_modelserve.compression import compress
from pytest_modelserve.errors import RecipeError, UsageError
from pytest_modelserve.pipeline import Pipeline

ROW = {"x": ["batch", 8]}


@pytest.fixture
def rows(weight):
    return weight(80, 8)


def refused(told, artifact=None):
    return f"recipe 'int8-static' on {artifact or 'net / fp32'}: {told}"


def test_weights_shrink_and_answers_stay_close(mlp, store, rows, noise_db, weight, capfd):
    source = mlp(w1=weight(8, 256), b1=weight(256), w2=weight(256, 4))
    small = compress(source, "int8-static", calibration=rows, store=store)
    assert (small.variant, small.signature) == ("int8-static", source.signature)
    assert small.initializer_bytes < source.initializer_bytes / 1.4
    assert noise_db(small, source, rows)["y"] > 30
    step = small.lineage[-1]
    assert step.notes == ()
    assert step.settings["nodes_after"]["QuantizeLinear"] == 3
    assert len(step.settings["calibration"]) == 64
    assert step.settings["calibration_method"] == "min-max"
    assert "percentile" not in step.settings
    assert capfd.readouterr() == ("", "")


def test_each_channel_has_its_own_scale(mlp, store, rows, weight):
    """One scale for all would put a channel 1000 times smaller than another into a few steps."""
    weights = weight(32, 4) * np.array([1e-3, 1, 1, 1], np.float32)
    small = compress(mlp(w2=weights), "int8-static", calibration=rows, store=store)
    scale = next(tensor for tensor in load_model(small).graph.initializer if tensor.name == "w2_scale")
    assert list(scale.dims) == [4]


def test_ranges_are_those_of_the_calibration_data(mlp, store, rows, noise_db):
    source = mlp()
    good = compress(source, "int8-static", calibration=rows, store=store)
    narrow = compress(source, "int8-static", calibration=rows * np.float32(0.05), store=store)
    assert good.sha256 != narrow.sha256
    assert noise_db(good, source, rows)["y"] > noise_db(narrow, source, rows)["y"] + 15


def test_layer_without_an_int8_form_is_noted(saved, store, weight):
    nodes = [("GRU", ["x", "wg", "rg"], "g", {"hidden_size": 4}), ("MatMul", ["g", "w"], "y", {})]
    weights = {"wg": weight(1, 12, 8), "rg": weight(1, 12, 4), "w": weight(4, 4)}
    source = saved(nodes, {"x": ["time", "batch", 8]}, {"y": None}, weights)
    small = compress(source, "int8-static", calibration=weight(5, 3, 8), store=store)
    assert small.lineage[-1].notes[0] == "left in float: GRU ×1 (node_g)"


@pytest.mark.parametrize("method", ["min-max", "entropy", "percentile"])
def test_mask_of_minus_infinity_is_refused_by_name(masked, refusal, rows, method):
    """onnxruntime's quantizer writes infinite scales here and reports success."""
    source = masked(-np.inf)
    assert refusal(source, "int8-static", calibration=rows, calibration_method=method) == refused(
        "no int8 scale for 'mask', 'm': NaN or infinite on the calibration data, as behind a mask of -inf; "
        "exclude=('node_m', 'node_y') leaves the nodes that write or read such values in float; a mask of -30 has a scale; "
        "'int8-dynamic' quantizes no mask"
    )


def test_mask_of_minus_infinity_is_no_trouble_once_its_nodes_are_excluded(masked, store, rows, answers):
    source = masked(-np.inf)
    small = compress(source, "int8-static", calibration=rows, exclude=["node_m", "node_y"], store=store)
    np.testing.assert_allclose(answers(small, rows)["y"], answers(source, rows)["y"], atol=0.1)


@pytest.mark.parametrize("method", ["min-max", "entropy", "percentile"])
@pytest.mark.parametrize("negative", [0, 40, 79])
def test_value_that_is_nan_on_one_row_is_refused_by_name(saved, refusal, rows, weight, method, negative):
    """Whichever batch the row is in: onnxruntime's calibrators forget a NaN beside numbers."""
    nodes = [("Log", ["x"], "l", {}), ("MatMul", ["l", "w"], "y", {})]
    source = saved(nodes, ROW, {"y": ["batch", 8]}, {"w": weight(8, 8)})
    given = np.abs(rows)
    given[negative] *= -1
    assert refusal(source, "int8-static", calibration=given, calibration_method=method) == refused(
        "no int8 scale for 'l', 'y': NaN or infinite on the calibration data, as behind a mask of -inf; "
        "exclude=('node_y',) leaves the nodes that write or read such values in float; a mask of -30 has a scale; "
        "'int8-dynamic' quantizes no mask"
    )


def test_batch_on_which_the_model_does_not_run_is_told(saved, refusal, weight, capfd):
    nodes = [("Cast", ["x"], "ids", {"to": TensorProto.INT64}), ("Gather", ["table", "ids"], "g", {})]
    nodes.append(("MatMul", ["g", "w"], "y", {}))
    source = saved(nodes, {"x": ["batch"]}, {"y": None}, {"table": weight(9, 8), "w": weight(8, 8)})
    assert refusal(source, "int8-static", calibration=np.array([1, 2, 300], np.float32)).startswith(
        refused("the model does not run on a batch of calibration=: 2 : INVALID_ARGUMENT : Non-zero status code")
    )
    assert capfd.readouterr() == ("", "")


def test_infinite_weights_are_refused_by_name(mlp, refusal, rows, weight):
    weights = weight(32, 4)
    weights[0, 0] = np.inf
    assert "no int8 scale for 'y', 'w2': NaN or infinite" in refusal(mlp(w2=weights), "int8-static", calibration=rows)


def test_nan_weights_are_refused(mlp, refusal, rows):
    source = mlp(w2=np.full((32, 4), np.nan, np.float32))
    assert refusal(source, "int8-static", calibration=rows) == refused(
        "initializer 'w2' holds 128 NaN, so it has no int8 form"
    )


def test_model_without_weights_is_refused(saved, refusal, rows):
    source = saved([("Add", ["x", "x"], "y", {})], ROW, {"y": ["batch", 8]}, {})
    assert refusal(source, "int8-static", calibration=rows) == refused(
        "there is nothing to quantize: no operator with constant float32 weights among Add ×1"
    )


def test_model_in_float64_is_refused(mlp, refusal):
    """The quantizer takes float32 alone, changes nothing and reports success."""
    shapes = {"w1": (8, 3), "b1": (3,), "w2": (3, 4), "b2": (4,)}
    source = mlp(**{name: np.ones(shape) for name, shape in shapes.items()})
    assert refusal(source, "int8-static", calibration=np.ones((4, 8))) == refused(
        "there is nothing to quantize: no operator with constant float32 weights among Gemm ×2, Relu ×1"
    )


def test_quantizing_twice_is_refused(mlp, store, rows):
    small = compress(mlp(), "int8-static", calibration=rows, store=store)
    with pytest.raises(RecipeError) as caught:
        compress(small, "int8-static", calibration=rows, store=store)
    assert str(caught.value) == refused(
        "the model is quantized already (DequantizeLinear ×7, QuantizeLinear ×3): quantize its source",
        "net / int8-static",
    )


def test_failure_of_the_quantizer_is_told(mlp, refusal, rows, monkeypatch):
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    def fail(_):
        raise ValueError("no such operator")

    monkeypatch.setattr(QDQQuantizer, "quantize_model", fail)
    assert refusal(mlp(), "int8-static", calibration=rows) == refused(
        "onnxruntime's quantizer failed: no such operator"
    )


def test_quantizer_leaves_logging_and_warnings_as_they_were(mlp, store, rows, caplog):
    root = logging.getLogger()
    before = (list(root.handlers), list(root.filters))
    compress(mlp(), "int8-static", calibration=rows, store=store)
    assert (root.handlers, root.filters) == before
    assert not caplog.records


def test_calibration_reaches_the_recipe_of_a_chain_that_takes_it(mlp, store, rows):
    source = mlp()
    chain = compress(source, ["int8-static", "optimize"], calibration=rows, store=store)
    quantize, optimize = chain.lineage[-2:]
    assert "calibration" in quantize.settings
    assert "calibration" not in optimize.settings
    assert optimize.settings["nodes_after"] == {"QGemm": 2, "QuantizeLinear": 1, "DequantizeLinear": 1}


def test_quantizing_what_onnxruntime_optimized_is_refused(mlp, store, rows):
    """The quantizer would skip whatever lies behind a fused node, and warn on a logger that nobody reads."""
    with pytest.raises(RecipeError) as caught:
        compress(mlp(), ["optimize", "int8-static"], calibration=rows, store=store)
    assert str(caught.value) == refused(
        "the model has operators outside the ONNX standard (FusedGemm), behind which no range can be measured: "
        "quantize first, and use 'optimize' afterwards",
        "net / optimize",
    )


def test_same_calibration_is_a_hit_and_another_is_not(mlp, store, rows):
    source = mlp()

    def path(given):
        return compress(source, "int8-static", calibration=given, store=store).path

    assert path(rows) == path(rows.copy()) == path({"x": rows})
    assert path(rows) != path(rows[:-1])


def test_calibration_for_a_recipe_without_is_a_usage_error(mlp, store, rows):
    with pytest.raises(UsageError) as caught:
        compress(mlp(), ["simplify", "int8-dynamic"], calibration=rows, store=store)
    assert str(caught.value) == "calibration= does not apply to 'simplify', 'int8-dynamic': remove it"


def test_missing_calibration_is_told_before_any_work(mlp, refusal):
    assert refusal(mlp(), ["optimize", "int8-static"]) == (
        "recipe 'int8-static' needs calibration=: representative inputs as an array, a mapping from "
        "input names to arrays, or an iterable of such batches"
    )


def test_pipeline_passes_every_option_on(mlp, rows, tmp_path):
    with Pipeline(tmp_path / "cache") as pipeline:
        small = pipeline.compress(
            mlp(), "int8-static", calibration=rows, calibration_method="percentile", percentile=99, exclude="node_y"
        )
    settings = small.lineage[-1].settings
    assert settings["calibration_method"] == "percentile"
    assert settings["percentile"] == 99
    assert settings["exclude"] == ["node_y"]
