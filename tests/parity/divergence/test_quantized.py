"""Quantized and half-precision graphs against float ones: noise is no fault, a broken scale is."""

import functools

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import pytest_modelserve as ms

WIDE = np.random.default_rng(2).standard_normal((64, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def compressed(sound_net, tmp_path_factory):
    """An artifact of the network after a recipe, and the one it was made from."""
    path = tmp_path_factory.mktemp("net") / "reference.onnx"
    onnx.save(sound_net, path)
    with ms.Pipeline(path.parent / "cache") as pipeline:
        reference = pipeline.open_artifact(path)

        @functools.cache
        def make(recipe):
            more = {"calibration": WIDE} if recipe == "int8-static" else {}
            return pipeline.compress(reference, recipe, **more), reference

        yield make


def scaled(artifact, weight, factor, path):
    """A copy of `artifact` at `path` in which one stored tensor is multiplied."""
    model = onnx.load(artifact.path)
    tensor = next(each for each in model.graph.initializer if each.name == weight)
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(array * np.float32(factor), array.dtype), weight))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("recipe", ["fp16", "int8-dynamic", "int8-static", "int4-weights"])
def test_noise_of_a_lower_precision_is_no_divergence(compressed, recipe):
    assert ms.locate_divergence(*compressed(recipe), WIDE) is None


def test_scale_that_clips_is_located_with_its_range(compressed, tmp_path):
    candidate, reference = compressed("int8-static")
    found = ms.locate_divergence(scaled(candidate, "d_scale", 0.1, tmp_path / "broken.onnx"), reference, WIDE)
    assert found is not None
    assert (found.node, found.operator, found.tensor) == ("d_QuantizeLinear", "QuantizeLinear", "d")
    assert found.sqnr_db is not None
    assert found.sqnr_db < 10
    span, values = found.changes
    assert span.startswith("scale 'd_scale' of ")
    assert values.startswith("the reference's values span -")


def test_scale_of_a_weight_is_located_at_the_node_that_reads_it(compressed, tmp_path):
    candidate, reference = compressed("int8-static")
    found = ms.locate_divergence(scaled(candidate, "w2_scale", 2, tmp_path / "broken.onnx"), reference, WIDE)
    assert found is not None
    assert (found.operator, found.tensor) == ("DequantizeLinear", "w2")
    assert found.sqnr_db == pytest.approx(0, abs=0.1)  # twice the weight: noise as large as the signal


def test_scale_is_a_changed_weight_between_two_quantized_graphs(compressed, tmp_path):
    candidate, _ = compressed("int8-static")
    found = ms.locate_divergence(scaled(candidate, "d_scale", 1.5, tmp_path / "broken.onnx"), candidate, WIDE)
    assert found is not None
    assert (found.node, found.operator) == ("d_QuantizeLinear", "QuantizeLinear")
    assert found.changes[0].startswith("weight 'd_scale' is ")
    assert found.sqnr_db is None


def test_broken_operator_in_a_quantized_graph_is_located_despite_the_noise(compressed, tmp_path):
    candidate, reference = compressed("int8-static")
    model = onnx.load(candidate.path)
    next(each for each in model.graph.node if each.op_type == "Add").op_type = "Sub"
    onnx.save(model, tmp_path / "broken.onnx")
    found = ms.locate_divergence(tmp_path / "broken.onnx", reference, WIDE)
    assert found is not None
    assert (found.node, found.changes) == ("node_e", ("operator is Sub where the reference has Add",))


def test_overflow_of_half_precision_is_located_where_it_first_appears(net, save):
    """Weights that fit into float16 and a product that does not."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    tensor = next(each for each in net.graph.initializer if each.name == "b2")
    tensor.CopyFrom(numpy_helper.from_array(np.full(16, 65000, np.float32), "b2"))
    first = next(each for each in net.graph.initializer if each.name == "w2")
    first.CopyFrom(numpy_helper.from_array(np.arange(500, 756, dtype=np.float32).reshape(16, 16), "w2"))
    reference = save(net, "reference")
    half = convert_float_to_float16(net, keep_io_types=True)
    found = ms.locate_divergence(save(half, "half"), reference, WIDE)
    assert found is not None
    assert (found.tensor, found.candidate_value) == ("e", np.inf)
    assert found.problem.startswith("infinity where the reference is finite, ")
