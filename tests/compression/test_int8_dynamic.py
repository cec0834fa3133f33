from __future__ import annotations

import logging

import numpy as np
import pytest
from onnx import TensorProto

from pytest_modelserve.compression import compress
from pytest_modelserve.errors import RecipeError

BATCH_MATES = "activations are rounded by the range of the whole batch: the output of a row depends, within that rounding, on the other rows of its batch"


def test_int8_shrinks_the_weights_and_stays_close(mlp, store, noise_db, weight):
    source = mlp()
    small = compress(source, "int8-dynamic", store=store)
    assert small.variant == "int8-dynamic"
    assert small.signature == source.signature
    assert small.initializer_bytes < source.initializer_bytes / 2
    assert noise_db(small, source, weight(64, 8))["y"] > 30
    step = small.lineage[-1]
    assert (step.stage, step.parent, step.notes) == ("compression", source.sha256, (BATCH_MATES,))
    assert step.settings["recipe"] == "int8-dynamic"
    assert step.settings["nodes_before"] == {"Gemm": 2, "Relu": 1}
    assert step.settings["nodes_after"]["MatMulInteger"] == 2
    assert set(step.versions) == {"onnx", "onnxruntime"}


def test_convolutions_stay_in_float_where_they_are_faster(saved, store, weight):
    nodes = [("Conv", ["x", "k"], "h", {}), ("MatMul", ["h", "w"], "y", {})]
    small = compress(
        saved(nodes, {"x": ["batch", 2, 8]}, {"y": ["batch", 3, 4]}, {"k": weight(3, 2, 1), "w": weight(8, 4)}),
        "int8-dynamic",
        store=store,
    )
    assert small.lineage[-1].notes == ("left in float: Conv ×1 (node_h)", BATCH_MATES)
    assert small.lineage[-1].settings["nodes_after"]["MatMulInteger"] == 1


def test_layers_without_an_int8_form_are_noted(saved, store, weight):
    nodes = [("ConvTranspose", ["x", "k"], "h", {}), ("MatMul", ["h", "w"], "y", {})]
    small = compress(
        saved(nodes, {"x": ["batch", 2, 8]}, {"y": ["batch", 3, 4]}, {"k": weight(2, 3, 1), "w": weight(8, 4)}),
        "int8-dynamic",
        store=store,
    )
    assert small.lineage[-1].notes == ("left in float: ConvTranspose ×1 (node_h)", BATCH_MATES)


def test_model_that_does_not_shrink_is_noted(saved, store, weight):
    small = compress(
        saved([("MatMul", ["x", "w"], "y", {})], {"x": ["batch", 1]}, {"y": ["batch", 1]}, {"w": weight(1, 1)}),
        "int8-dynamic",
        store=store,
    )
    assert small.lineage[-1].notes == ("initializers did not shrink: 4 bytes before, 6 after", BATCH_MATES)


def refused(told):
    return f"recipe 'int8-dynamic' on net / fp32: {told}"


@pytest.mark.parametrize(
    ("node", "weights"), [(("Conv", ["x", "k"], "y", {}), {"k": (3, 2, 1)}), (("Relu", ["x"], "y", {}), {})]
)
def test_model_without_products_is_refused(saved, refusal, weight, node, weights):
    stored = {name: weight(*shape) for name, shape in weights.items()}
    assert refusal(saved([node], {"x": ["batch", 2, 8]}, {"y": None}, stored), "int8-dynamic") == refused(
        f"there is nothing to quantize: no MatMul, Gemm, LSTM or Gather with constant float32 weights among {node[0]} ×1"
    )


def test_model_in_float64_is_refused(mlp, refusal):
    shapes = {"w1": (8, 3), "b1": (3,), "w2": (3, 4), "b2": (4,)}
    assert refusal(mlp(**{name: np.ones(shape) for name, shape in shapes.items()}), "int8-dynamic") == refused(
        "there is nothing to quantize: no MatMul, Gemm, LSTM or Gather with constant float32 weights among Gemm ×2, "
        "Relu ×1"
    )


def test_model_in_float16_is_refused(mlp, refusal):
    shapes = {"w1": (8, 3), "b1": (3,), "w2": (3, 4), "b2": (4,)}
    assert refusal(mlp(**{k: np.ones(shape, np.float16) for k, shape in shapes.items()}), "int8-dynamic") == refused(
        "the weights are float16 and quantization needs float32: quantize the fp32 model"
    )


def test_nan_weights_are_refused(mlp, refusal):
    assert refusal(mlp(w2=np.full((32, 4), np.nan, np.float32)), "int8-dynamic") == refused(
        "initializer 'w2' holds 128 NaN, so it has no int8 form"
    )


def test_infinite_weights_are_refused(mlp, weight, refusal):
    weights = weight(32, 4)
    weights[0, 0] = np.inf
    assert refusal(mlp(w2=weights), "int8-dynamic") == refused(
        "'w2_scale' became NaN or infinite: the weights behind it are infinite or too large"
    )


def test_quantizing_twice_is_refused(mlp, store):
    small = compress(mlp(), "int8-dynamic", store=store)
    with pytest.raises(RecipeError) as caught:
        compress(small, "int8-dynamic", store=store)
    assert str(caught.value) == (
        "recipe 'int8-dynamic' on net / int8-dynamic: the model is quantized already (DynamicQuantizeLinear ×2, "
        "MatMulInteger ×2): quantize its source"
    )


def test_quantizer_leaves_logging_as_it_was(mlp, store, caplog):
    root = logging.getLogger()
    before = (list(root.handlers), list(root.filters))
    compress(mlp(), "int8-dynamic", store=store)
    assert (root.handlers, root.filters) == before
    assert not caplog.records


def test_answer_to_a_row_depends_on_its_batch_mates_which_a_note_tells(mlp, store, answers, weight):
    """One scale for the whole batch: a large row takes the steps of a small one. In fp32 a row stands alone."""
    source = mlp()
    small = compress(source, "int8-dynamic", store=store)
    assert BATCH_MATES in small.lineage[-1].notes
    row = weight(1, 8)
    beside = np.concatenate([row, row * np.float32(50)])

    def change(artifact):
        return np.abs(answers(artifact, row)["y"] - answers(artifact, beside)["y"][:1]).max()

    assert change(source) < 1e-5
    assert change(small) > 0.1


def test_lookup_alone_does_not_depend_on_batch_mates(saved, store, weight):
    source = saved(
        [("Cast", ["x"], "ids", {"to": TensorProto.INT64}), ("Gather", ["table", "ids"], "y", {})],
        {"x": ["batch"]},
        {"y": None},
        {"table": weight(9, 8)},
    )
    assert BATCH_MATES not in compress(source, "int8-dynamic", store=store).lineage[-1].notes


def test_sizes_are_told_of_the_weights_as_well_as_of_the_file(mlp, store):
    """The nodes and the lineage of so small a model weigh more than what quantizing saves: the file says nothing."""
    source = mlp()
    small = compress(source, "int8-dynamic", store=store)
    assert small.file_bytes > source.file_bytes
    assert small.initializer_bytes < source.initializer_bytes / 2
